# make quickstart   the whole method in minutes on a CPU, installation included
# make test         the tests
# make check        linter, types, arrows between the rooms, the report in a browser, tests: what must hold before a change lands
# Another Python: make PYTHON=python3.12 quickstart. Another folder for it: make VENV=/somewhere/venv quickstart.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What an installation depends on: as long as these do not change, it is not repeated.
PINS := pyproject.toml constraints.txt

.PHONY: help quickstart test lint types arrows browser check lint-shell matrix clean
help:
	@sed -n '1,4s/^# //p' Makefile
	@echo "make lint, make types, make arrows, make browser, make test: one part of make check"
	@echo "make lint-shell   the Dockerfile and the shell scripts (hadolint, shellcheck)"
	@echo "make matrix       the tests at the oldest and the newest supported versions; gigabytes, up to an hour"
	@echo "make clean        removes $(VENV) and caches; outputs/ stays"

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/harness run recipes/quickstart.yaml
	@echo "The report: outputs/quickstart/report.html (also report.md and results.json beside it)"

# One process a core, up to four; a file's tests stay together, since they share what they set up.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The rooms import only rooms before them. `make test` has this too; here it stands alone, and answers in seconds.
arrows: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Chromium lays the report out; without one, the tests say that they were skipped.
browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -rs -m browser tests/evaluation

check: lint types arrows browser test

lint-shell: $(VENV)/.installed-shell
	$(BIN)/hadolint --strict-labels --failure-threshold style Dockerfile
	$(BIN)/shellcheck --enable=all --exclude=SC2250,SC2312 .ci/run recipes/slurm/*.sh

# Other Pythons for the two sides: make PYTHON_OLDEST=python3.11 PYTHON_NEWEST=python3.13 matrix
PYTHON_OLDEST ?= $(PYTHON)
PYTHON_NEWEST ?= $(PYTHON)
matrix:
	$(PYTHON_OLDEST) benchmarks/version_matrix.py --python oldest=$(PYTHON_OLDEST) --python newest=$(PYTHON_NEWEST)

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
	rm -rf $(VENV) .matrix .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find harness tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
