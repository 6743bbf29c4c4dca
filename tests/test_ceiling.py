"""What a model that learnt its targets to perfection would reach."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scenes import write_folder
from training.ceiling import ceiling, main
from training.data.scene_phrases import scene_samples


def test_targets_of_what_is_covered_can_reach_more() -> None:
    samples = scene_samples(8)
    published, covered = (ceiling(samples, 192, way) for way in ("published", "covered"))
    assert 0.7 < published < covered - 0.05
    assert covered > 0.92
    # A larger input loses less.
    assert ceiling(samples, 416, "published") > published + 0.03
    assert ceiling(samples, 416, "covered") > covered


def test_the_command_prints_a_line_a_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "data")
    assert main(["--data", str(folder), "--size", "64", "96", "--first", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 samples")
    pattern = r"  (64|96) px: mIoU published +\d+\.\d  covered +\d+\.\d"
    assert len([line for line in lines if re.fullmatch(pattern, line)]) == 4
    assert main(["--data", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["--data", str(folder), "--size", "64", "50"]) == 2
    out, err = capsys.readouterr()
    assert (out, "a multiple of 32, not 50" in err) == ("", True)
