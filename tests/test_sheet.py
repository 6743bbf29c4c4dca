"""Sheets of overlays: which samples they show, and that they show them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.reference_sets import GENERAL, SCENES, obedient_segmenter, write_set
from tests.scenes import small_model, small_tokenizer, write_folder
from training.data.samples import load_samples
from training.evaluation import Evaluation, evaluate_samples
from training.predictor import torch_segmenter
from training.selection import open_data, select
from training.sheet import draw_sheet, random_records, worst_records


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    data = write_folder(tmp_path_factory.mktemp("scenes") / "data")
    tokenizer = small_tokenizer()
    segmenter = torch_segmenter(small_model(tokenizer), tokenizer, threshold=0.5)
    return evaluate_samples(segmenter, load_samples(data, "val"), progress=False)


@pytest.fixture(scope="module")
def of_general(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Of expressions some of which fit nothing; half of those get the whole photo."""
    data = open_data(write_set(tmp_path_factory.mktemp("set"), GENERAL))
    (selection,) = select(data, sentences="all")
    return evaluate_samples(obedient_segmenter(), selection.samples, progress=False)


def test_the_worst_come_first_from_different_photos(evaluation: Evaluation) -> None:
    worst = worst_records(evaluation.records, 3)
    assert worst[0].iou == min(record.iou for record in evaluation.records)
    assert [r.iou for r in worst] == sorted(r.iou for r in worst)
    assert len({record.sample.photo.path for record in worst}) == 3


def test_a_random_choice_repeats_by_its_seed(evaluation: Evaluation) -> None:
    first = random_records(evaluation.records, 5, seed=1)
    assert first == random_records(evaluation.records, 5, seed=1)
    assert first != random_records(evaluation.records, 5, seed=2)
    assert len(set(first)) == 5


def test_a_sheet_is_a_picture_that_shows_photos(tmp_path: Path, evaluation: Evaluation) -> None:
    path = tmp_path / "made" / "sheet.png"
    draw_sheet(path, evaluation, count=3)
    sheet = cv2.imread(str(path))
    assert sheet is not None
    height, width = sheet.shape[:2]
    assert width > 1000
    assert height > 500
    assert np.any(np.all(sheet == (90, 90, 90), axis=2)), "the scenes' background is seen"
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_mask_where_nothing_fits_is_among_the_worst(of_general: Evaluation) -> None:
    worst = worst_records(of_general.records, 8)
    assert [(r.phrase, r.iou) for r in worst] == [("a red kite", 0.0)] * SCENES
    # Nothing but the size of the mask that should not be tells them apart.
    assert {record.coverage for record in worst} == {1.0}
    small = [r for r in of_general.records if r.phrase != "a red kite"]
    assert all(r.iou > 0 for r in worst_records(small, 8))


def test_a_sheet_shows_expressions_that_fit_nothing(tmp_path: Path, of_general: Evaluation) -> None:
    records = [r for r in of_general.records if not r.sample.instance.objects]
    draw_sheet(tmp_path / "none.png", Evaluation(tuple(records)), count=4)
    sheet = cv2.imread(str(tmp_path / "none.png"))
    assert sheet is not None
    # Half the photo and half the tint where a mask should not be.
    tinted = np.uint8(0.5 * np.array((90, 90, 90)) + 0.5 * np.array((0, 110, 255)))
    assert np.count_nonzero(np.all(sheet == tinted, axis=2)) > 100_000
    # The photo as it is where nothing was predicted, and rightly so.
    assert np.count_nonzero(np.all(sheet == (90, 90, 90), axis=2)) > 50_000
