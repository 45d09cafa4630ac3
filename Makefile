# The commands of a working copy. Needs only make and a Python of 3.11 or later; `make` alone lists the targets.
#
#   make serve ARGS="--port 9000"      arguments go to `deltaway serve`
#   make test ARGS="-k sse -x"         arguments go to pytest
#   make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --require-hashes
# The project itself, without network: the build tools come from a lock too.
INSTALL_SELF := $(PIP) install --quiet --no-deps --no-build-isolation --editable .
# The clients of Postgres and Redis are small: a working copy has them at hand.
SERVICES := --extra postgres --extra redis
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help serve test lint types check bench lock clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## run the gateway on 127.0.0.1:8080
	@exec $(BIN)/deltaway serve $(ARGS)

test: $(VENV)/.develop ## run the tests
	@exec $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.develop ## look for faults and for unformatted code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.develop ## check the types
	$(BIN)/mypy

check: lint types test ## all three

bench: $(VENV)/.develop ## measure the cost per request and per delta
	@exec $(BIN)/python -m benchmarks $(ARGS)

lock: ## pin the dependencies anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	$(LOCK) --upgrade $(SERVICES) pyproject.toml --output-file requirements.lock
	$(LOCK) --upgrade $(SERVICES) --extra dev --constraints requirements.lock pyproject.toml --output-file requirements-dev.lock
	printf 'hatchling\neditables\n' | $(LOCK) --constraints requirements-dev.lock - --output-file requirements-build.lock

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find router providers plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Deltaway needs Python 3.11 or later; \`$(PYTHON)\` is missing or older." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "\`$(PYTHON) -m venv\` failed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# What is installed is as old as its stamp: a changed lock installs again.
$(VENV)/.serve: requirements.lock requirements-build.lock pyproject.toml | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV) …"
	@$(INSTALL) -r requirements.lock -r requirements-build.lock
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/.develop: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing the pinned development dependencies into $(VENV) …"
	@$(INSTALL) -r requirements-dev.lock
	@$(INSTALL_SELF)
	@touch $@ $(VENV)/.serve
