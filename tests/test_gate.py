"""The accuracy gate: what a student learnt of the made-up world survives on its way to a device.

`tests/data/scenes_s.safetensors` is `cris_edge_s`, trained by `training/configs/scenes.yaml`: see
docs/training.md. Its scenes are none that it was trained on, over photos that it never saw.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cris_edge import Segmenter
from export.build import main as build
from training.baselines import shuffled_phrases
from training.data.samples import Sample
from training.data.scenes import scene_samples
from training.evaluation import evaluate_pairs, evaluate_samples
from training.metrics import Scores
from training.predictor import open_segmenter

CHECKPOINT = Path(__file__).parent / "data" / "scenes_s.safetensors"
SCENES = 40
LEAST, SHUFFLED = 0.80, 0.35
LOSS = 0.002
"""mIoU that an export in float16 may cost."""


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return scene_samples(SCENES)


@pytest.fixture(scope="module")
def reached(samples: list[Sample]) -> Scores:
    """What the checkpoint itself reaches."""
    return score(open_segmenter(CHECKPOINT), samples)


def score(segmenter: Segmenter, samples: list[Sample]) -> Scores:
    return evaluate_samples(segmenter, samples, progress=False).scores


def test_the_checkpoint_is_small() -> None:
    assert CHECKPOINT.stat().st_size <= 10e6


def test_it_does_what_phrases_say(reached: Scores) -> None:
    assert reached.miou >= LEAST


def test_it_listens(samples: list[Sample]) -> None:
    others = zip(samples, shuffled_phrases(samples), strict=True)
    records = evaluate_pairs(open_segmenter(CHECKPOINT), list(others), progress=False)
    assert Scores.of(record.overlap for record in records).miou < SHUFFLED


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_bundles_keep_it(
    target: str, samples: list[Sample], reached: Scores, tmp_path: Path
) -> None:
    out = tmp_path / target
    arguments = ["--checkpoint", str(CHECKPOINT), "--target", target, "--precision", "float16"]
    assert build([*arguments, "--out", str(out)]) == 0
    assert score(Segmenter(out), samples).miou >= reached.miou - LOSS
