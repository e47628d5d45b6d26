# Everything a newcomer or a CI machine calls. Needs make and Python 3.11 or newer; the rest is installed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# What is installed: the relay alone, which is all that `make run` waits for, or its tools too.
RUNTIME := $(VENV)/runtime
STAMP := $(VENV)/installed
# The first of these that runs and is new enough; `make PYTHON=/path/to/python3.12 …` decides otherwise.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
# Root installs Debian packages; so does who may sudo without a password. Others get a word instead.
export DEBIAN_FRONTEND := noninteractive
# Where it is set, as in many containers, each process compiles every source anew: half of what a start takes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Make .venv with the relay and its tools in it

$(STAMP): WHAT := the relay and its tools
$(STAMP): NEEDS := .[dev]
$(RUNTIME): WHAT := the relay
$(RUNTIME): NEEDS := .[imap]

$(STAMP) $(RUNTIME): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "relay needs Python 3.11 or newer, and found none: apt-get install python3 python3-venv" >&2; exit 1; }
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "relay needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || tests/service/install-programs python3-venv || \
		{ echo "$(PYTHON) cannot make a virtual environment: sudo apt-get install python3-venv" >&2; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "making $(VENV) with $$("$(PYTHON)" -V)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "installing $(WHAT) into $(VENV)"
	@# pip also warns of what does no harm, such as an index location that is missing: shown only if it fails.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e '$(NEEDS)' >$(VENV)/pip.txt 2>&1 || \
		{ cat $(VENV)/pip.txt >&2; exit 1; }
	@# With the tools the relay is installed too; not the other way round.
	@touch $(RUNTIME) $@

.PHONY: run
run: $(RUNTIME) ## Start the relay: with /etc/relay/relay.yaml if there is one, else a demonstration on 127.0.0.1:2525
	@# `relay serve` chooses; here it is only told, for a newcomer expects the demonstration.
	@found=$$($(BIN)/python -c 'import os; from relay.config.places import config_file; print(config_file(os.environ))'); \
		if [ -e "$$found" ]; then echo "running with $$found; RELAY_CONFIG names another one"; fi
	@exec $(BIN)/relay serve

# Most tests wait for something: two for each processor; those of a file one after the other. One after the other: `JOBS=0`.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? 2 * n : 8)))

.PHONY: test
test: install programs ## Run all tests, some at once (JOBS=4); installs the programs that they drive, where it may
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: programs
programs:
	@tests/service/install-programs || echo "some programs are missing: the tests that drive them are skipped"

.PHONY: check
check: install ## Format, lint, types, and the order of the rooms
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . ; echo "make fmt mends this"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; exit 1; }
	@echo "check: format, lint, types and import order are good"

.PHONY: fmt
fmt: install ## Format, and mend what can be mended
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: bench
bench: install programs ## Speed, latency and memory side by side with Postfix, 10 minutes; PEERS="postfix haraka exim" ROUNDS=3 COUNT=3000 MODES="kept10 auth"
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e '.[bench]' >$(VENV)/pip.txt 2>&1 || true
	@$(BIN)/python -m benchmarks.bench

.PHONY: storm
storm: install ## kill -9, restarts, power cuts, flipped bytes, fuzzing, lines without end, large among small: half an hour; STORM_KILLS=50 STORM_CUTS=200 STORM_SEEDS=20
	@STORM_KILLS=$${STORM_KILLS:-50} STORM_MAILS=$${STORM_MAILS:-20000} STORM_CUTS=$${STORM_CUTS:-200} \
		STORM_SEEDS=$${STORM_SEEDS:-20} STORM_STOPS=$${STORM_STOPS:-20} STORM_FLIPS=$${STORM_FLIPS:-500} STORM_INPUTS=$${STORM_INPUTS:-1000000} \
		STORM_LINE_MB=$${STORM_LINE_MB:-1024} STORM_CROWD=$${STORM_CROWD:-1000000} STORM_LARGE=$${STORM_LARGE:-100} STORM_OUTBOX=$${STORM_OUTBOX:-100} STORM_SHOW=1 \
		$(BIN)/pytest -s -m storm
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input atheris >/dev/null 2>&1 || true
	@! $(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python tests/fuzz/guided.py -runs=$${STORM_GUIDED:-100000}

.PHONY: dist
dist: install ## Wheel and source archive in dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >$(VENV)/build.txt 2>&1 || { cat $(VENV)/build.txt; exit 1; }
	@ls -l dist

.PHONY: clean
clean: ## Remove what the above made
	@rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache benchmarks/out tests/service/node/node_modules
