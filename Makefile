# rise-ray: everything a newcomer or CI types. It needs Python 3.11, make and a C compiler.
PYTHON ?= python3.11

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUIETLY := --quiet --no-deps --no-compile
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart lint format test test-all lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## the CPU stack and the dev tools into .venv (about 3 minutes, 4 GB)

# The stamp is the last line: a half-finished install is taken up again by the next call.
# torch comes first and alone, because PyPI's default build is the CUDA one (requirements/README.md).
$(STAMP): pyproject.toml requirements/cpu.lock requirements/dev.lock
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "the locks are for Python 3.11, and this is " + sys.version.split()[0] + ": make install PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(QUIETLY) $(TORCH) 2>/dev/null \
	  || { echo "No CPU build of torch in pip's own sources: taking it from $(TORCH_CPU_INDEX)"; \
	       $(PIP) install --no-deps --no-compile --index-url $(TORCH_CPU_INDEX) $(TORCH); }
	$(PIP) install $(QUIETLY) -r requirements/cpu.lock -r requirements/dev.lock
	@# By all cores, where pip takes one. What is no Python of this version, a template say, stays as it is.
	@$(BIN)/python -m compileall -qq -j 0 $(CURDIR)/$(VENV)/lib || true
	$(PIP) install $(QUIETLY) --no-build-isolation -e .
	@touch $@

quickstart: install ## train a tiny model to correct itself, end to end, on this CPU
	$(BIN)/rise-ray run jobs/quickstart.yaml --resume

lint: install ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Each process of pytest has a Ray of its own; see tests/README.md. System tests come first, since they
# are long, and unit tests fill what is left.
PROCESSES ?= 2
# One that ends by itself is not replaced: pytest-xdist would wait for ever (pytest-dev/pytest-xdist#1378).
PYTEST := $(BIN)/pytest --numprocesses $(PROCESSES) --max-worker-restart 0

test: install lint ## lint, then the unit and system tests that are not slow
	$(PYTEST) tests/system tests/unit -m "not slow and not gpu"

test-all: install ## the slow tests that `make test` leaves out
	$(PYTEST) tests/system tests/unit -m "slow and not gpu"

lock: ## rewrite requirements/*.lock from pyproject.toml
	PYTHON=$(PYTHON) requirements/lock.sh

clean: ## remove builds and caches (.venv and runs/ stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find rise_ray tests jobs cluster -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
