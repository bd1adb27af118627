# Two commands for a fresh machine: `make demo` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Compiling all 21,000 installed files takes longer than installing them; Python compiles those that it imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test lint pytest clean

demo: .venv/demo
	$(BIN)/ndvit train gunpoint --preset fast --output runs/demo-gunpoint --force
	$(BIN)/ndvit train digits --output runs/demo-digits --force
	@echo
	@echo "Two classifiers are trained. Open their reports in a browser:"
	@echo "  runs/demo-gunpoint/report.html"
	@echo "  runs/demo-digits/report.html"

test: .venv/dev
	$(MAKE) --jobs 2 lint pytest

pytest: .venv/dev
	$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ndvit needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version): make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo: .venv/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/dev: .venv/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	@touch .venv/demo $@
