"""RefCOCO-type data sets, read from their files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.refer_tree import (
    CATEGORIES,
    FILES,
    PER_SPLIT,
    PHOTOS,
    SPLITS,
    Tree,
    compressed,
    draw,
    photo_name,
    write_tree,
)
from training.data.coco import NOTHING, read_labels
from training.data.plain_pickle import read_plain_pickle
from training.data.refer import LAYOUTS, read_refer
from training.data.references import ReferenceSet, samples_of
from training.errors import DataError

DATASETS = list(FILES)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def several(tmp_path: Path) -> Tree:
    return write_tree(tmp_path, "grefcoco")


def read(tree: Tree) -> ReferenceSet:
    return read_refer(tree.root, tree.dataset)


# --- the published layouts ---


def test_all_published_layouts_are_known() -> None:
    assert list(LAYOUTS) == DATASETS


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_split_reads_as_it_was_written(dataset: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, dataset)
    data = read(tree)
    assert data.splits == SPLITS[dataset]
    assert data.sources == (tree.references, tree.instances)
    sizes = {image["id"]: (image["height"], image["width"]) for image in tree.images}
    for split in data.splits:
        raws = [ref for ref in tree.refs if ref["split"] == split]
        references = data.split(split)
        assert len(references) == len(raws) >= 3 * PER_SPLIT
        for raw, reference in zip(raws, references, strict=True):
            assert reference.id == raw["ref_id"]
            assert reference.sentences == tuple(s["sent"] for s in raw["sentences"])
            assert reference.photo.id == raw["image_id"]
            assert reference.photo.path == tmp_path / PHOTOS / photo_name(raw["image_id"])
            assert reference.photo.read().shape[:2] == sizes[raw["image_id"]]
            ids = raw["ann_id"] if isinstance(raw["ann_id"], list) else [raw["ann_id"]]
            expected = np.zeros(sizes[raw["image_id"]], bool)
            for key in ids:
                expected |= tree.masks.get(key, np.zeros_like(expected))
            np.testing.assert_array_equal(reference.target.mask(), expected)


def test_everything_labelled_in_a_photo_is_there_beside_the_target(tree: Tree) -> None:
    photo = read(tree).split("train")[0].photo
    raws = [a for a in tree.annotations if a["image_id"] == photo.id]
    assert [i.id for i in photo.instances] == [raw["id"] for raw in raws]
    names = [CATEGORIES[raw["category_id"]] for raw in raws]
    assert [i.category for i in photo.instances] == names
    assert "unicorn" in names
    assert [i.crowd for i in photo.instances] == [False, False, False, True, False]
    assert [i.has_mask for i in photo.instances] == [True, True, True, True, False]
    x, y, width, height = raws[0]["bbox"]
    assert photo.instances[0].box == (x, y, x + width, y + height)
    assert photo.instances[0].area == raws[0]["area"]
    assert not photo.person_only


def test_a_single_target_is_the_instance_itself(tree: Tree) -> None:
    reference = read(tree).split("val")[1]
    assert reference.target is reference.photo.instances[1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_of_every_protocol_read_alike(protocol: int, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, "refcocog_umd", protocol)
    assert read_plain_pickle(tree.references) == tree.refs
    assert [len(read(tree).split(split)) for split in SPLITS["refcocog_umd"]] == [6, 6, 6]


def test_the_two_divisions_of_refcocog_share_their_instances(tmp_path: Path) -> None:
    google, umd = write_tree(tmp_path, "refcocog_google"), write_tree(tmp_path, "refcocog_umd")
    assert read(umd).splits == ("train", "val", "test")
    assert read(google).splits == ("train", "val")


def test_photos_may_lie_in_the_older_place_or_anywhere(tree: Tree) -> None:
    older = tree.root / "images/mscoco/images/train2014"
    older.parent.mkdir(parents=True)
    (tree.root / PHOTOS).rename(older)
    assert read(tree).split("train")[0].photo.path.parent == older
    elsewhere = older.rename(tree.root / "elsewhere")
    data = read_refer(tree.root, tree.dataset, elsewhere)
    assert data.split("train")[0].photo.path.parent == elsewhere


def test_sentences_are_stripped_and_what_was_typed_stands_in(tree: Tree) -> None:
    tree.refs[0]["sentences"] = [
        {"sent": "  left cup \n", "raw": "Left cup!", "sent_id": 0, "tokens": []},
        {"sent": " ", "raw": " ???", "sent_id": 1, "tokens": []},
        {"raw": "The café", "sent_id": 2, "tokens": []},
        {"sent": "", "raw": "", "sent_id": 3, "tokens": []},
    ]
    tree.save()
    assert read(tree).split("train")[0].sentences == ("left cup", "???", "The café")


def test_samples_take_the_first_sentence_or_all(tree: Tree) -> None:
    references = read(tree).split("train")
    first = samples_of(references, "refcoco train", "first")
    every = samples_of(references, "refcoco train", "all")
    assert [s.text for s in first] == [r.sentences[0] for r in references]
    assert [s.text for s in every] == [text for r in references for text in r.sentences]
    assert len(every) > len(first)


# --- several targets and none ---


def test_several_targets_are_joined(several: Tree) -> None:
    reference = read(several).split("train")[5]
    assert several.refs[5]["ann_id"] == [52, 51, 50]
    assert reference.target.objects == 3
    assert reference.target.category == "fire hydrant and person and unicorn"
    union = several.masks[50] | several.masks[51] | several.masks[52]
    np.testing.assert_array_equal(reference.target.mask(), union)


def test_nothing_fits_where_there_is_no_target(several: Tree) -> None:
    reference = read(several).split("train")[4]
    assert several.refs[4]["ann_id"] == [-1]
    assert (reference.target.objects, reference.target.category) == (0, NOTHING)
    assert reference.target.mask().shape == (reference.photo.height, reference.photo.width)
    assert not reference.target.mask().any()


def test_the_generalised_set_may_be_a_pickle(several: Tree) -> None:
    pickled = several.references.with_suffix(".p")
    pickled.write_bytes(pickle.dumps(several.refs, 2))
    several.references.unlink()
    data = read(several)
    assert data.sources[0] == pickled
    assert [r.target.objects for r in data.split("val")] == [1, 1, 1, 2, 0, 3] * 2


def test_targets_named_twice_count_once(several: Tree) -> None:
    several.refs[3]["ann_id"] = [50, 52, 50]
    several.save()
    assert read(several).split("train")[3].target.objects == 2


def test_a_target_where_there_should_be_none_is_refused(several: Tree) -> None:
    several.refs[4]["no_target"] = False
    several.save()
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json: entry 4: no_target is False"):
        read(several)


# --- files that are missing or not as published ---


def test_everything_missing_is_named_at_once_with_where_it_is_had(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_refer(tmp_path, "refcoco+")
    for part in (
        "refcoco+/refs(unc).p",
        "refcoco+/instances.json",
        "https://github.com/lichengunc/refer",
        PHOTOS,
        "http://images.cocodataset.org/zips/train2014.zip",
    ):
        assert part in str(refused.value)
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json.*https://github.com/henghuiding/gRef"):
        read_refer(tmp_path, "grefcoco")


def test_what_is_there_is_not_called_missing(tree: Tree) -> None:
    tree.instances.unlink()
    with pytest.raises(DataError) as refused:
        read(tree)
    assert "instances.json" in str(refused.value)
    assert "refs(unc).p" not in str(refused.value)
    assert "train2014" not in str(refused.value)


def test_unknown_sets_and_splits_are_refused(tree: Tree) -> None:
    with pytest.raises(DataError, match=r"one of refcoco, refcoco\+.* is 'refclef'"):
        read_refer(tree.root, "refclef")
    with pytest.raises(DataError, match="one of train, val, testA, testB, but is 'test'"):
        read(tree).split("test")


def lacks(key: str) -> Callable[[Tree], object]:
    return lambda tree: tree.refs[3].pop(key)


def has(**values: Any) -> Callable[[Tree], object]:
    return lambda tree: tree.refs[3].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacks("ref_id"), "entry 3 lacks 'ref_id'"),
        (lacks("ann_id"), "entry 3 lacks 'ann_id'"),
        (lacks("image_id"), "entry 3 lacks 'image_id'"),
        (lacks("split"), "entry 3 lacks 'split'"),
        (lacks("sentences"), "entry 3 lacks 'sentences'"),
        (has(ann_id="12"), "entry 3: expected a whole number, found '12'"),
        (has(ref_id=True), "entry 3: expected a whole number, found True"),
        (has(split=None), "entry 3: expected text, found None"),
        (has(sentences=["left"]), "entry 3: expected a dictionary with a sentence, found 'left'"),
        (has(sentences=[{"sent_id": 1}]), "entry 3: expected a dictionary with a sentence"),
        (has(sentences=7), "entry 3: 'int' object is not iterable"),
        (lambda tree: tree.refs.insert(2, 5), "entry 2: expected a dictionary, found int"),
    ],
)
def test_entries_that_are_not_as_published_are_refused(
    change: Callable[[Tree], object], words: str, tree: Tree
) -> None:
    change(tree)
    tree.save()
    with pytest.raises(DataError) as refused:
        read(tree)
    assert words in str(refused.value)
    assert str(tree.references) in str(refused.value)


def test_a_file_of_another_kind_is_refused(tree: Tree) -> None:
    tree.references.write_bytes(pickle.dumps({"refs": tree.refs}, 2))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: expected a list, found dict"):
        read(tree)
    tree.save()
    tree.instances.write_text('{"images": []}')
    with pytest.raises(DataError, match=r"instances\.json should be in COCO's instance format"):
        read(tree)


def test_a_reference_that_leads_nowhere_is_refused_when_it_is_asked_for(tree: Tree) -> None:
    tree.refs[0]["image_id"] = 999
    tree.refs[6]["ann_id"] = 54
    tree.refs[12]["ann_id"] = 777
    tree.save()
    data = read(tree)
    with pytest.raises(DataError, match=r"ref 0 \(train\): the labels have no image 999"):
        data.split("train")
    for split, key in (("val", 54), ("testA", 777)):
        with pytest.raises(
            DataError, match=rf"\({split}\): .* has no annotation {key} with a mask"
        ):
            data.split(split)
    assert len(data.split("testB")) == 6


# --- masks ---


@given(st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_run_lengths_of_any_mask_are_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    pixels = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    mask = np.array(data.draw(pixels)).reshape(height, width)
    folder = tmp_path_factory.getbasetemp() / "runs"
    (photo,) = labels(folder, (width, height), compressed(mask))
    np.testing.assert_array_equal(photo.instances[0].mask(), mask)


def labels(folder: Path, size: tuple[int, int], segmentation: Any) -> list[Any]:
    """The photos of a label file with one annotation."""
    folder.mkdir(exist_ok=True)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "annotations": [annotation | {"segmentation": segmentation}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return read_labels(folder / "instances.json", folder)


@pytest.mark.parametrize(
    "counts", [[3, 4], [3, 400], [20, -5, 5], [], "", "zzzz", compressed(draw((5, 5)))["counts"]]
)
def test_run_lengths_that_do_not_cover_the_photo_are_refused(counts: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotation 1: its RLE should cover 20 pixels"):
        labels(tmp_path, (5, 4), {"size": [4, 5], "counts": counts})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("é", "should be in COCO's instance format"),
        (5, "should be in COCO's instance format"),
        (["many"], "annotation 1: its RLE counts are not whole numbers"),
        ([9.5, 10.5], "annotation 1: its RLE counts are not whole numbers"),
    ],
)
def test_run_lengths_that_are_none_are_refused(counts: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        labels(tmp_path, (5, 4), {"size": [4, 5], "counts": counts})
