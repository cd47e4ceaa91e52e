# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most tests that take long wait for other processes.
JOBS ?= $(shell echo $$((2 * $$(nproc 2>/dev/null || echo 2))))
PIP := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: demo test check lint types suite wheel pytest-suite openapi bench bench-short clean

demo: $(VENV)/.ready
	@$(BIN)/python docs/examples/demo.py

test: check wheel pytest-suite suite

# setup.cfg and constraints.txt decide what is installed; the stamp is as new as they are.
$(VENV)/.ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --config-settings editable_mode=compat --editable '.[test,dev]' 2>$(VENV)/setup.log || { cat $(VENV)/setup.log >&2; exit 1; }
	@touch $@

check: lint types

lint: $(VENV)/.ready
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }

types: $(VENV)/.ready
	@$(BIN)/mypy --no-error-summary helix_revdial twisted tests benchmarks docs/examples/demo.py

suite: $(VENV)/.ready
	@$(BIN)/python -m tests.suite $(JOBS)

# pytest-twisted cannot share a process with trial: a suite and a process of its own.
pytest-suite: $(VENV)/.ready
	@$(BIN)/python -m pytest --quiet --no-header tests/pytest

# What is shipped is the wheel: it must offer both plugins in an environment of its own.
wheel: $(VENV)/.ready
	@$(BIN)/python -m tests.wheel

# The API's description as callers have it; what would break them is refused and named.
openapi: $(VENV)/.ready
	@$(BIN)/python -m tests.contract.document $(ACCEPT)

# This project beside haproxy, ssh and others; see docs/performance.md.
bench: $(VENV)/.ready
	@$(BIN)/python -m benchmarks --agents 1000 --streams 500 $(BENCH)

# Half a minute: bulk and its cost against haproxy; fails where a third of the baseline is lost, three times.
bench-short: $(VENV)/.ready
	@$(BIN)/python -m benchmarks --short

clean:
	@rm -rf $(VENV) build dist demo _trial_temp* .mypy_cache .ruff_cache .hypothesis *.egg-info
