# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell for each in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCATION ?=
SEED ?= 1
SEEDS ?= 10
KILLS ?= 1000
TASKS ?= 10000
ATTEMPTS ?= 1000000
TRANSPORT ?= unix
EVENTS ?= 1000000
CLIENTS ?= 2000
WEATHER ?= mixed

.PHONY: demo test kills tasks simulate simulate-tasks bench lint types docs tox clean

# The stamp is written last: an install that failed must not look done.
$(READY): pyproject.toml uv.lock plugins/zeromq/pyproject.toml plugins/redis/pyproject.toml plugins/nng/pyproject.toml
	@test -n "$(PYTHON)" || { echo "no CPython >= 3.11 found: install one, or run: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv sync --quiet --active --inexact --frozen --all-extras --group dev
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python docs/examples/checksums.py $(LOCATION)

test: $(READY)
	@$(BIN)/pytest -n 3 --dist worksteal

kills: $(READY)
	@DOORMAN_KILLS=$(KILLS) DOORMAN_SEED=$(SEED) REMIT_TRANSPORTS=$(TRANSPORT) $(BIN)/pytest tests/doorman/test_kills.py

# TRANSPORT may be several, separated by commas; for kills as well.
tasks: $(READY)
	@DOORMAN_TASKS=$(TASKS) REMIT_TRANSPORTS=$(TRANSPORT) $(BIN)/pytest --durations=0 tests/doorman/test_scale.py

simulate: $(READY)
	@PYTHONPATH=tests/simulation $(BIN)/python -m engine.simulator --seed $(SEED) --seeds $(SEEDS) --events $(EVENTS) --clients $(CLIENTS) --weather $(WEATHER)

simulate-tasks: $(READY)
	@PYTHONPATH=tests/simulation $(BIN)/python -m tasks.simulator --seed $(SEED) --attempts $(ATTEMPTS)

bench: $(READY)
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv sync --quiet --active --inexact --frozen --all-extras --group dev --group bench
	@cd tests && PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=.:support ../$(BIN)/python -m bench $(if $(ONLY),"$(ONLY)") $(if $(WRITE),--write)

lint: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(READY)
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html

tox: $(READY)
	@$(BIN)/tox run --skip-missing-interpreters true

clean:
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build build dist
