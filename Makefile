# Each command makes .venv if there is none, installs what it needs into it, and runs.
#   make demo        trains a small X-CLIP on rendered videos and writes runs/demo/report
#   make test        what a change must pass: every promise, in about 6 minutes on 2 cores
#   make test-all    the same and the slow proofs; with PyTorch installed also the parity tests
#   make web         builds the page of `xclip export --to web` into the package; needs Node 20
#   make lint types docs coverage
# The newest Python that is tested; one that only pyenv knows counts, too.
PYTHON ?= $(shell for p in python3.13 "$$HOME"/.pyenv/versions/3.13.*/bin/python python3.12 python3; do \
  $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test test-all coverage lint types docs web

demo: .venv/installed
	$(BIN)/python train.py --config configs/demo.py --workdir runs/demo

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not parity'
	if $(BIN)/python -c 'import torch, transformers' 2>/dev/null; then \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m parity; fi

coverage: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov xclip_jax --cov-report term:skip-covered

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/docs
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

web:
	cd web && npm ci && npm run build

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@
