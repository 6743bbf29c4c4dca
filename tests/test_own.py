"""Photos and expressions of one's own, read from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refer_tree import OWN_SPLITS, SENTENCES, draw, own_box, write_own
from training.data.own import read_own
from training.errors import DataError


def test_own_data_have_any_splits_names_and_categories(tmp_path: Path) -> None:
    data = read_own(write_own(tmp_path))
    assert data.splits == ("train", "val", "night")
    for split in OWN_SPLITS:
        references = data.split(split)
        assert [r.id for r in references] == list(range(6))
        assert [r.target.objects for r in references] == [1, 2, 0] * 2
        assert references[0].sentences == SENTENCES[:2]
        assert references[0].target.category == "forklift"
        assert references[1].target.category == "forklift and pallet"
        for image, group in ((1, references[:3]), (2, references[3:])):
            photo = group[0].photo
            assert photo.path == tmp_path / f"photos/pf_{split}_{image}.jpg"
            assert photo.person_only == (image == 2)
            size = photo.read().shape[1::-1]
            one, two = (draw(size, own_box(split, image, key)) for key in (1, 2))
            for reference, mask in zip(group, (one, one | two, one & False), strict=True):
                np.testing.assert_array_equal(reference.target.mask(), mask)
        assert references[4].target.weight == 0.7


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image_id": 1, "expressions": ["a"]}, "either annotation_id or annotation_ids"),
        ({"image_id": 1, "annotation_id": 3, "annotation_ids": [3], "expressions": []}, "either"),
        ({"image_id": 1, "annotation_ids": 3, "expressions": ["a"]}, "annotation_ids to be a list"),
        ({"image_id": 1, "annotation_id": 3, "expressions": "a"}, "a list of expressions"),
        ({"image_id": 1, "annotation_id": 3, "expressions": [4]}, "expected text, found 4"),
        ({"image_id": "1", "annotation_id": 3, "expressions": ["a"]}, "a whole number, found '1'"),
        ({"annotation_id": 3, "expressions": ["a"]}, "entry 1 lacks 'image_id'"),
        ({"image_id": 1, "annotation_id": 3}, "entry 1 lacks 'expressions'"),
        ({"image_id": 1, "annotation_id": 2**63, "expressions": ["a"]}, "number of 64 bits"),
        ({"image_id": 1, "annotation_id": 3, "expressions": ["dog \ud83d"]}, "surrogates"),
        ("left", "entry 1: expected a dictionary, found str"),
    ],
)
def test_own_expressions_that_cannot_be_are_refused(entry: Any, words: str, tmp_path: Path) -> None:
    good = {"image_id": 1, "annotation_id": 3, "expressions": ["a"]}
    path = write_own(tmp_path) / "expressions_written_val.json"
    path.write_text(json.dumps([good, entry]))
    with pytest.raises(DataError) as refused:
        read_own(tmp_path)
    assert words in str(refused.value)
    assert f"{path}: entry 1" in str(refused.value)


def test_missing_parts_of_own_data_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_own(tmp_path)
    for part in (
        "instances_SPLIT.json",
        "expressions_written_SPLIT.json",
        "photos",
        "docs/data.md",
    ):
        assert part in str(refused.value)
