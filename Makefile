# From nothing but Python 3.11 or newer, make and a package index. Every target may be repeated.

PYTHON ?= python3
OUT ?= runs/demo
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2
BENCH_FLAGS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test lint bench bench-scale clean

demo: .venv/.installed
	$(BIN)/handful train mnist50 --out $(OUT)

test: lint
	$(BIN)/pytest $(PYTEST_FLAGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests that need these packages first: what is timed must compute the same.
bench: .venv/.installed-bench
	$(BIN)/pytest --quiet tests/test_benchmarks.py
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

bench-scale: .venv/.installed
	$(BIN)/python -m benchmarks.scale

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp is older than what it was made from exactly when the environment has to change.
.venv/.installed: pyproject.toml constraints.txt | .venv/.python
	@echo "installing handful and what it needs (some minutes the first time)"
	$(INSTALL) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "installing what the checks need"
	$(INSTALL) -e '.[dev]'
	@touch $@

.venv/.installed-bench: .venv/.installed-dev benchmarks/requirements.txt
	@echo "installing what benchmarks compare with"
	$(INSTALL) -r benchmarks/requirements.txt
	@touch $@

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "handful needs Python 3.11 or newer and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@
