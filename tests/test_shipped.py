"""The model that ships: small, whole, telling of itself, and right on photos it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.cli import main
from cris_edge.segmenter import SHIPPED
from training import checkpoint
from training.data.nouns import CATEGORIES
from training.predictor import torch_segmenter

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "samples" / "photos"
CHECKPOINT = ROOT / "training" / "checkpoints" / "cris_edge_s.safetensors"
ENGINES = ("onnxruntime", "openvino")
Box = tuple[int, int, int, int]
# COCO's boxes (x1, y1, x2, y2), of photos of the validation split.
SEEN: list[tuple[str, str, Box]] = [
    ("000000360452.jpg", "the boy on the right", (324, 139, 429, 310)),
    ("000000360452.jpg", "man on the left", (77, 110, 140, 275)),
    ("000000000599.jpg", "cat", (1, 30, 331, 323)),
]


@pytest.fixture(scope="module", params=ENGINES)
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return Segmenter(engine=request.param)


def box_iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def test_it_is_small_and_says_what_it_is() -> None:
    bundle = Bundle.open(SHIPPED)
    assert bundle.name == "cris_edge_s"
    assert bundle.size < 10e6
    about = bundle.about
    assert about["licence"] == "Apache-2.0"
    assert "photos" in about["training_data"]
    assert about["accuracy"]["split"] == "val"
    for engine in about["verification"]["engines"]:
        assert engine["logits"] <= 1e-3
        assert engine["masks_mean"] >= 0.995


@pytest.mark.parametrize(("photo", "phrase", "box"), SEEN)
def test_it_finds_what_the_phrase_means(
    segmenter: Segmenter, photo: str, phrase: str, box: Box
) -> None:
    found = segmenter.predict(PHOTOS / photo, phrase)
    assert found.box is not None
    assert box_iou(found.box, box) > 0.5
    assert found.score > 0.5


def test_it_is_the_checkpoint_that_lies_beside_the_code(segmenter: Segmenter) -> None:
    kept = checkpoint.load(CHECKPOINT)
    assert kept.threshold == segmenter.threshold
    source = torch_segmenter(kept.model, kept.tokenizer, kept.threshold)
    for photo, phrase, _ in SEEN:
        one, other = (s.predict(PHOTOS / photo, phrase).mask for s in (segmenter, source))
        assert (one & other).sum() / (one | other).sum() > 0.97


# Just below docs/model.md's threshold of the score, which most phrases that fit nothing miss.
FITS = 0.633
# Strict, so that a model that has learnt it is told so.
WRONGLY_FOUND = pytest.param(
    "white airplane",
    marks=pytest.mark.xfail(strict=True, reason="scores 0.67: docs/model.md, where it fails"),
)


@pytest.mark.parametrize("phrase", [WRONGLY_FOUND, "the pizza", "red umbrella"])
def test_it_tells_what_fits_nothing(segmenter: Segmenter, phrase: str) -> None:
    assert segmenter.predict(PHOTOS / "000000000599.jpg", phrase).score < 0.56


def test_no_other_category_is_found_beside_the_boy(segmenter: Segmenter) -> None:
    shown = {"person", "car", "sports ball", "baseball bat", "baseball glove"}
    phrases = [f"the {name}" for name in CATEGORIES if name not in shown]
    found = segmenter.predict(PHOTOS / "000000360452.jpg", phrases)
    assert [one.phrase for one in found if one.score >= FITS] == []


@pytest.mark.parametrize("phrase", ["people", "person"])
def test_what_does_not_say_which_means_all(segmenter: Segmenter, phrase: str) -> None:
    each = ["the boy on the right", "man on the left"]
    everybody, *ones = segmenter.predict(PHOTOS / "000000360452.jpg", [phrase, *each])
    for one in ones:
        assert (everybody.mask & one.mask).sum() > 0.7 * one.mask.sum()


def test_engines_agree() -> None:
    phrases = [phrase for photo, phrase, _ in SEEN if photo == SEEN[0][0]]
    first, second = (
        Segmenter(engine=name).predict(PHOTOS / SEEN[0][0], phrases) for name in ENGINES
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-3)


def test_check_predicts_with_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for engine in ENGINES:
        (line,) = [line for line in lines if line.startswith(f"  {engine}:")]
        assert "runs cris_edge_s (weights8) in" in line
