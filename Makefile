# make up | test | check | lint | clean      CONFIG=file make up      PYTHON=python3.12 make up
PYTHON ?= python3
CONFIG ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Stamps: an install that is up to date costs nothing, one that was cut short is done again.
INSTALLED := .venv/.installed
TOOLS := .venv/.tools

.PHONY: up test check lint clean
.NOTPARALLEL:

up: $(INSTALLED)
	@$(if $(CONFIG),ORCH_CONFIG='$(CONFIG)') exec $(BIN)/python -m services.up

test: $(TOOLS)
	@$(BIN)/python -m pytest $(ARGS)

check: lint test

lint: $(TOOLS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: # leaves data/ alone: jobs and logs are not ours to delete
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: say PYTHON=/path/to/python3" % v[:2])'
	@$(PYTHON) -m venv .venv

$(INSTALLED): requirements.txt pyproject.toml | $(BIN)/python
	@echo "installing into .venv ... (first run only)"
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS): requirements-dev.txt $(INSTALLED)
	@echo "installing what the tests need ... (first run only)"
	@$(PIP) install -r requirements-dev.txt
	@touch $@
