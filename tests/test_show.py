"""Sheets of what is trained on: prepared references and made-up scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cris_edge.photo import as_photo
from tests.refer_tree import write_tree
from training.data.show import LINE, LINES, TILE, main
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


def test_scenes_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert main(["--scenes", "--columns", "2", "--rows", "2", "-o", str(out)]) == 0
    picture = as_photo(out)
    assert picture.shape == (2 * (TILE + LINES * LINE), 2 * TILE, 3)
    assert picture.std() > 10
