# Everything a person or a machine does with this repository.  `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# A distribution builds its Python with profile-guided optimisation; one that a version manager has built without
# that needs a quarter more processor time.  So the distribution's own is taken where it is able; PYTHON= overrules.
DISTRIBUTION_PYTHON := /usr/bin/python3
PYTHON ?= $(shell $(DISTRIBUTION_PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $(DISTRIBUTION_PYTHON) || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# what the caller may set
JOBS ?= auto
SEEDS ?= 1000
SIMULATOR ?= sim
SECONDS ?= 60
FAILOVER ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Tests that only compute share the cores, and so do those that mostly wait, for processes and deadlines, two at
# a time; the rest, which holds bounds of time or memory against a clock, comes after them, alone.
COMPUTING := $(wildcard tests/core tests/wire tests/testing tests/sim tests/fuzz tests/storage tests/cli tests/nbd \
	tests/test_*.py)
WAITING := tests/benchmarks tests/guest tests/io tests/node $(wildcard $(foreach name,crash_points databases \
	demonstration disk_faults filesystems lab_disk lab_form lab_grow lab_network lab_overlay lab_point lost_host \
	programs scrub sick_start truths, tests/e2e/test_$(name).py))

# pip must not ask, nor tell of newer releases of itself; -qq below leaves its errors
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# the tests start many hundreds of processes, and each of them would compile all of the modules anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install tools demo test computing waiting acting lint types sim failure-table fuzz fuzz-one bench clean

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r name text; do \
		printf '  %-13s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## make .venv with everything in it; .venv/bin/pairsync is the command
	@:

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "pairsync: needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
		echo "          Say which one to take: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) tools/system.py venv
	@echo "pairsync: making $(VENV) (Python $$($(PYTHON) -c 'import platform; print(platform.python_version())'))"
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --editable . --group dev
	@touch $@

tools: ## install the Debian packages that tests and benchmarks use (as root; else list them)
	@$(PYTHON) tools/system.py tools --strict

demo: install ## the main job, on real input: a disk on two hosts, one of them killed and brought back
	@$(PYTHON) tools/system.py tools demo
	@$(BIN)/pairsync demo

test: install ## everything that decides whether a change is good: lint, types, the whole suite
	@$(PYTHON) tools/system.py tools
	@status=0; $(MAKE) --keep-going --jobs 3 --output-sync=target lint types computing || status=$$?; \
		$(MAKE) --keep-going waiting acting; exit $$status

computing: install
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS) $(COMPUTING)

waiting: install
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS) $(WAITING)

acting: install
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(COMPUTING:%=--ignore=%) $(WAITING:%=--ignore=%)

lint: install ## style, format, and which room may import which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo

types: install ## mypy, strict
	@$(BIN)/mypy

sim: install ## SEEDS=N: that many seeds of a simulator; SIMULATOR=sim, grantsim or shellsim
	@$(BIN)/python -m pairsync.testing.$(SIMULATOR) --seeds $(SEEDS)

failure-table: install ## every failure and every two in turn, with real processes, as root with real cables; FAILOVER=S
	@$(BIN)/python -m pairsync.testing.failuretable --failover $(FAILOVER)

fuzz: install ## SECONDS=N: coverage-guided fuzzing of every decoder, that long each
	@$(BIN)/python tests/fuzz/run_fuzz.py all --seconds $(SECONDS)

fuzz-one: install ## TARGET=name INPUT=file: replay one input of the fuzzer
	@$(BIN)/python tests/fuzz/run_fuzz.py one '$(TARGET)' '$(INPUT)'

bench: install ## speed and memory, with rivals in the same run; BENCH_ARGS=--help for more
	@$(PYTHON) tools/system.py tools
	@$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

clean: ## remove what the other targets made (not the Debian packages)
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .fuzz-corpus
	@find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
