# The only commands. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps
BIN := .venv/bin
SOURCES := training export backends gateway client

.PHONY: help
help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: .venv/.ready .triton/.ready ## build both environments: .venv (project), .triton (inside the server)

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "Trident needs Python 3.11; found $(PYTHON): $$($(PYTHON) --version 2>&1). Install it or run: make PYTHON=/path/to/python3.11"; exit 1; }

# --no-deps: the locks name every package, so nothing is resolved anew.
.venv/.ready: requirements.lock pyproject.toml | python
	@echo "Setting up .venv (a few minutes the first time) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP_INSTALL) -r requirements.lock
	@$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

.triton/.ready: backends/requirements.lock | python
	@echo "Setting up .triton (the server's own Python) …"
	@$(PYTHON) -m venv .triton
	@.triton/bin/python $(PIP_INSTALL) -r backends/requirements.lock
	@touch $@

.PHONY: serve
serve: setup ## a real chat model on http://127.0.0.1:8000 (ARGS="--port 9000" to change)
	@exec $(BIN)/trident serve $(ARGS)

.PHONY: train
train: setup ## train atlas from random weights and print its three scores (ten minutes)
	@exec $(BIN)/trident train atlas $(ARGS)

.PHONY: export
export: setup ## prove and install a model: make export MODEL=atlas
	@exec $(BIN)/trident export --model $(or $(MODEL),smollm2) $(ARGS)

# Two processes of one thread each: most tests are Python that waits for itself.
.PHONY: test
test: setup ## every test but those that need a GPU
	@$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
	  $(BIN)/coverage run -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not gpu" $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=90

FUZZED := gguf ggml safetensors config index torch onnx decoder retnet
SECONDS_EACH ?= 60

.PHONY: fuzz
fuzz: setup ## damage checkpoints at random, a minute for each reader (SECONDS_EACH=600 for longer)
	@for kind in $(FUZZED); do $(BIN)/python -m tests.export.fuzz $$kind $(SECONDS_EACH) || exit 1; done

.PHONY: lint
lint: setup ## ruff (lint and format) and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: bench
bench: setup ## the engine beside llama.cpp, onnxruntime-genai and transformers (half an hour; see tests/bench)
	@exec $(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-serving
bench-serving: setup ## the whole stack over HTTP beside llama.cpp's own server
	@exec $(BIN)/python -m tests.bench.serving $(ARGS)

.PHONY: bench-gateway
bench-gateway: setup ## requests a second through the gateway alone, on two cores (needs wrk)
	@exec $(BIN)/python -m tests.bench.gateway $(ARGS)

.PHONY: bench-plots
bench-plots: peers ## draw what the benches have measured, as SVG in tests/bench/results
	@exec .peers/bin/python tests/bench/plots.py

.PHONY: bench-targets
bench-targets: setup ## every target beside what the benches have measured, met or not
	@exec $(BIN)/python -m tests.bench.targets

.PHONY: bench-export
bench-export: setup ## time and memory from the packaged GGUF to a model installed and compared
	@exec $(BIN)/python -m tests.bench.export_cost $(ARGS)

.PHONY: bench-start
bench-start: setup ## seconds from `make serve` to the first token
	@exec $(BIN)/python -m tests.bench.start $(ARGS)

.PHONY: peers
peers: .peers/.ready ## build the peers' environment, .peers, for `make bench`

.peers/.ready: tests/bench/peers.lock | python
	@echo "Setting up .peers …"
	@$(PYTHON) -m venv .peers
	@.peers/bin/python $(PIP_INSTALL) -r tests/bench/peers.lock
	@touch $@

.PHONY: peers-native
peers-native: peers ## compile llama.cpp for this very processor (cmake, ninja, a quarter of an hour)
	@exec tests/bench/build_llama_cpp.sh

.PHONY: bench-position
bench-position: setup ## what a token costs early and late in a text, retention beside attention
	@exec $(BIN)/python -m tests.bench.position $(ARGS)

.PHONY: perplexity
perplexity: setup ## perplexity of the default chat model at each precision, through the engine
	@exec $(BIN)/python -m tests.bench.perplexity $(ARGS)

.PHONY: bench-experts
bench-experts: setup ## what a mixture's experts cost a token, beside a dense feed-forward of the active size
	@exec $(BIN)/python -m tests.bench.experts $(ARGS)

.PHONY: bench-prefix
bench-prefix: setup ## the first token of a second turn over a long history, remembered and read anew
	@exec $(BIN)/python -m tests.bench.prefix $(ARGS)

.PHONY: bench-sessions
bench-sessions: setup ## ten thousand parked chats: the time to go on with one, the memory of each
	@exec $(BIN)/python -m tests.bench.sessions $(ARGS)

.PHONY: bench-speculation
bench-speculation: setup ## one stream with drafts looked up in its text and without
	@exec $(BIN)/python -m tests.bench.speculation $(ARGS)

.PHONY: bench-prefill
bench-prefill: setup ## what running streams feel of a prompt of 4,096 tokens that is read beside them
	@exec $(BIN)/python -m tests.bench.prefill_beside $(ARGS)

.PHONY: soak
soak: setup ## thirty-two clients of every kind for ten minutes: no leak, no slot lost, counters add up
	@exec $(BIN)/python -m tests.bench.soak $(ARGS)

.PHONY: bench-training
bench-training: setup ## the trainer beside a plain loop, retention beside attention at 4,096 tokens
	@exec $(BIN)/python -m tests.bench.training $(ARGS)

.PHONY: systems
systems: setup ## train, prove and serve every system in small, and print a table (a quarter of an hour)
	@exec $(BIN)/python -m tests.systems $(ARGS)

.PHONY: lock
lock: ## write both lock files from the environments as they are
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	@.triton/bin/python -m pip freeze --all --exclude pip > backends/requirements.lock

.PHONY: clean
clean: ## remove what was generated (environments, models, runs)
	rm -rf .venv .triton .peers .backends model_repository/*/ training/runs
