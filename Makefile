# The whole of it: `make demo` and `make test` need Python ≥ 3.11 and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo-output

# napari raises where a plugin touches the viewer from another thread.
export NAPARI_ENSURE_PLUGIN_MAIN_THREAD = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PIP_INSTALL = $(BIN)/python -m pip install -qq --constraint constraints.txt --editable
# A virtual X server where there is no display but one can be had.
UNDER_A_DISPLAY = $(shell [ -n "$$DISPLAY" ] || ! command -v xvfb-run >/dev/null || \
	echo 'xvfb-run --auto-servernum --server-args "-screen 0 1600x1200x24 +extension GLX"')
# Each test process has an X server and a core to itself; more than four only take more memory.
WORKERS = --numprocesses auto --maxprocesses 4 --dist loadfile
# Files whose change calls for a new install.
RECIPE := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint docs bench clean distclean libraries

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.installed ## Make .venv with the package in it

demo: $(VENV)/.installed ## Upsample a real scan: a NIfTI file, a picture and scores
	$(BIN)/python -m napari_arssr.demo --out $(DEMO_OUTPUT)

test: $(VENV)/.installed-test libraries ## Run the tests, in a real window where they need one
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## Build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-app libraries ## Measure speed and memory
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/training.py
	$(UNDER_A_DISPLAY) $(BIN)/python -W ignore benchmarks/live_view.py

clean: ## Remove what the other commands made, except .venv
	rm -rf build dist site $(DEMO_OUTPUT) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)

# What a window needs of the system.
libraries:
	@scripts/system-libraries.sh

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "napari-arssr needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing): name another with" \
			"'make PYTHON=python3.12 …'."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) could not make $(VENV): on Debian and Ubuntu install python3-venv."; exit 1; }

$(VENV)/.installed: $(RECIPE) | $(BIN)/python
	@echo "Installing napari-arssr into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) .
	@touch $@

# One extra each: .installed-test holds [test], and so on.
$(VENV)/.installed-%: $(RECIPE) | $(BIN)/python
	@echo "Installing napari-arssr[$*] into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) '.[$*]'
	@touch $@ $(VENV)/.installed
