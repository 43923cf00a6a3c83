# `make help` lists the targets. Everything lives in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# the few modules that are imported are compiled then
LAZILY := --no-compile
# Two test processes of one torch thread each: two threads make tiny models many times slower.
WORKERS ?= 2

# a run that came to its own end (its story says so) is left as it is, one that was stopped goes on
fit = $(if $(shell grep -s '"complete": true' runs/$(1)/story.json),@echo "runs/$(1) is finished",$(BIN)/lightning fit \
	--config experiments/$(2).yaml $(if $(wildcard runs/$(1)/last.ckpt),--ckpt_path last))

.DEFAULT_GOAL := help
.PHONY: help demo demo-all demo-text demo-sudoku demo-md4 demo-images demo-blackout demo-lddm demo-vqgan setup test test-slow test-slurm test-slurm-short mutants check bench bench-sweep gpu docs clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

# the two that are to be read first, side by side: each takes one core, and its lines begin with its name
demo: $(VENV)/.core  ## set up, a text and a Sudoku: open runs/ggm_demo/report.html, runs/md4_sudoku/report.html (6 minutes)
	@$(MAKE) --no-print-directory -j2 named/demo-sudoku named/demo-text
	@echo "look at runs/md4_sudoku/report.html and at runs/ggm_demo/report.html"

demo-all: demo-md4 demo-images demo-blackout demo-lddm demo-vqgan  ## the other demos, one after the other (30 minutes)

# sed outlives Ctrl-C, so that what is said of the stop has somewhere to go
named/%: SHELL := bash
named/%:
	@set -o pipefail; $(MAKE) --no-print-directory $* 2>&1 | (trap '' INT; exec sed -u 's/^/$*: /')

demo-text: export OMP_NUM_THREADS := 1
demo-text: $(VENV)/.core  ## GGM on a text that comes with Python, in subwords: open runs/ggm_demo/report.html (3 minutes)
	$(call fit,ggm_demo,ggm_demo)
	@echo "look at runs/ggm_demo/report.html"

demo-sudoku: export OMP_NUM_THREADS := 1
demo-sudoku: $(VENV)/.core  ## MD4 solves Sudokus that it never saw: open runs/md4_sudoku/report.html (4 minutes)
	$(call fit,md4_sudoku,md4_sudoku)
	@echo "look at runs/md4_sudoku/report.html"

demo-md4: $(VENV)/.core  ## MD4 on the characters of that text: open runs/demo/report.html (5 minutes)
	$(call fit,demo,md4_demo)
	$(BIN)/lightning sample --ckpt_path runs/demo/last.ckpt --num_samples 8 --num_steps 256
	@echo "look at runs/demo/report.html"

# so small a network gains nothing from a second thread, and loses much where something else is running
demo-images: export OMP_NUM_THREADS := 1
demo-images: $(VENV)/.images  ## MD4 on 8x8 digits, with an infilling: open runs/digits/report.html (6 minutes)
	$(call fit,digits,md4_digits)
	$(BIN)/lightning sample --ckpt_path runs/digits/last.ckpt --num_samples 40 --num_steps 64 --label each
	$(BIN)/lightning infill --ckpt_path runs/digits/last.ckpt --input runs/digits/example.png --mask right
	@echo "look at runs/digits/report.html"

demo-blackout: export OMP_NUM_THREADS := 1
demo-blackout: $(VENV)/.images  ## digits born out of black, Blackout diffusion: open runs/blackout_digits/report.html (6 minutes)
	$(call fit,blackout_digits,blackout_digits)
	$(BIN)/lightning sample --ckpt_path runs/blackout_digits/last.ckpt --num_samples 40 --num_steps 100 --label each
	@echo "look at runs/blackout_digits/report.html"

demo-lddm: $(VENV)/.core  ## that text by Di-LADD, codes first, then all characters at once: open runs/diladd_demo/report.html (7 minutes)
	$(call fit,diladd_demo,diladd_demo)
	$(BIN)/lightning sample --ckpt_path runs/diladd_demo/last.ckpt --num_samples 8 --num_steps 1
	@echo "look at runs/diladd_demo/report.html"

