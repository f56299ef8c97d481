# Two commands: `make train` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
# Extra options for installing torch (only `make test` and the converter need it), for example an
# `--index-url` of CPU-only wheels: without one, Linux gets the build with CUDA, several GB.
TORCH_OPTIONS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
DATA ?= datasets/synthetic
OUT ?= runs/study
TORCH := torch==2.13.0
# What jax computes on: cpu, cuda12, cuda13 or tpu. Each is jax's own extra, into .venv.
JAX ?= cpu
ifneq ($(words $(filter cpu cuda12 cuda13 tpu,$(JAX))),1)
$(error JAX=$(JAX): no build of jax has that name; choose cpu, cuda12, cuda13 or tpu)
endif

.PHONY: train study test parity lint format docs gpu-check convert-tools notebooks clean help

help:  ## Show the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "error: $$($(PYTHON) --version) found, 3.11 or 3.12 needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

# torch first and by its exact version: everything after it keeps what is there.
$(VENV)/.test: $(VENV)/.run
	$(PIP) install --quiet $(TORCH_OPTIONS) $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.jax-cpu: $(VENV)/.run
	@touch $@

$(VENV)/.jax-%: $(VENV)/.run
	$(PIP) install --quiet -c constraints.txt 'jax[$*]'
	@touch $@

train: $(VENV)/.jax-$(JAX)  ## Generate the embedded data, train the tiny SAM on it, score it
	$(PY) -m data.synthetic --out $(DATA)
	$(PY) train.py
	$(PY) eval.py

# DRY=1 says what would be run; FLAGS are of `python -m pp_jax.study --help`.
study: $(VENV)/.convert  ## Your weights on your files: make study SAM=FILE RSNA=DIR [MASKS=DIR] [DRY=1]
	@$(PY) -m pp_jax.study --sam "$(SAM)" --rsna "$(RSNA)" --masks "$(MASKS)" --out "$(OUT)" \
	  $(if $(LIMIT),--limit $(LIMIT)) $(if $(DRY),--dry-run) $(FLAGS)

$(VENV)/.convert: $(VENV)/.run
	$(PIP) install --quiet $(TORCH_OPTIONS) $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e '.[convert]'
	@touch $@

convert-tools: $(VENV)/.convert  ## Install what `python -m convert` needs (torch)

test: $(VENV)/.test  ## Run the tests (12 minutes at most on two cores)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not parity and not slow and not gpu'

parity: $(VENV)/.test  ## Full-size comparison with the official torch SAM
	$(PY) -m pytest -m 'parity or slow' -s

gpu-check:  ## Tests that need an accelerator, with the jax of $(PYTHON), without .venv
	$(PYTHON) -m pytest -m gpu -o filterwarnings=default

notebooks: $(VENV)/bin/python  ## Execute docs/notebooks in a fresh clone and environment, 10 minutes each at most
	$(PY) docs/notebooks/run.py --clean

$(VENV)/.docs: $(VENV)/.run
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## Build the site of these pages and of the docstrings into site/
	$(PY) -m sphinx -q -W --keep-going -c docs -d .cache/docs . site
	$(PY) docs/check_site.py site

lint: $(VENV)/.test  ## Style, imports, formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/.test  ## Rewrite the files in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:  ## Remove .venv; runs, data sets and checkpoints stay
	rm -rf $(VENV)
