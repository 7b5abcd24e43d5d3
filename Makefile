# `make lab` and `make test` do all their set-up; `make help` lists the rest.
#
#   PYTHON=python3.12         another interpreter (the pins are tested with 3.11)
#   TORCH_INDEX=URL           where torch alone comes from, e.g. an index of CPU builds
#   LAB_ARGS="--no-browser"   passed on to JupyterLab
#   JOBS=4                    test processes

PYTHON      ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
LAB_ARGS    ?=
JOBS        ?= 2

BIN   := .venv/bin
READY := .venv/.ready
PIP   := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with=notebooks/nbval_sanitize.cfg

.DEFAULT_GOAL := help
.PHONY: help setup lab test lint types unit notebooks clean-notebooks notebooks-update

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST)

setup: $(READY)  ## create or refresh .venv

# The stamp is written last, so an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt
	@echo "[set-up 1/3] .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mlalab needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch goes first and alone: a CPU build at hand is then taken, and kept, instead of the
	@# CUDA one with its gigabytes. setuptools is there to build mlalab without a second download.
	@echo "[set-up 2/3] torch, as pinned in constraints.txt (the largest download)"
	@$(PIP) setuptools
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "[set-up 3/3] mlalab and everything else it needs, as pinned in constraints.txt"
	@$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

lab: $(READY)  ## open JupyterLab on the first notebook
	@echo "[lab] JupyterLab on notebooks/00_start_here.ipynb; stop it with Ctrl-C"
	@$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

test: lint types unit notebooks  ## lint, types, unit tests, notebooks
	@echo "[test] all passed"

lint: $(READY)  ## ruff: rules and formatting
	@echo "[lint] ruff check, ruff format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## mypy
	@echo "[types] mypy"
	@$(BIN)/mypy

# tests/scheduling.py says what stays in one process; in order of path, as long files hold few tests.
unit: $(READY)  ## pytest on tests/
	@echo "[unit] pytest, $(JOBS) processes"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

# One kernel per notebook, so a notebook's cells must stay on one worker: loadfile.
notebooks: $(READY)  ## run every notebook and compare its outputs
	@echo "[notebooks] nbval, every committed output compared, $(JOBS) processes"
	@$(BIN)/python -m pytest -q $(NBVAL) -n $(JOBS) --dist loadfile notebooks

notebooks-update: $(READY)  ## run every notebook again and keep its outputs, normalised
	@echo "[notebooks] running and saving"
	@MLALAB_LIVE=0 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace notebooks/*.ipynb
	@$(BIN)/python -m mlalab clean notebooks/*.ipynb

clean-notebooks: $(READY)  ## normalise the notebooks for committing
	@$(BIN)/python -m mlalab clean notebooks/*.ipynb
