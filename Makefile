# make run: set up, then run the embedded default.   make test: set up, then the tests, without the long ones, which are
# make test-long; make test-all is both.   ARGS="objective=rkl" is passed on to any of them.
# .ci/run: lint, run and test, with empty HOME and caches.   .ci/full: test-long.
# make docs: write docs/objectives.md and docs/methods.md anew from docstrings and conf.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.PHONY: run test test-long test-all parity lint docs clean

run: $(VENV)/installed
	$(VENV)/bin/python run.py $(ARGS)

test: $(VENV)/installed
	$(PYTEST) -n 2 --dist worksteal -m "not long" $(ARGS)

test-long: $(VENV)/installed
	$(PYTEST) -n 2 --dist worksteal -m long $(ARGS)

test-all: $(VENV)/installed
	$(PYTEST) -n 2 --dist worksteal $(ARGS)

# Beside other libraries. Liger asks for triton, which a CPU's torch has none of: its chunked losses do without.
parity: $(VENV)/parity
	$(PYTEST) tests/parity $(ARGS)

$(VENV)/parity: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0 trl==1.16.0
	$(VENV)/bin/python -m pip install --quiet --no-deps liger-kernel==0.8.5
	touch $@

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed
	$(VENV)/bin/python -m kd.composition.reference

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
