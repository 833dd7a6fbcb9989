# make run: set up, then run the embedded default.   make test: set up, then the tests.
# ARGS="objective=rkl" is passed on to either.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.PHONY: run test test-all lint clean

run: $(VENV)/installed
	$(VENV)/bin/python run.py $(ARGS)

test: $(VENV)/installed
	$(PYTEST) -n 2 --dist worksteal -m "not long" $(ARGS)

test-all: $(VENV)/installed
	$(PYTEST) -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
