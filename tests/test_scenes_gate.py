"""The gate: a student trained on the made-up world still listens, whatever was changed.

What distillation, INT8 and export keep of a model is measured on these scenes; docs/training.md has
the command that made the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.build import Job, build
from tests.export_models import PHOTOS
from training import checkpoint
from training.evaluate import evaluate
from training.predictor import open_segmenter
from training.report import Part
from training.selection import SceneData

CHECKPOINT = Path(__file__).parent / "data" / "scenes_s.safetensors"
SCENES = 100


@pytest.fixture(scope="module")
def part() -> Part:
    segmenter = open_segmenter(CHECKPOINT)
    return evaluate(segmenter, SceneData(SCENES), baselines=True, progress=False)[0]


def test_it_finds_what_is_meant_on_scenes_never_seen(part: Part) -> None:
    scores = part.evaluation.scores
    assert scores.count == 4 * SCENES
    assert scores.miou >= 0.8


def test_it_listens(part: Part) -> None:
    assert part.baselines is not None
    assert part.baselines.shuffled.miou < 0.35


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [("onnx", "float16"), ("openvino", "float32"), ("jetson", "fp16")]
)
def test_exports_keep_it(tmp_path: Path, part: Part, target: str, precision: str) -> None:
    bundle = tmp_path / "bundle"
    build(Job(CHECKPOINT, bundle, target, precision, PHOTOS), say=lambda line: None)
    kept = evaluate(open_segmenter(bundle), SceneData(SCENES), progress=False)[0].evaluation.scores
    assert abs(kept.miou - part.evaluation.scores.miou) <= 0.002


def test_the_checkpoint_is_small_and_of_another_world() -> None:
    assert CHECKPOINT.stat().st_size <= 10_000_000
    kept = checkpoint.load(CHECKPOINT)
    recipe = json.loads(kept.metadata["recipe"])
    assert (recipe["kind"], kept.model.config.name) == ("scenes", "cris_edge_s")
