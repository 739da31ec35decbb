# Everything runs in .venv, which `make setup` fills from pyproject.toml and constraints.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test thorough coverage lint types check format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install everything (PYTHON=... picks another interpreter)

# Only a changed pyproject.toml or constraints.txt, or an interrupted run, installs again. Most of what is
# installed is never imported, so Python compiles what is when it is.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is not here: install Python 3.11, or say make setup PYTHON=/path/to/python."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## compile LeNet to int8, export it and write out/lenet/report.html
	@$(BIN)/qcompiler demo

test: setup  ## run the tests
	@$(BIN)/pytest -n 2 --dist loadfile --durations=10

thorough: setup  ## run the tests that `test` leaves out: more examples of what it shows
	@$(BIN)/pytest -n 2 --dist loadfile --durations=10 -m thorough

coverage: setup  ## run the tests and list the lines that none of them reaches; slower
	@$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered

lint: setup  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## check the types
	@$(BIN)/mypy

check: lint types test  ## all that a change must pass

format: setup  ## rewrite the files the way lint wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what was generated; .venv stays
	@rm -rf out build dist *.egg-info .coverage* coverage.xml .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
