# ModelBox: `make help` lists what there is. Everything runs in .venv, which the targets build when they need it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEPS   := $(VENV)/.dependencies
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# What the formatters and linters look at; directories that do not exist yet are left out.
SOURCES := $(wildcard modelbox tests tools bench examples)

ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## Show this help
	@echo 'usage: make <target> [PYTHON=python3.x] [ARGS="..."]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

##-- the environment

.PHONY: venv
venv: $(STAMP)  ## Build .venv from requirements/dev.txt (the other targets do it by themselves)

# Rebuilt from nothing when the lock file changes, so that it never holds a leftover.
$(DEPS): requirements/dev.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' was not found. Name a Python 3.11 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: ModelBox needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
	  echo "      Name another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make virtual environments (on Debian: apt install python3-venv)." >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMP): $(DEPS) pyproject.toml
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
