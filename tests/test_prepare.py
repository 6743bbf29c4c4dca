"""`training.prepare`: what it checks and tells, and the form that it writes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.refer_tree import PHOTOS, SPLITS, Tree, photo_name, write_own, write_tree
from training import prepare
from training.data.own import read_own
from training.data.prepared import PreparedReferences, SplitCounts, open_references
from training.data.refer import read_refer
from training.data.references import Reference
from training.errors import DataError

ARROW = ("photos.arrow", "references.arrow")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return write_tree(tmp_path, "refcoco")


def run(tree: Tree, *more: str) -> int:
    arguments = ["--root", str(tree.root), "--dataset", tree.dataset, "--workers", "1", *more]
    return prepare.main(arguments)


def out_of(tree: Tree) -> Path:
    return tree.root / "prepared" / tree.dataset


def listing_of(tree: Tree) -> Path:
    return tree.root / "prepared" / f"{tree.dataset}-problems.txt"


def prepared(tree: Tree) -> PreparedReferences:
    assert run(tree) == 0
    return open_references(out_of(tree))


def told(reference: Reference) -> dict[str, Any]:
    """All that a reference says, to compare by."""
    photo, target = reference.photo, reference.target
    fields = ("id", "category", "box", "area", "crowd", "weight", "has_mask", "objects")

    def tell(instance: Any) -> list[Any]:
        mask = instance.mask().tobytes() if instance.has_mask else None
        return [*(getattr(instance, name) for name in fields), mask]

    return {
        "id": reference.id,
        "sentences": reference.sentences,
        "photo": (photo.id, photo.path, photo.width, photo.height, photo.person_only),
        "instances": [tell(instance) for instance in photo.instances],
        "target": tell(target),
    }


def listed(references: list[Reference]) -> list[dict[str, Any]]:
    """Collate for loaders: what each reference says."""
    return [told(reference) for reference in references]


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


# --- what the command tells ---


def test_a_table_sets_each_split_beside_what_was_published(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tree, "--no-photo-check") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        "split  references  sentences  photos  no target  published",
        "train           6         12       2          0  differs: expected 42404",
        "val             6         12       2          0  differs: expected 3811",
        "testA           6         12       2          0  differs: expected 1975",
        "testB           6         12       2          0  differs: expected 1810",
        str(out_of(tree)),
    ]


def test_published_counts_are_recognised(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = [ref for ref in tree.refs if ref["split"] == "testB"]
    tree.refs += [pattern[i % 6] | {"ref_id": 100 + i} for i in range(1810 - 6)]
    tree.refs = [ref for ref in tree.refs if ref["split"] != "testA"]
    tree.save()
    assert run(tree, "--no-photo-check") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[4][:2] == ["testB", "1810"]
    assert lines[4][5:] == ["as", "published"]
    assert lines[3] == ["testA", "0", "0", "0", "0", "differs:", "expected", "1975"]


def test_the_generalised_set_is_counted_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path, "grefcoco")
    assert run(tree) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "train          12         24       2          2  -"
    numbers = [len(ref["sentences"]) for ref in tree.refs]
    several = sum(n for n, ref in zip(numbers, tree.refs, strict=True) if len(ref["ann_id"]) > 1)
    nothing = sum(n for n, ref in zip(numbers, tree.refs, strict=True) if ref["no_target"])
    assert lines[5:9] == [
        f"sentences in all: {sum(numbers)}, differs: expected 278232",
        f"sentences of several targets in all: {several}, differs: expected 80022",
        f"sentences that nothing fits in all: {nothing}, differs: expected 32202",
        "photos in all: 8, differs: expected 19994",
    ]


def photo_is_missing(tree: Tree) -> None:
    tree.photo(5).unlink()


def photo_is_cut(tree: Tree) -> None:
    content = tree.photo(5).read_bytes()
    tree.photo(5).write_bytes(content[: len(content) // 2])


def photo_is_text(tree: Tree) -> None:
    tree.photo(5).write_text("<html>not found</html>")


def photo_is_smaller(tree: Tree) -> None:
    cv2.imwrite(str(tree.photo(5)), np.zeros((30, 40, 3), np.uint8))


def photo_is_turned(tree: Tree) -> None:
    picture = Image.open(tree.photo(5))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tree.photo(5), exif=exif)


def image_is_unknown(tree: Tree) -> None:
    tree.images.pop(0)


def annotation_is_missing(tree: Tree) -> None:
    tree.annotations.remove(tree.annotation(51))


def annotation_is_of_another_photo(tree: Tree) -> None:
    tree.refs[1]["ann_id"] = 121


def annotation_is_a_box(tree: Tree) -> None:
    tree.annotation(51)["segmentation"] = []


def mask_is_empty(tree: Tree) -> None:
    tree.annotation(51)["segmentation"] = {"size": [60, 80], "counts": [4800]}


def nothing_is_said(tree: Tree) -> None:
    tree.refs[1]["sentences"] = [{"sent": " ", "raw": ""}]


PHOTO = photo_name(5)


@pytest.mark.parametrize(
    ("spoil", "kind", "name", "left"),
    [
        (photo_is_missing, "photos that are missing", f"{PHOTO}: 3 references", 21),
        (photo_is_cut, "photos that cannot be decoded", f"{PHOTO}: image file is truncated", 21),
        (photo_is_text, "photos that cannot be decoded", f"{PHOTO}: cannot identify", 21),
        (photo_is_smaller, "photos of another size than labelled",
         f"{PHOTO}: 40 x 30, labelled 80 x 60", 21),
        (photo_is_turned, "photos of another size than labelled",
         f"{PHOTO}: 60 x 80, labelled 80 x 60", 21),
        (image_is_unknown, "references to images that the labels lack",
         "ref 1 (train): image 5", 21),
        (annotation_is_missing, "references to annotations that their photo lacks",
         f"ref 1 (train): annotation 51 of {PHOTO}", 23),
        (annotation_is_of_another_photo, "references to annotations that their photo lacks",
         f"ref 1 (train): annotation 121 of {PHOTO}", 23),
        (annotation_is_a_box, "references to annotations without a mask",
         f"ref 1 (train): annotation 51 of {PHOTO}", 23),
        (mask_is_empty, "references to annotations whose mask is empty",
         f"ref 1 (train): annotation 51 of {PHOTO}", 23),
        (nothing_is_said, "references without a sentence", "ref 1 (train)", 23),
    ],
)  # fmt: skip
def test_each_problem_is_named_and_refused_or_left_out(
    spoil: Callable[[Tree], None],
    kind: str,
    name: str,
    left: int,
    tree: Tree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(tree)
    tree.save()
    found = 3 if spoil is image_is_unknown else 1
    assert run(tree) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"{kind}: {found}"
    assert len(lines) == 1 + found
    assert any(line.startswith(f"  {name}") for line in lines[1:])
    error = printed.err.splitlines()[-1]
    assert error.startswith(f"error: {found} problems, listed in {listing_of(tree)}")
    assert "--skip-broken" in error
    assert listing_of(tree).read_text() == printed.out
    assert not out_of(tree).exists()

    assert run(tree, "--skip-broken") == 0
    data = open_references(out_of(tree))
    kept = [reference for split in data.splits for reference in data.split(split)]
    assert len(kept) == left
    assert all(reference.target.mask().any() and reference.sentences for reference in kept)
    description = json.loads((out_of(tree) / "dataset.json").read_text())
    assert description["left_out"] == {"references": 24 - left, kind: found}


def test_sound_photos_take_the_labels_they_have_after_broken_ones(tree: Tree) -> None:
    photo_is_missing(tree)
    assert run(tree, "--skip-broken") == 0
    references = open_references(out_of(tree)).split("val")
    assert listed(list(references)) == listed(read_refer(tree.root, "refcoco").split("val"))


def test_many_problems_are_counted_and_the_first_named(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.refs += [tree.refs[0] | {"ref_id": 100 + i, "sentences": []} for i in range(23)]
    photo_is_missing(tree)
    tree.save()
    assert run(tree) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "references without a sentence: 23"
    assert lines[1:21] == [f"  ref {100 + i} (train)" for i in range(20)]
    assert lines[21:] == [
        "  … and 3 more",
        "photos that are missing: 1",
        f"  {PHOTO}: 26 references",
    ]
    written = listing_of(tree).read_text().splitlines()
    assert written[1:24] == [f"  ref {100 + i} (train)" for i in range(23)]
    assert len(written) == 26


def test_a_list_of_problems_goes_when_there_are_none_left(tree: Tree) -> None:
    content = tree.photo(5).read_bytes()
    photo_is_text(tree)
    assert run(tree) == 2
    assert listing_of(tree).is_file()
    tree.photo(5).write_bytes(content)
    assert run(tree) == 0
    assert not listing_of(tree).exists()


def test_photos_are_not_decoded_when_told_so(tree: Tree) -> None:
    photo_is_text(tree)
    assert run(tree, "--no-photo-check") == 0


def test_a_refused_run_leaves_the_older_form(tree: Tree) -> None:
    older = listed(list(prepared(tree).split("train")))
    photo_is_text(tree)
    assert run(tree) == 2
    assert listed(list(open_references(out_of(tree)).split("train"))) == older


def test_nothing_is_prepared_when_nothing_is_sound(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.images.clear()
    tree.save()
    assert run(tree, "--skip-broken") == 2
    assert "no sound reference is left of refcoco" in capsys.readouterr().err
    assert not out_of(tree).exists()


def test_other_places_for_the_photos_and_the_output(tree: Tree, tmp_path: Path) -> None:
    photos, out = tmp_path / "elsewhere", tmp_path / "deep/down/here"
    (tree.root / PHOTOS).rename(photos)
    assert run(tree, "--photos", str(photos), "--out", str(out)) == 0
    assert open_references(out).photos == photos
    assert not (tree.root / "prepared").exists()


@pytest.mark.parametrize("dataset", ["refcoco", "own"])
def test_missing_files_are_told_in_one_line(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["--root", str(tmp_path), "--dataset", dataset]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path} lacks files: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree.root / "prepared").write_text("in the way")
    assert run(tree) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("arguments", [["--dataset", "refclef"], ["--workers", "0"], []])
def test_arguments_that_cannot_be_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare.main(["--root", str(tmp_path), *arguments])
    assert ended.value.code == 2


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m training.prepare --root data --dataset refcoco" in text
    assert "docs/data.md" in text
