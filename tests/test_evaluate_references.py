"""Evaluation of prepared reference sets: sentences, splits, categories, and targets that are none
or many."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import Segmenter
from tests.refer_tree import write_tree
from tests.reference_sets import GENERAL, PLAIN, SCENES, obedient_segmenter, write_set
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.data.coco import Instance, Photo
from training.data.samples import Sample
from training.errors import DataError
from training.evaluate import evaluate, main
from training.evaluation import evaluate_samples
from training.groups import category_name, group_names
from training.prepare import prepare
from training.report import Part
from training.selection import Data, open_data, select


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return open_data(write_set(tmp_path_factory.mktemp("plain"), PLAIN))


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return open_data(write_set(tmp_path_factory.mktemp("general"), GENERAL))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return obedient_segmenter()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("run") / "small.safetensors", small_tokenizer()
    checkpoint.save(path, small_model(tokenizer), tokenizer, {})
    return path


def phrases(part: Part) -> list[str]:
    return [record.phrase for record in part.evaluation.records]


# --- splits and sentences ---


def test_the_first_sentence_counts_on_val_and_all_on_other_splits(
    segmenter: Segmenter, plain: Data
) -> None:
    val, test = evaluate(segmenter, plain, progress=False)
    assert [val.source, test.source] == ["made val", "made testA"]
    assert phrases(val) == ["car on the left", "the dog"] * SCENES
    assert phrases(test) == ["right car", "blue car"] * SCENES
    assert val.selection.title == "made val, the first sentence of each reference"
    assert test.selection.title == "made testA, all sentences of each reference"
    assert {record.sample.source for record in val.evaluation.records} == {"made val"}


@pytest.mark.parametrize(("sentences", "counts"), [("first", [2, 1]), ("all", [5, 2])])
def test_sentences_can_be_chosen(sentences: Any, counts: list[int], plain: Data) -> None:
    found = select(plain, ["val", "testA"], sentences)
    assert [len(selection.samples) for selection in found] == [SCENES * n for n in counts]
    assert {selection.sentences for selection in found} == {sentences}


def test_splits_can_be_chosen_and_train_is_one_of_them(plain: Data) -> None:
    assert plain.splits == ("train", "val", "testA")
    assert [s.split for s in select(plain)] == ["val", "testA"]
    assert [s.split for s in select(plain, ["testA", "train", "testA"])] == ["testA", "train"]
    assert [s.split for s in select(plain, ["all"])] == ["train", "val", "testA"]
    (limited,) = select(plain, ["testA"], limit=3)
    assert [s.text for s in limited.samples] == ["right car", "right car", "blue car"]
    assert len({s.photo.path for s in limited.samples}) == 3


def test_what_the_set_has_not_is_refused(plain: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split testB, night; the data have train, val, testA"):
        select(plain, ["testB", "val", "night"])
    only_train = open_data(write_set(tmp_path, PLAIN[:1]))
    with pytest.raises(DataError, match="no split to evaluate; the data have train"):
        select(only_train)


# --- groups and categories ---


def test_every_category_is_reported_by_its_count(segmenter: Segmenter, plain: Data) -> None:
    (part,) = evaluate(segmenter, plain, ["val"], sentences="all", progress=False)
    assert {name: s.count for name, s in part.categories.items()} == {"car": 12, "dog": 8}
    for category, scores in part.categories.items():
        ious = [
            record.iou
            for record in part.evaluation.records
            if record.sample.instance.category == category
        ]
        assert scores.miou == pytest.approx(np.mean(ious))
    # A whole photo shares the object's share of it, and an empty mask nothing.
    assert part.categories["dog"].precision == (0, 0, 0, 0, 0)
    assert 0 < part.categories["car"].miou < part.evaluation.records[0].truth_share * 1.1


def test_groups_of_objects_appear_where_they_tell_something(
    segmenter: Segmenter, plain: Data, general: Data
) -> None:
    (part,) = evaluate(segmenter, general, sentences="all", progress=False)
    counts = {name: scores.count for name, scores in part.evaluation.groups.items()}
    assert list(counts)[:4] == ["all", "objects: one", "objects: several", "objects: none"]
    assert list(counts.values())[:4] == [24, 4, 12, 8]
    # What fits nothing has neither size nor company.
    assert "area < 3 %" not in counts
    assert counts["area >= 3 %"] == counts["not a person"] == 16
    assert counts["rival present"] + counts["no rival"] == 16
    assert not any(name.startswith("kind") for name in counts)
    categories = {name: scores.count for name, scores in part.categories.items()}
    assert categories == {"car": 8, "nothing": 8, "dog": 4, "several categories": 4}
    (usual,) = evaluate(segmenter, plain, ["val"], progress=False)
    assert not any(name.startswith("objects") for name in usual.evaluation.groups)


def instance(category: str, objects: int = 1, of: Collection[str] = ()) -> Instance:
    box = (0.0, 0.0, 1.0, 1.0)
    return Instance(-1, category, box, 1.0, objects=objects, categories=frozenset(of))


def reference(target: Instance, *others: Instance, text: str = "it") -> Sample:
    photo = Photo(1, Path("1.jpg"), 10, 10, False, others)
    return Sample(photo, target, text, "reference", "made val")


@pytest.mark.parametrize(
    ("target", "others", "names"),
    [
        (instance("person", 2), ["person", "person"], ["objects: several", "person", "no rival"]),
        (instance("person", 2), ["person"] * 3, ["objects: several", "person", "rival present"]),
        # Neither people nor no people.
        (instance("dog and person", 2, {"dog", "person"}), ["person", "dog"],
         ["objects: several", "no rival"]),
        (instance("cat and dog", 3, {"cat", "dog"}), ["dog"] * 3 + ["cat"],
         ["objects: several", "not a person", "rival present"]),
        (instance("nothing", 0), ["person"], ["objects: none"]),
        # One thing, not two of different kinds.
        (instance("bow and arrow"), ["arrow"], ["objects: one", "not a person", "no rival"]),
    ],
)  # fmt: skip
def test_groups_of_targets_of_any_number(
    target: Instance, others: list[str], names: list[str]
) -> None:
    if target.objects:
        others = others if target.objects > 1 else [target.category, *others]
        names = [names[0], "area >= 3 %", "area 3 to 10 %", *names[1:]]
    sample = reference(target, *map(instance, others))
    assert group_names(sample, 0.05) == ["all", *names]


def test_a_table_has_one_row_for_all_mixed_targets() -> None:
    assert category_name(instance("dog and person", 2, {"dog", "person"})) == "several categories"
    assert category_name(instance("person", 3)) == "person"
    assert category_name(instance("bow and arrow")) == "bow and arrow"
    assert category_name(instance("nothing", 0)) == "nothing"


# --- expressions that fit nothing ---


def test_expressions_that_fit_nothing_are_judged_by_the_rules_of_gres(
    segmenter: Segmenter, general: Data
) -> None:
    (part,) = evaluate(segmenter, general, sentences="all", progress=False)
    scores = part.evaluation.gres
    assert scores is not None
    # Of two sentences that fit nothing the segmenter refuses one; it takes the whole photo else.
    assert (scores.count, scores.targetless, scores.n_acc, scores.t_acc) == (24, 8, 0.5, 1)
    records = part.evaluation.records
    true = [r for r in records if r.sample.instance.objects]
    pixels = sum(r.sample.photo.width * r.sample.photo.height for r in records)
    refused = sum(r.sample.photo.width * r.sample.photo.height for r in records if not r.predicted)
    assert scores.giou == pytest.approx((sum(r.truth_share for r in true) + 4) / 24)
    truth = sum(int(r.sample.instance.mask().sum()) for r in true)
    assert scores.ciou == pytest.approx(truth / (pixels - refused))


def test_a_usual_set_has_no_such_figures(segmenter: Segmenter, plain: Data) -> None:
    assert all(p.evaluation.gres is None for p in evaluate(segmenter, plain, progress=False))


# --- baselines ---


def test_baselines_of_a_set_that_can_be_trained_on(segmenter: Segmenter, plain: Data) -> None:
    (part,) = evaluate(segmenter, plain, ["testA"], baselines=True, progress=False)
    assert part.baselines is not None
    rows = part.baselines.rows()
    assert {s.count for s in rows.values()} == {len(part.evaluation.records)}
    assert "empty mask" not in rows
    # Those who learned where left cars are do not find the right ones.
    assert rows["ellipse, best on training split"].miou < 0.2
    assert rows["ellipse, best on these samples"].miou > 0.5


def test_baselines_without_a_training_split_and_with_empty_targets(
    segmenter: Segmenter, general: Data
) -> None:
    (part,) = evaluate(segmenter, general, baselines=True, progress=False)
    assert part.baselines is not None
    rows = part.baselines.rows()
    assert list(rows) == [
        "ellipse, best on these samples", "model, shuffled phrases", "whole photo", "empty mask",
    ]  # fmt: skip
    # A quarter of the first sentences fit nothing: blind silence is right that often.
    assert rows["empty mask"].miou == 0.25
    assert rows["empty mask"].oiou == 0
    assert part.baselines.better >= 0.25


# --- the command ---


def test_the_command_reports_a_prepared_grefcoco(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "data", "grefcoco")
    folder = tmp_path / "prepared"
    prepare(tmp_path / "data", "grefcoco", folder)
    options = ["--json", f"{tmp_path / 'r.json'}", "--sheet", f"{tmp_path / 's.png'}"]
    assert main([str(saved), "--data", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "split val, testA, testB" in printed
    assert "grefcoco val, the first sentence of each reference: 12 samples on 2 photos" in printed
    titles = ("By category", "unicorn", "several categories", "objects: none")
    for words in (*titles, "N-acc  T-acc   gIoU   cIoU", "N-acc      share of samples"):
        assert words in printed
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["splits"] == ["val", "testA", "testB"]
    assert list(content["expressions"]) == ["grefcoco val", "grefcoco testA", "grefcoco testB"]
    for part in content["expressions"].values():
        check_samples(part)
        assert (tmp_path / f"s-grefcoco-{part['split']}.png").stat().st_size > 10_000
    assert content["expressions"]["grefcoco val"]["sentences"] == "first"
    assert content["expressions"]["grefcoco testA"]["sentences"] == "all"


def check_samples(part: dict[str, Any]) -> None:
    """The figures of a part follow from its samples."""
    samples = part["samples"]
    assert part["groups"]["all"]["count"] == len(samples)
    assert sum(scores["count"] for scores in part["categories"].values()) == len(samples)
    targetless = [sample for sample in samples if not sample["objects"]]
    assert part["gres"]["targetless"] == len(targetless) > 0
    right = sum(sample["predicted"] <= 50 for sample in targetless)
    assert part["gres"]["N-acc"] == right / len(targetless)
    assert all(sample["category"] == "nothing" for sample in targetless)


def test_photos_that_were_moved_can_be_told(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path, PLAIN)
    (tmp_path / "data" / "photos").rename(tmp_path / "elsewhere")
    command = [str(saved), "--data", str(folder), "--split", "testA", "--sentences", "first"]
    assert main(command) == 2
    assert "its photos are not in" in capsys.readouterr().err
    assert main([*command, "--photos", str(tmp_path / "elsewhere")]) == 0
    assert "made testA, the first sentence of each reference: 4" in capsys.readouterr().out


def test_a_photo_that_is_missing_is_named(segmenter: Segmenter, tmp_path: Path) -> None:
    data = open_data(write_set(tmp_path, PLAIN))
    (tmp_path / "data" / "photos" / "scene_2.png").unlink()
    (selection,) = select(data, ["val"])
    with pytest.raises(DataError, match=r"scene_2.png should be a picture"):
        evaluate_samples(segmenter, selection.samples, progress=False)


def test_a_damaged_set_is_refused_in_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path, PLAIN)
    (folder / "dataset.json").write_text('{"format": "of another time"}')
    assert main([str(saved), "--data", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "expected the format cris-edge-references-1" in error
