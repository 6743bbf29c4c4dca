"""Bundles compared: the table, the JSON, the picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from export.build import Job, build
from quantize.report import main
from tests.export_models import PHOTOS
from tests.scenes import small_model, small_tokenizer
from training import checkpoint


def test_bundles_are_compared_side_by_side(
    tmp_path: Path,
    small_bundle: Path,
    sensitive_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = tmp_path / "compared.json"
    picture = tmp_path / "compared.png"
    status = main(
        [str(sensitive_bundle), str(small_bundle), "--scenes", "2", "--engine", "onnxruntime",
         "--threads", "1", "--json", str(wanted), "--picture", str(picture)]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    assert "mIoU" in printed
    assert f"{small_bundle}: masks as the first one's on" in printed
    told = json.loads(wanted.read_text())
    assert (told["data"], told["splits"], told["limit"]) == ("2 made-up scenes", ["val"], None)
    bundles = told["bundles"]
    assert list(bundles) == [str(sensitive_bundle), str(small_bundle)]
    first, second = bundles.values()
    assert first["mask_agreement"] == 1
    assert 0 <= second["mask_agreement"] < 1
    for one in bundles.values():
        times = one["milliseconds"]
        assert times["total"] == pytest.approx(
            times["photo"] + times["phrase"] + times["pair"], abs=0.01
        )
        assert one["bytes"] > 10_000
        assert 0 <= one["scores"]["scenes"]["mIoU"] <= 1
    # The plot, then a row of two tiles for each of the samples that lost most.
    drawn = cv2.imread(str(picture))
    assert drawn.shape[0] > 420 + 6 * 180
    tiles = drawn[420:].reshape(6, -1, drawn.shape[1], 3)
    for column in (0, 252):
        assert (tiles[:, :, column : column + 240].min(axis=(1, 2, 3)) < 200).all()
    assert (tiles[:, :, 504:] == 250).all()


def test_inputs_may_be_of_several_sizes(tmp_path: Path, small_bundle: Path) -> None:
    model, tokenizer = small_model(small_tokenizer()), small_tokenizer()
    checkpoint.save(tmp_path / "small.safetensors", model, tokenizer, {})
    size = 2 * model.config.input_size
    build(
        Job(tmp_path / "small.safetensors", tmp_path / "larger", photos=PHOTOS, input_size=size),
        say=lambda line: None,
    )
    wanted = tmp_path / "compared.json"
    bundles = [str(small_bundle), str(tmp_path / "larger")]
    assert main([*bundles, "--scenes", "1", "--threads", "1", "--json", str(wanted)]) == 0
    found = json.loads(wanted.read_text())["bundles"]
    assert all(found[bundle]["milliseconds"]["total"] > 0 for bundle in bundles)


def test_a_bundle_named_twice_is_refused(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small_bundle), str(small_bundle), "--scenes", "1"]) == 2
    assert "expected bundles that differ" in capsys.readouterr().err
