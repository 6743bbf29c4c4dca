# Two commands: `make demo` puts a mask on screen, `make test` proves the project.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test lint types unit slow clean

demo: $(VENV)/.runtime ## a mask and an overlay picture (demo.png) of a photo in the repo
	$(BIN)/cris-edge predict samples/photos/000000360452.jpg "the boy on the right" -o demo.png

test: lint types unit ## lint, types, tests

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(PYTEST)

slow: $(VENV)/.dev ## the tests that take minutes
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) demo.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The runtime and one engine: no torch, under a minute.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onnxruntime]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.runtime
