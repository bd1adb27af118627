# Commands for a fresh machine: `make demo`, `make test` and `make docs`. Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Compiling all 21,000 installed files takes longer than installing them; Python compiles those that it imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# They are kept, also where the environment says otherwise: else each of the many processes of the tests compiles all
# that it imports, which takes longer than the import itself.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache

.PHONY: demo test lint pytest docs wheel clean

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

docs: .venv/docs
	$(BIN)/python docs/doctests.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html in a browser."

# Build a wheel, install it into a clean environment, and use it.
wheel:
	rm -rf build dist
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	.ci/wheel $(PYTHON) dist/ndvit-*.whl

clean:
	rm -rf .venv docs/_build

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

.venv/docs: .venv/python pyproject.toml constraints.txt
	$(PIP) -e ".[docs]"
	@touch $@
