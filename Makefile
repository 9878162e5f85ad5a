# make demo | test | test-all | lint | docs | bench-latency | bench-kernels
# | bench-instructions | bench-accuracy | clean
#
# Everything runs in $(VENV), made on first use. Where pip's default torch is a large GPU build,
# name the index of CPU wheels: make demo TORCH_INDEX="--index-url ..."

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TORCH_INDEX ?=
FXQUANT_ASSETS ?= ../shared/assets
BENCH_LATENCY_ARGS ?=
BENCH_KERNELS_ARGS ?=
BENCH_INSTRUCTIONS_ARGS ?=
BENCH_ACCURACY_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -q
# Test workers share the cores; more threads in each would only wait for one another.
PYTEST := OMP_NUM_THREADS=1 FXQUANT_ASSETS=$(FXQUANT_ASSETS) $(PY) -m pytest -q
XDIST := -n $(JOBS) --dist worksteal

.PHONY: demo test test-all lint format docs bench-latency bench-kernels bench-instructions bench-accuracy clean
.DELETE_ON_ERROR:

demo: $(VENV)/.dev
	$(PY) examples/digits_quickstart.py

test: $(VENV)/.dev
	$(PYTEST) $(XDIST) -m "not slow and not qemu" tests

test-all: $(VENV)/.dev
	$(PYTEST) $(XDIST) tests

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(PY)

docs: $(VENV)/.dev
	$(PY) -m pdoc --docformat google --output-directory build/docs fxquant fxquant.config fxquant.inspection fxquant.numerics.ranges tvm_backend

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench-latency: $(VENV)/.bench
	$(PY) -m benchmarks.latency $(BENCH_LATENCY_ARGS)

bench-kernels: $(VENV)/.bench
	$(PY) -m benchmarks.kernels $(BENCH_KERNELS_ARGS)

bench-instructions: $(VENV)/.bench
	$(PY) -m benchmarks.instructions $(BENCH_INSTRUCTIONS_ARGS)

bench-accuracy: $(VENV)/.bench
	FXQUANT_ASSETS=$(FXQUANT_ASSETS) $(PY) -m benchmarks.accuracy $(BENCH_ACCURACY_ARGS)

# torch goes first and alone: its wheel is the one people replace by another build.
# torchvision only provides network definitions; --no-deps, since it would ask for another torch.
$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_INDEX) torch==2.13.0
	$(PIP) -c constraints.txt -e ".[tvm,dev]"
	$(PIP) --no-deps -c constraints.txt torchvision
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -c constraints.txt -e ".[tvm,dev,bench]"
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fxquant tvm_backend tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
