# Works on a machine with Python 3.11+, make and git; everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# `make PYTHON=/path/to/python3.12 test` chooses one; else the first of these that is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)

# Tests export models with torch. It is installed first and by itself, so that a build without CUDA is taken wherever pip
# is offered one (2.13.0+cpu counts as newer than 2.13.0). Any requirement or wheel will do, with options of pip:
# `make TORCH="torch==2.13.0 --index-url URL" test`; empty leaves the choice to the ranges in pyproject.toml.
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## compile a real OCR recogniser to an INT8 engine and read held-out lines with it
	$(BIN)/python -m demo.run

# Tests run in random order; a worker that is done takes over what another has not begun. Each stays on one processor
# (tests/conftest.py) with one thread for linear algebra: more would only wait for each other.
test: $(STAMP) ## run the tests, a worker per processor; ARGS="-k name -x" goes to pytest, ARGS="-n 0" runs them in one
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal $(ARGS)

check: $(STAMP) ## formatting, linting, types, directions of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and what was built; downloads in .cache stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last: an installation that was interrupted is done again.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "qcompiler needs Python 3.11 or newer: install it, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11 or does not run: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) has no venv or ensurepip: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
