# Everything runs in .venv, which `setup` makes; nothing is installed outside of it.
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"   on a machine without a GPU: saves 4 GB
PYTHON ?= python3
PIP_ARGS ?=
# Two for whole runs, and two that have the unit tests while those wait: see tests/conftest.py.
TEST_WORKERS ?= 4
BIN := .venv/bin
INSTALLED := .venv/.installed
CORE_INSTALLED := .venv/.installed-core
BENCH_INSTALLED := .venv/.installed-bench
AXOLOTL_INSTALLED := .venv-axolotl/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint exam bench bench-axolotl lab clean

help:
	@echo "make setup   install into .venv (again only after pyproject.toml or constraints.txt changed)"
	@echo "make demo    fine-tune a tiny model as two nodes on this machine"
	@echo "make test    whole runs on several ranks, one of each kind, and the unit tests"
	@echo "make test-all   the same, and the further whole runs of each kind (marked thorough)"
	@echo "make exam    allranks doctor on graded logs: how many it names rightly (EXAM_ARGS=--wrong: which it does not)"
	@echo "make lint    format, style, types, floors"
	@echo "make bench   speed beside a bare loop, Trainer and TRL; what each step of it is worth; memory of the loss"
	@echo "make bench-axolotl   speed beside axolotl, which it installs into .venv-axolotl (4.3 GB)"
	@echo "make lab     a shell on node0 of a cluster in this machine (NODES=3 LAB_ARGS='--slurm --pbs --ray'); needs root"
	@echo "make clean   remove what builds and tests left, .venv too"

setup: $(INSTALLED)

# pip compiles what it has installed on one core; compileall does it on all, and ours too, which else each of the tests'
# processes would at their start. Half of the files are tests of libraries, and models and parts of Ray that nobody
# imports here; some are no Python.
SELDOM_IMPORTED := /(tests?|transformers/models|torch/testing|ray/(dashboard|llm|rllib|serve))/
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM_IMPORTED)' .venv/lib src || true
	touch $@ $(CORE_INSTALLED)

# What training needs, without the extras and tools of development.
$(CORE_INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[bench]"
	touch $@

# With the environment on PATH: what the demo prints can be typed again after `. .venv/bin/activate`.
demo: $(CORE_INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/allranks demo
	@echo "To type these commands yourself: . .venv/bin/activate"

test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m "not thorough" $(PYTEST_ARGS)

test-all: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src/allranks
	$(BIN)/lint-imports
	@twice=$$(find tests/unit -name 'test_*.py' | sed 's:.*/::' | sort | uniq -d); \
	test -z "$$twice" || { echo "two test files of one name, of which pytest reads one: $$twice"; exit 1; }

exam: setup
	$(BIN)/python -m tests.exam.score $(EXAM_ARGS)

bench: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.cpu $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.loss_memory

# axolotl fixes versions of its own of nearly everything: it gets an environment to itself (4.3 GB).
$(AXOLOTL_INSTALLED):
	test -x .venv-axolotl/bin/python || $(PYTHON) -m venv .venv-axolotl
	.venv-axolotl/bin/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	.venv-axolotl/bin/python -m pip install --quiet $(PIP_ARGS) axolotl==0.19.0 torch==2.13.0
	touch $@

bench-axolotl: $(INSTALLED) $(AXOLOTL_INSTALLED)
	$(BIN)/python -m benchmarks.axolotl $(BENCH_ARGS)

lab: setup
	$(BIN)/python -m tests.cluster.lab --nodes $(or $(NODES),3) $(LAB_ARGS)

clean:
	rm -rf .venv .venv-axolotl .mypy_cache .ruff_cache .pytest_cache .import_linter_cache allranks-demo* last_run_prepared model-out dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
