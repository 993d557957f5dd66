# Both commands work from a fresh clone: they make .venv, install the locked versions and run.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: pretrain test lint lock

pretrain: .venv/installed
	$(BIN)/electra-exit pretrain quickstart

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Rebuilt when the locked versions or the package's metadata change.
.venv/installed: requirements.lock requirements-test.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# For maintainers: resolve the newest versions that fit pyproject.toml, in an environment of its own.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 setuptools '.[demo,study,test]'
	echo '# Exact versions, written by `make lock`.' > requirements.lock
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude electra-early-exit | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .venv-lock
