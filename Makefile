# `make pretrain` and `make test` work in a fresh clone: they create .venv, install the locked versions and run.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := $(addprefix tests/,modeling/test_heads.py $(patsubst %,trainers/%.py,cli/test_cli runtime/test_cpu_kernels \
	data/test_data runtime/test_distributed finetuning/test_finetuning generators/test_generators finetuning/test_scoring \
	data/test_streaming pretraining/test_trainer))
# Names of the dependencies, without version bounds.
DEPENDENCIES = $(shell $(PYTHON) -c "import re, tomllib; \
	print(*(re.match(r'[\w.-]+', d)[0] for d in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")

.PHONY: pretrain test test-oldest test-latest mutants lint docs lock version release

pretrain: .venv/installed
	$(BIN)/electra-exit pretrain quickstart --train_time 10min

test: .venv/installed
	$(BIN)/python -m pytest

# The tests that depend on other libraries, with the oldest versions that pyproject.toml allows. On x86-64, torch is a
# CUDA build of several GB.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(OLDEST)

# The whole suite with the newest releases in the registry, also beyond the bounds of pyproject.toml, to find breaking
# changes early. The environment is created anew each time.
test-latest:
	$(PYTHON) -m venv --clear .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade --editable '.[demo,study,docs,test]'
	.venv-latest/bin/python -m pip install --quiet --upgrade $(DEPENDENCIES)
	.venv-latest/bin/python -m pip install --quiet --no-deps --requirement requirements-test.lock
	.venv-latest/bin/python -m pytest

# Apply small changes of meaning, one at a time. Each must fail a test.
mutants: .venv/installed
	$(BIN)/python tests/mutants.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Build the site in build/site. Broken links and anchors are errors.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Rebuilt when the locked versions or the package's metadata change.
.venv/installed: LOCK = requirements.lock
.venv/installed: requirements.lock
.venv-oldest/installed: LOCK = requirements-oldest.lock
.venv-oldest/installed: requirements-oldest.lock
.venv/installed .venv-oldest/installed: requirements-test.lock pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-test.lock
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# For maintainers: `make version VERSION=0.1.0` writes a version and its date; `make release` builds and checks the
# distributions. CONTRIBUTING.md lists the steps.
version:
	$(PYTHON) .ci/release.py version $(VERSION)

release: .venv-release/installed
	.venv-release/bin/python .ci/release.py build

.venv-release/installed: requirements-release.lock
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# For maintainers: resolve the newest versions that pyproject.toml allows, in a separate environment.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 setuptools '.[demo,study,docs,test]'
	echo '# Exact versions, written by `make lock`.' > requirements.lock
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude electra-early-exit | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .venv-lock
