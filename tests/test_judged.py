"""What models are judged by: choices are made on validation splits alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cris_edge.bundle import Bundle
from quantize.calibrate import main as calibrate
from quantize.report import main as report
from tests.reference_sets import PLAIN, Told, write_scenes_set, write_set
from training.evaluate import main as evaluate

SPLITS = ("train", "train", "val", "testA")
"""Of the scenes, so that no photo is of two."""


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A prepared set with a test split, each scene of one split."""
    told: list[list[Told]] = [[(split, (2,), ("the dog",))] for split in SPLITS]
    return write_scenes_set(tmp_path, told, "parted")


def test_layers_in_int8_are_not_chosen_by_a_test_split(
    tmp_path: Path, small_bundle: Path, parted: Path
) -> None:
    out = tmp_path / "int8"
    arguments = ["--bundle", str(small_bundle), "--data", str(parted), "--samples", "2"]
    status = calibrate([*arguments, "--target", "onnx", "--out", str(out), "--force"])
    assert status == 0
    told = Bundle.open(out).about["quantization"]
    assert list(told["int8"]["scores"]) == ["parted val"]
    assert told["calibration"]["data"] == str(parted)


def test_bundles_are_compared_on_the_validation_split_unless_told(
    tmp_path: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, figures = write_set(tmp_path, PLAIN), tmp_path / "compared.json"
    arguments = [str(small_bundle), "--data", str(prepared), "--json", str(figures)]
    for splits, judged in ([], ["made val"]), (["--split", "testA"], ["made testA"]):
        assert report([*arguments, "--threads", "1", *splits]) == 0
        (told,) = json.loads(figures.read_text())["bundles"].values()
        assert list(told["scores"]) == judged
        assert f"data       {prepared}, split {judged[0].split()[1]}" in capsys.readouterr().out


def test_scenes_have_photos_of_their_own(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for judge in evaluate, report:
        assert judge([str(small_bundle), "--scenes", "1", "--photos", str(tmp_path)]) == 2
        assert "--scenes has its own" in capsys.readouterr().err
