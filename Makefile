# make quickstart   the whole method in minutes on a CPU, installation included
# make test         the tests
# Another Python: make PYTHON=python3.12 quickstart. Another folder for it: make VENV=/somewhere/venv quickstart.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What an installation depends on: as long as these do not change, it is not repeated.
PINS := pyproject.toml constraints.txt

.PHONY: help quickstart test lint types check clean
help:
	@sed -n '1,3s/^# //p' Makefile
	@echo "make check        linter, types and tests (make lint, make types: one of them)"
	@echo "make clean        removes $(VENV) and caches; outputs/ stays"

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/harness run recipes/quickstart.yaml
	@echo "The report: outputs/quickstart/report.html (also report.md and results.json beside it)"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "harness needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Next: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Each extra contains the one before, so installing it makes the smaller ones current too.
$(VENV)/.installed-%: $(PINS) | $(BIN)/python
	@echo "Installing harness[$*] into $(VENV) (the first time takes a few minutes, mostly torch) ..."
	@start=$$(date +%s); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[$*]' || { \
	  echo "pip failed. In full: $(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'" >&2; exit 1; }; \
	echo "Installed in $$(( $$(date +%s) - start )) s"
	@case $* in dev) touch $(@D)/.installed-test $(@D)/.installed-quickstart;; test) touch $(@D)/.installed-quickstart;; esac
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find harness tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
