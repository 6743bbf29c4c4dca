# Two commands: `make demo` puts a mask on screen, `make test` proves the project.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test lint types unit slow model clean

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

# The first run gives the model, two more go on from there, and what ships is the mean of the three.
# TEACHER=checkpoint: the first learns from that one too (docs/distillation.md). SET: other values for the
# recipes, e.g. SET="accumulate=16 precision=float32" where memory is short and nothing computes in bfloat16.
# CHECKPOINT, BUNDLE: other places than those of what ships, for a trial.
RECIPE := training/configs/cris_edge_s
CHECKPOINT ?= training/checkpoints/cris_edge_s.safetensors
BUNDLE ?= cris_edge/models/cris_edge_s
model: $(VENV)/.dev ## the bundle that ships, anew: make model DATA=folder (docs/model.md); goes on when stopped
	@test -d "$(DATA)" || { echo "make model DATA=folder: a data folder as docs/data.md describes it"; exit 2; }
	test -e runs/words.safetensors || $(BIN)/python -m training.words --out runs/words.safetensors \
		--config $(RECIPE).yaml $(addprefix --phrases ,$(wildcard $(DATA)/expressions.txt.gz)) data=$(DATA) $(SET)
	$(BIN)/python -m $(if $(TEACHER),quantize.distill --teacher $(TEACHER),training.train) --resume \
		--config $(RECIPE).yaml --out runs/model data=$(DATA) start_from=runs/words.safetensors $(SET)
	for seed in 1 2; do $(BIN)/python -m training.train --resume --config $(RECIPE)_further.yaml \
		--out runs/further-$$seed data=$(DATA) start_from=runs/model/best.safetensors seed=$$seed $(SET) || exit; done
	$(BIN)/python -m training.average runs/model/best.safetensors runs/further-1/best.safetensors \
		runs/further-2/best.safetensors --out runs/mean.safetensors
	$(BIN)/python -m training.compact runs/mean.safetensors --threshold 0.25 --out $(CHECKPOINT)
	$(BIN)/python -m export.build --checkpoint $(CHECKPOINT) --target onnx --precision weights8 --out $(BUNDLE)
	$(BIN)/python -m training.probe $(BUNDLE) --data $(DATA) --json probe.json

clean:
	rm -rf $(VENV) build demo.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The runtime and one engine: no torch, under a minute.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onnxruntime]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.runtime
