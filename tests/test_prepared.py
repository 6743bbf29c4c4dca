"""The form that `training.prepare` writes: read back, and after runs that were cut short."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from tests.preparing import listed, out_of, prepared, run
from tests.refer_tree import PHOTOS, SPLITS, Tree, write_own, write_tree
from training import prepare
from training.data.own import read_own
from training.data.prepared import SplitCounts, open_references
from training.data.refer import read_refer
from training.errors import DataError

ARROW = ("photos.arrow", "references.arrow")


# --- the prepared form ---


@pytest.mark.parametrize("dataset", list(SPLITS))
def test_the_prepared_form_equals_the_files(dataset: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, dataset)
    data, direct = prepared(tree), read_refer(tmp_path, dataset)
    assert (data.name, data.splits) == (dataset, SPLITS[dataset])
    for split in data.splits:
        references = data.split(split)
        assert listed(list(references)) == listed(direct.split(split))
        assert len(references) == len(direct.split(split))


def test_own_data_equal_their_files(tmp_path: Path) -> None:
    root = write_own(tmp_path / "mine")
    assert prepare.main(["--root", str(root), "--dataset", "own"]) == 0
    data, direct = open_references(root / "prepared/own"), read_own(root)
    assert data.splits == direct.splits == ("train", "val", "night")
    for split in data.splits:
        assert listed(list(data.split(split))) == listed(direct.split(split))


def test_more_rows_than_are_written_at_once_keep_their_order(tree: Tree) -> None:
    pattern = list(tree.refs)
    tree.refs += [pattern[i % 24] | {"ref_id": 100 + i} for i in range(2500)]
    tree.save()
    data, direct = prepared(tree), read_refer(tree.root, "refcoco")
    for split in data.splits:
        expected = [(r.id, r.photo.id, r.target.id) for r in direct.split(split)]
        assert [(r.id, r.photo.id, r.target.id) for r in data.split(split)] == expected
        assert len(expected) > 600


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_workers_read_what_one_process_reads(start: str, tree: Tree) -> None:
    references = prepared(tree).split("train")
    loader = DataLoader(
        references,  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=listed,
        multiprocessing_context=start,
    )
    expected = listed(list(references))
    assert [one for batch in loader for one in batch] == expected


def test_it_is_pickled_by_its_paths(tree: Tree) -> None:
    data = prepared(tree)
    for sent in (data, data.split("val")):
        content = pickle.dumps(sent)
        assert len(content) < 1000
        assert b"unicorn" not in content
    again = pickle.loads(pickle.dumps(data.split("val")))
    assert listed(list(again)) == listed(list(data.split("val")))


def test_a_split_is_a_sequence(tree: Tree) -> None:
    references = prepared(tree).split("testB")
    ids = [r.id for r in references]
    assert ids == [18, 19, 20, 21, 22, 23]
    assert references[-1].id == 23
    assert [r.id for r in references[1:5:2]] == [19, 21]
    assert [r.id for r in references[::-1]] == ids[::-1]
    for place in (6, -7):
        with pytest.raises(IndexError):
            references[place]


def test_references_of_one_photo_share_it(tree: Tree) -> None:
    references = prepared(tree).split("train")
    assert references[0].photo is references[2].photo
    assert references[0].photo is not references[3].photo


def test_a_whole_tree_may_move(tree: Tree) -> None:
    before = prepared(tree).split("train")[0].photo.path
    moved = tree.root.rename(tree.root.with_name("moved"))
    opened = open_references(moved / out_of(tree).relative_to(tree.root))
    found = pickle.loads(pickle.dumps(opened)).split("train")[0].photo
    assert found.path.resolve() == moved / before.relative_to(tree.root)
    assert found.read().any()


def test_photos_may_move(tree: Tree) -> None:
    data = prepared(tree)
    (tree.root / PHOTOS).rename(tree.root / "moved")
    with pytest.raises(DataError, match="its photos are not in"):
        open_references(out_of(tree))
    moved = open_references(str(out_of(tree)), str(tree.root / "moved"))
    for opened in (moved, pickle.loads(pickle.dumps(moved))):
        reference = opened.split("train")[0]
        assert reference.photo.path == tree.root / "moved" / data.split("train")[0].photo.path.name
        assert reference.photo.read().any()


def test_the_description_counts_and_names_the_sources(tree: Tree) -> None:
    data = prepared(tree)
    description = json.loads((out_of(tree) / "dataset.json").read_text())
    assert description["format"] == "cris-edge-references-1"
    assert description["rows"] == {"photos.arrow": 8, "references.arrow": 24}
    assert description["splits"]["train"] == {
        "references": 6, "sentences": 12, "photos": 2, "no_target": 0,
    }  # fmt: skip
    assert data.counts["train"] == SplitCounts(6, 12, 2, 0)
    assert list(description["sources"]) == ["refcoco/refs(unc).p", "refcoco/instances.json"]
    assert all(len(digest) == 64 for digest in description["sources"].values())
    assert description["left_out"] == {}
    assert description["photos"] == str(tree.root / PHOTOS)


def test_an_unknown_split_is_refused(tree: Tree) -> None:
    with pytest.raises(DataError, match="one of train, val, testA, testB, but is 'test'"):
        prepared(tree).split("test")


def description_says(**values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut(name: str, end: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def of_other_columns(folder: Path) -> None:
    with pa.ipc.open_file(str(folder / "photos.arrow")) as reader:
        table = reader.read_all().drop_columns(["person_only"])
    with pa.ipc.new_file(str(folder / "photos.arrow"), table.schema) as writer:
        writer.write_table(table)


def lacking_a_batch(folder: Path) -> None:
    with pa.ipc.open_file(str(folder / "references.arrow")) as reader:
        table = reader.read_all()
    with pa.ipc.new_file(str(folder / "references.arrow"), table.schema) as writer:
        writer.write_table(table.slice(0, 20))


COUNTS = {"references": 1, "sentences": 1, "photos": 1, "no_target": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda folder: (folder / "photos.arrow").unlink(), "photos.arrow: missing or damaged"),
        (cut("photos.arrow", 0), "photos.arrow: missing or damaged"),
        (cut("photos.arrow", 2000), "photos.arrow: missing or damaged"),
        (cut("photos.arrow", -1), "photos.arrow: missing or damaged"),
        (cut("references.arrow", 700), "references.arrow: missing or damaged"),
        (cut("dataset.json", 200), "should be a JSON file"),
        (description_says(format="cris-edge-references-2"), "found cris-edge-references-2"),
        (description_says(format=None), "expected the format cris-edge-references-1, found None"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "found None"),
        (description_says(rows={"photos.arrow": 8, "references.arrow": 23}), "expected 23 rows"),
        (description_says(rows={}), "not as it was written: KeyError('photos.arrow')"),
        (description_says(splits={"train": {}}), "not as it was written"),
        (description_says(splits={"train": COUNTS}), "do not add up"),
        (of_other_columns, "its columns are not those of cris-edge-references-1"),
        (lacking_a_batch, "expected 24 rows, found 20"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    change: Callable[[Path], object], words: str, tree: Tree
) -> None:
    assert run(tree) == 0
    change(out_of(tree))
    with pytest.raises(DataError) as refused:
        open_references(out_of(tree))
    assert words in str(refused.value)
    assert str(out_of(tree)) in str(refused.value)


@pytest.mark.parametrize("name", ARROW)
def test_files_of_two_runs_do_not_mix(name: str, tree: Tree) -> None:
    assert run(tree) == 0
    older = (out_of(tree) / name).read_bytes()
    assert run(tree) == 0
    assert len(older) == len((out_of(tree) / name).read_bytes())
    (out_of(tree) / name).write_bytes(older)
    with pytest.raises(DataError, match=rf"{name}: of another run than its dataset\.json"):
        open_references(out_of(tree))


# --- runs that end before their time ---


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stop as Ctrl-C does, when a file is written to its end for the n-th time."""
    left = iter(range(at - 1, -1, -1))

    def fsync(_: int) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("cris_edge.files.os.fsync", fsync)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_run_leaves_nothing(
    at: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tree.root.rglob("*"))
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        run(tree)
    assert sorted(tree.root.rglob("*")) == before


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_run_never_mixes_with_an_older_one(
    at: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = listed(list(prepared(tree).split("train")))
    tree.refs[0]["sentences"][0]["sent"] = "changed"
    tree.save()
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        run(tree)
    assert sorted(path.name for path in out_of(tree).iterdir()) == ["dataset.json", *ARROW]
    if at == 1:
        assert listed(list(open_references(out_of(tree)).split("train"))) == older
    else:
        with pytest.raises(DataError, match="of another run"):
            open_references(out_of(tree))
