# Both commands work from a fresh clone: they make .venv, install the locked versions and run.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := $(addprefix tests/,modeling/test_heads.py $(patsubst %,trainers/%.py,cli/test_cli runtime/test_cpu_kernels \
	data/test_data runtime/test_distributed finetuning/test_finetuning generators/test_generators finetuning/test_scoring \
	data/test_streaming pretraining/test_trainer))

.PHONY: pretrain test test-oldest mutants lint lock

pretrain: .venv/installed
	$(BIN)/electra-exit pretrain quickstart

test: .venv/installed
	$(BIN)/python -m pytest

# The tests of what other libraries do for us, with the least versions that pyproject.toml allows. Of torch that is a
# CUDA build on x86-64: several GB.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(OLDEST)

# Small changes of meaning, one at a time: each must fail a test.
mutants: .venv/installed
	$(BIN)/python tests/mutants.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

# For maintainers: resolve the newest versions that fit pyproject.toml, in an environment of its own.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 setuptools '.[demo,study,test]'
	echo '# Exact versions, written by `make lock`.' > requirements.lock
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude electra-early-exit | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .venv-lock
