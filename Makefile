# make demo: build a small index and search it.   make test: run the tests.
# make gpu-check: on a machine with a GPU, check all that needs one; at most 8 minutes.
# make engines: get what the tests of Lucene, Elasticsearch and the page need; without it they are skipped.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# For what is large: its modules are compiled when they are imported first, which most never are.
PIP_LARGE := $(PIP) install --no-compile -c constraints.txt
MADE := $(VENV)/.made
TORCH := $(VENV)/.torch
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
PYSERINI := $(VENV)/.pyserini

# So that pip's and the tools' output stays readable when it goes to a file.
export PIP_PROGRESS_BAR := off

.PHONY: demo test lint engines pyserini gpu-check clean
.DEFAULT_GOAL := demo

demo: $(BASE)
	$(BIN)/lexvla demo

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

engines: $(DEV)
	scripts/get_engines.sh

pyserini: $(PYSERINI)

gpu-check: $(DEV)
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@command -v $(PYTHON) > /dev/null || { \
	  echo "LexVLA needs Python 3.11 or newer, and there is no $(PYTHON) here." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "LexVLA needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made. On Debian: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@touch $@

# For development alone. First and apart: it is the largest by far, and a change of our own files must
# not fetch it again.
$(TORCH): constraints.txt | $(MADE)
	@echo "Installing torch into $(VENV) (large: some minutes the first time) ..."
	@$(PIP_LARGE) torch
	@touch $@

$(BASE): pyproject.toml constraints.txt | $(MADE)
	@echo "Installing LexVLA into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e '.[serve]'
	@touch $@

$(DEV): pyproject.toml $(TORCH)
	@echo "Installing LexVLA with its development tools into $(VENV) ..."
	@$(PIP_LARGE) -e '.[dev]'
	@touch $(BASE) $@

# After torch and the rest: it must replace none of them.
$(PYSERINI): pyproject.toml constraints.txt $(TORCH)
	@echo "Installing Pyserini into $(VENV) (large) ..."
	@$(PIP_LARGE) -e '.[pyserini]'
	@touch $@
