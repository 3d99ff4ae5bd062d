# ModelBox: `make help` lists what there is. Everything runs in .venv, which the targets build when they need it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEPS   := $(VENV)/.dependencies
STAMP  := $(VENV)/.installed
TRAIN  := $(VENV)/.training
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# What the formatters and linters look at, as far as there is code in it.
SOURCES := $(foreach dir,modelbox tests tools bench examples,$(if $(shell find $(dir) -name '*.py' 2>/dev/null),$(dir)))

# Handed on to the program that a target runs: make serve ARGS="--port 9000", make test ARGS="-k cache -x".
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## Show this help
	@echo 'usage: make <target> [PYTHON=python3.x] [ARGS="..."]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

##-- running

.PHONY: demo serve bench bench-peers
demo: $(STAMP)  ## Watch it work: a server, a client, and a model that changes under load
	$(BIN)/python -m examples.demo $(ARGS)

serve: $(STAMP)  ## Start the server here (data in ./modelbox-data)
	$(BIN)/python -m modelbox.runtime $(ARGS)

bench: $(STAMP)  ## Measure speed against the floors of this machine
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(STAMP)  ## Measure other model servers beside the sidecar (installs them below bench/peers/.venv)
	$(BIN)/python -m bench.peers $(ARGS)

##-- checking

.PHONY: test check fmt docs
test: check $(TRAIN)  ## Everything that CI runs: the checks, then all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(STAMP)  ## Lint, format, types, directions of imports, generated code
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-logo --cache-dir .import_linter_cache
	@$(MAKE) --no-print-directory proto-check sync-check

fmt: $(STAMP)  ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(STAMP) $(TRAIN)  ## Run every snippet of README and docs, and look for what is undocumented
	$(BIN)/python -m pytest tests/docs $(ARGS)

# Minutes of `make soak`.
MINUTES ?= 60

.PHONY: soak
soak: $(STAMP)  ## Half a sidecar under load, half everything at once, while things break (MINUTES=60, ARGS="--seed 7")
	$(BIN)/python -m tools.soak --minutes $(MINUTES) $(ARGS)

.PHONY: reliability
reliability: $(STAMP)  ## Make docs/reliability.md of the fault tests (ARGS=--run measures its figures anew)
	$(BIN)/python -m tools.reliability $(ARGS)

.PHONY: prove-image
prove-image: $(STAMP)  ## Build the container images and run them, without a Docker engine (as root; see docs/deploying.md)
	$(BIN)/python -m tools.prove_image $(ARGS)

##-- generated files

.PHONY: proto proto-check sync sync-check lock
proto: $(STAMP)  ## Regenerate modelbox/_proto from protos/
	$(BIN)/python tools/generate_protos.py

proto-check: $(STAMP)  ## Fail if modelbox/_proto is not what protos/ gives
	$(BIN)/python tools/generate_protos.py --check

sync: $(STAMP)  ## Regenerate the blocking client from modelbox/client
	$(BIN)/python tools/generate_sync.py

sync-check: $(STAMP)  ## Fail if the blocking client is not what modelbox/client gives
	$(BIN)/python tools/generate_sync.py --check

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --custom-compile-command "make lock"

lock: $(STAMP)  ## Resolve dev.txt and the images' locks in requirements/ again (ARGS="--upgrade" for newer releases)
	$(COMPILE) $(ARGS) requirements/dev.in -o requirements/dev.txt
	@# What the container images install has the versions of dev.txt, which are those that the tests ran with.
	$(COMPILE) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	$(COMPILE) -c requirements/dev.txt --extra sidecar --extra images --extra signing pyproject.toml -o requirements/sidecar.txt
	$(COMPILE) -c requirements/dev.txt --extra server --extra postgres --extra mysql --extra s3 pyproject.toml -o requirements/server.txt
	$(COMPILE) -c requirements/dev.txt --extra otel pyproject.toml requirements/example.in -o requirements/example.txt
	$(BIN)/python -m tools.lock_training $(ARGS)

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

# The libraries that train models: only the tests and the tutorials need them. What both files pin, both pin alike.
$(TRAIN): requirements/training.txt $(DEPS)
	$(PIP) -r requirements/training.txt
	@touch $@

$(STAMP): $(DEPS) pyproject.toml
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

.PHONY: clean
clean:  ## Remove what was built or cached, .venv included
	rm -rf $(VENV) bench/peers/.venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
