"""Places that no file can be written to are refused before any work, not after hours of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import quantize.report
import quantize.students
import samples.benchmark
import training.average
import training.compact
import training.convert
import training.data.show
import training.evaluate
import training.probe
import training.words

Main = Callable[[list[str]], int]
COMMANDS: dict[str, tuple[Main, list[str]]] = {
    "training.evaluate": (training.evaluate.main, ["x", "--scenes", "1", "--json"]),
    "training.probe": (training.probe.main, ["x", "--data", "x", "--json"]),
    "training.average": (training.average.main, ["x", "y", "--out"]),
    "training.compact": (training.compact.main, ["x", "--out"]),
    "training.convert": (training.convert.main, ["x", "--word-len", "17", "--out"]),
    "training.words": (training.words.main, ["--config", "x", "--out"]),
    "quantize.report": (quantize.report.main, ["x", "--scenes", "1", "--json"]),
    "quantize.students": (quantize.students.main, ["--json"]),
    "samples.benchmark": (samples.benchmark.main, ["--json"]),
}
PICTURES: dict[str, tuple[Main, list[str]]] = {
    "training.evaluate": (training.evaluate.main, ["x", "--scenes", "1", "--sheet"]),
    "training.probe": (training.probe.main, ["x", "--data", "x", "--sheet"]),
    "training.data.show": (training.data.show.main, ["--scenes", "--output"]),
    "quantize.report": (quantize.report.main, ["x", "--scenes", "1", "--picture"]),
}


def refusal(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with status 2 at once."""
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_is_no_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments = COMMANDS[name]
    said = refusal(main, [*arguments, str(tmp_path)], capsys)
    assert f"{tmp_path}: expected a file to write, this is a folder" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_is_no_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments = COMMANDS[name]
    (tmp_path / "notes").write_text("mine")
    said = refusal(main, [*arguments, str(tmp_path / "notes" / "new" / "file")], capsys)
    assert f"{tmp_path / 'notes'} is a file, not a folder; choose another place" in said
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_a_format(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments = PICTURES[name]
    said = refusal(main, [*arguments, str(tmp_path / "sheet.txt")], capsys)
    assert "no image format for '.txt'; use .png or .jpg" in said
    assert not list(tmp_path.iterdir())
