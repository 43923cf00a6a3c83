# `make help` lists the targets. Everything lives in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Two test processes of one torch thread each: two threads make tiny models many times slower.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo setup test test-slow check bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.core  ## set up, train MD4 on an embedded text, draw samples: open runs/demo/report.html (6 minutes)
	$(BIN)/lightning fit --config experiments/md4_demo.yaml $(if $(wildcard runs/demo/last.ckpt),--ckpt_path last)
	$(BIN)/lightning sample --ckpt_path runs/demo/last.ckpt --num_samples 8 --num_steps 256
	@echo "look at runs/demo/report.html"

setup: $(VENV)/.dev  ## set up .venv with everything for development

test: $(VENV)/.dev  ## set up if needed, run every fast test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(VENV)/.dev  ## the tests that train or search for minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ggm_lightning

bench: $(VENV)/.dev  ## speed, into tests/benchmarks/results/ (nothing is asserted)
	$(BIN)/python -m tests.benchmarks.run

clean:  ## remove .venv and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: an open range would fetch several GB of CUDA libraries
$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@