demo-vqgan: export OMP_NUM_THREADS := 1
demo-vqgan: $(VENV)/.vqgan  ## digits to codes to digits, VQGAN and MD4: open runs/md4_digits_vqgan/report.html (5 minutes)
	$(call fit,vqgan_digits,vqgan_digits)
	$(call fit,md4_digits_vqgan,md4_digits_vqgan)
	$(BIN)/lightning sample --ckpt_path runs/md4_digits_vqgan/last.ckpt --num_samples 40 --num_steps 16 --label each
	@echo "look at runs/md4_digits_vqgan/report.html: real, reconstructed, generated"

setup: $(VENV)/.dev  ## set up .venv with everything for development

test: $(VENV)/.dev  ## set up if needed, run every fast test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not slurm"

test-slow: $(VENV)/.all  ## the tests that train, kill or search for minutes; what they counted is printed
	@$(MAKE) --no-print-directory -j2 --output-sync=target slow-one slow-two

# the table of docs/cluster.md; SLURM's commands elsewhere than on the path: make test-slurm GGM_SLURM_BIN=FOLDER
test-slurm: export OMP_NUM_THREADS := 1
test-slurm: $(VENV)/.dev  ## jobs on a real SLURM of this machine (root, apt-get install slurm-wlm munge; 12 minutes)
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

# one job that is put back, and the launchers' errors
test-slurm-short: export OMP_NUM_THREADS := 1
test-slurm-short: $(VENV)/.dev
	$(BIN)/python -m pytest -m slurm -rs tests/slurm/test_launchers.py tests/slurm/test_table.py::test_usr1

SLOW_ONE := tests/fuzz tests/models tests/data tests/test_trainer_flags.py tests/test_memory.py tests/test_learning.py

slow-one:  # two halves of about equal length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(SLOW_ONE)

slow-two:
	OMP_NUM_THREADS=1 GGM_EXTRAS=all $(BIN)/python -m pytest -m slow $(addprefix --ignore ,$(SLOW_ONE))

mutants: $(VENV)/.dev  ## small mistakes put into copies of the package, and whether the tests notice (not in CI)
	$(BIN)/python -m tests.mutants

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ggm_lightning

bench: $(VENV)/.dev  ## speed, into tests/benchmarks/results/ (nothing is asserted)
	$(BIN)/python -m tests.benchmarks.run

gpu:  ## what has to be measured on a GPU, in 8 minutes, without a network; into tests/benchmarks/results/
	$(BIN)/python -m tests.benchmarks.gpu

bench-sweep: $(VENV)/.dev  ## quality against budget of MD4, GGM and AR on the demo's text (20 minutes of two cores): docs/sweep.md
	$(BIN)/python -m tests.benchmarks.sweep

docs: $(VENV)/.all  ## the documents as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -d site
	@echo "open site/index.html"

clean:  ## remove .venv and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: an open range would fetch several GB of CUDA libraries
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) install $(LAZILY) -c constraints.txt torch==2.13.0
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	$(PIP) install $(LAZILY) -c constraints.txt -e .
	@touch $@

$(VENV)/.images: $(VENV)/.core
	$(PIP) install -c constraints.txt -e ".[images]"
	@touch $@

# alone and without what it declares: its training code wants torchvision and an old Lightning, which break ours; the
# three modules taken of it (vqgan/network.py) need neither
TAMING := $(PIP) install --no-deps taming-transformers-rom1504==0.0.6

$(VENV)/.vqgan: $(VENV)/.images
	$(TAMING)
	@touch $@

# not behind .core, which would look for most packages twice
$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install $(LAZILY) -c constraints.txt -e ".[dev]"
	$(TAMING)
	@touch $(VENV)/.core $@

# what only slow tests and the documents need
$(VENV)/.all: $(VENV)/.dev
	$(PIP) install -c constraints.txt -e ".[dev,lm-eval,docs]"
	@touch $@
