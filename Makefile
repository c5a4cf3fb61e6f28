# Two commands: `make demo` (train, record, report, open the app) and `make test`. Both set up everything they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8501
BIN := .venv/bin
# One more than two cores have: the one that drives the browser waits most of its time.
WORKERS ?= 3
# A module's tests stay in one process, which shares what the module made; slow modules start first (tests/conftest.py).
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder
# Tests start many processes; without files of bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
# Bytecode of packages is written when they are first imported: most of what is installed never is.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# uv links what it has unpacked before, in seconds; where it cannot, pip installs.
UV := set -a; . .venv/uv.env; $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt

.PHONY: demo test quick check format docs dist setup-browser clean-demo

demo: .venv/installed  ## train a memory model here, record it, write its report and map, open the app
	$(BIN)/memscope demo --port $(PORT)

test: .venv/installed-dev setup-browser  ## run all tests
	$(PYTEST)

quick: WORKERS = 2
quick: .venv/installed-dev  ## run the tests that take no seconds; with `make check` this is for daily work
	$(PYTEST) -m "not slow and not browser"

check: .venv/installed-dev  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs  ## write the pages and pictures that are made from the code and other pages; build the site
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/memory_figure.py
	$(BIN)/python docs/build_site.py

dist: .venv/installed-dev  ## build the sdist, and the wheel from it
	$(BIN)/python -m build --no-isolation

clean-demo:  ## forget the demo's run, recording and report
	rm -rf runs/demo recordings/demo recordings/demo-steps reports/demo

# --- set-up -----------------------------------------------------------------------------------------------------------
# torch first and alone: it is the large one, and an index of CPU wheels given by PIP_EXTRA_INDEX_URL then decides it.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "memscope needs Python 3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# What pip was told in its files and by its variables, which come last and win, in the words of uv, which reads neither.
.venv/uv.env: | .venv/bin/python
	-$(PIP) uv
	{ echo UV_INDEX_STRATEGY=unsafe-best-match; $(BIN)/pip config list | sort -r | sed -nE \
	  -e 's/\\n/ /g; s/^[^=]+\.index-url=/UV_DEFAULT_INDEX=/p; s/^[^=]+\.extra-index-url=/UV_EXTRA_INDEX_URL=/p' \
	  -e 's/^[^=]+\.cert=/SSL_CERT_FILE=/p; s/^[^=]+\.find-links=/UV_FIND_LINKS=/; /^UV_FIND/{s/ /,/g; p}'; } > $@

.venv/installed-torch: constraints.txt .venv/uv.env
	($(UV) torch) || $(PIP) torch
	touch $@

.venv/installed: pyproject.toml .venv/installed-torch
	($(UV) -e .) || $(PIP) -e .
	touch $@

.venv/installed-dev: pyproject.toml .venv/installed-torch
	($(UV) -e '.[dev]') || $(PIP) -e '.[dev]'
	touch $@

.venv/installed-docs: pyproject.toml .venv/installed-torch
	($(UV) -e '.[docs]') || $(PIP) -e '.[docs]'
	touch $@

setup-browser:
	@command -v chromium > /dev/null || $$([ "$$(id -u)" = 0 ] || echo sudo -n) sh -c 'apt-get -qq update && apt-get -qq install -y chromium' > /dev/null 2>&1 \
	  || echo "Chromium is missing and cannot be installed here: browser tests will be skipped" >&2
