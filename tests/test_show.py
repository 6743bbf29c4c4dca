"""Sheets of what is trained on: photos, prepared references and made-up scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge.photo import as_photo
from tests.refer_tree import write_tree
from training.data.coco import Instance, join
from training.data.samples import Sample, load_photos
from training.data.show import LINE, LINES, TILE, main, tile
from training.prepare import main as prepare


def test_a_prepared_set_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, "grefcoco")
    assert prepare(["--root", str(tmp_path), "--dataset", "grefcoco"]) == 0
    data, out = tmp_path / "prepared" / "grefcoco", tmp_path / "sheet.png"
    command = ["--data", str(data), "--split", "testA", "--columns", "2", "--rows", "1"]
    assert main([*command, "-o", str(out)]) == 0
    assert as_photo(out).shape == (TILE + LINES * LINE, 2 * TILE, 3)
    capsys.readouterr()
    assert main(["--data", str(data), "--split", "testC", "-o", str(out)]) == 2
    assert "testC" in capsys.readouterr().err


def test_what_was_joined_has_a_colour_for_each_of_its_targets(photo_folder: Path) -> None:
    (photo,) = load_photos(photo_folder, "train")
    left, right, dog, _ = photo.instances
    size = photo.height, photo.width
    targets = [join(some, *size) for some in ([left, right], [dog, right], [])]

    def drawn(*meant: Instance) -> NDArray[np.uint8]:
        return tile([Sample(photo, one, "several", "reference", "made") for one in meant])

    shown, plain = drawn(*targets), drawn(targets[2])
    # In the middle of the left car, the right one and the dog.
    for x, y in ((28, 60), (128, 62), (78, 98)):
        place = y * TILE // photo.width, x * TILE // photo.width
        assert not np.array_equal(shown[place], plain[place])


def test_scenes_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert main(["--scenes", "--columns", "2", "--rows", "2", "-o", str(out)]) == 0
    picture = as_photo(out)
    assert picture.shape == (2 * (TILE + LINES * LINE), 2 * TILE, 3)
    assert picture.std() > 10


def test_show_draws_a_sheet(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = photo_folder / "sheet.png"
    assert main(["--data", str(photo_folder), "--split", "train", "-o", str(target)]) == 0
    assert "samples" in capsys.readouterr().out
    drawn = as_photo(target)
    assert drawn.shape[1] == 4 * TILE
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5


def test_show_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "-o", str(tmp_path / "x.png")]) == 2
    assert "instances_val.json is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
