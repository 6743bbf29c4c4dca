"""`training.prepare`: what it checks and tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.preparing import listed, listing_of, out_of, prepared, run
from tests.refer_tree import PHOTOS, Tree, photo_name, write_tree
from training import prepare
from training.data.prepared import open_references
from training.data.refer import read_refer


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


def photo_is_beyond_the_runtime(tree: Tree) -> None:
    cv2.imwrite(str(tree.photo(5)), np.zeros((60, 8200, 3), np.uint8))
    for image in tree.images:
        if image["id"] == 5:
            image["width"] = 8200
    for annotation in tree.annotations:
        if annotation["image_id"] == 5:
            annotation["segmentation"] = [[10, 10, 40, 10, 40, 40]]


def a_space_is_said(tree: Tree) -> None:
    tree.refs[1]["sentences"] = [{"sent": "&nbsp;", "raw": ""}]


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
        (photo_is_beyond_the_runtime, "photos whose sides are not 8 to 8192 pixels",
         f"{PHOTO}: 8200 x 60", 21),
        (nothing_is_said, "references without a sentence", "ref 1 (train)", 23),
        (a_space_is_said, "references without a sentence", "ref 1 (train)", 23),
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
