"""Checkpoints in 8 bits: small, near the weights, and read like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantize.job import Job, calibrate
from tests.scenes import sensitive_model, small_model, small_tokenizer
from training import checkpoint
from training.compact import main
from training.predictor import open_segmenter
from training.selection import SceneData


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tokenizer = small_tokenizer()
    path = tmp_path / "whole.safetensors"
    notes = {"training_data": "none", "accuracy": '{"derived": 0.5}'}
    extra = {"optimiser.0.exp_avg": torch.zeros(3)}
    checkpoint.save(path, small_model(tokenizer), tokenizer, notes, extra)
    return path


def test_weights_are_at_most_half_a_level_away(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    assert main([str(source), "--out", str(out)]) == 0
    before, after = checkpoint.load(source), checkpoint.load(out)
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    assert after.metadata["training_data"] == "none"
    assert "8 bits" in after.metadata["weights"]
    assert "accuracy" not in after.metadata  # it was that of other weights
    assert after.extra == {}
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        if not tensor.is_floating_point():
            assert torch.equal(ours[name], tensor)
        elif tensor.ndim < 2:
            torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)
        else:
            largest = tensor.abs().flatten(1).amax(1)
            difference = (ours[name] - tensor).abs().flatten(1).amax(1)
            assert (difference <= largest / 127 / 2 + 1e-6).all(), name


def test_rounding_twice_changes_nothing_more(source: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    assert main([str(source), "--out", str(once)]) == 0
    assert main([str(once), "--out", str(twice)]) == 0
    first, second = (checkpoint.load(path).model.state_dict() for path in (once, twice))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-7, rtol=1e-5)


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    model = small_model(tokenizer)
    with torch.no_grad():
        model.text_encoder.tower.token_embedding.weight[0] = 0
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, model, tokenizer, {}, compact=True)
    weight = checkpoint.load(path).model.text_encoder.tower.token_embedding.weight
    assert torch.equal(weight[0], torch.zeros_like(weight[0]))


def test_its_masks_end_where_it_is_told_or_where_they_did(source: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("untold", "told", "kept", "told_again")]
    untold, told, kept, again = map(str, paths)
    assert main([str(source), "--out", untold]) == 0
    assert main([str(source), "--out", told, "--threshold", "0.25"]) == 0
    assert main([told, "--out", kept]) == 0
    assert main([told, "--out", again, "--threshold", "0.5"]) == 0
    assert [checkpoint.load(path).threshold for path in paths] == [0.35, 0.25, 0.25, 0.5]
    assert open_segmenter(kept).threshold == 0.25


def test_what_is_calibrated_from_it_ends_its_masks_there_too(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    whole, told = tmp_path / "whole.safetensors", tmp_path / "told.safetensors"
    checkpoint.save(whole, sensitive_model(tokenizer), tokenizer, {})
    assert main([str(whole), "--out", str(told), "--threshold", "0.25"]) == 0
    job = Job(  # in a folder whose name the work has for one of its own
        tmp_path / "float", SceneData(2), checkpoint=told, target="onnx", budget=100.0,
        samples=2, limit=1, threads=1, force=True,
    )  # fmt: skip
    assert calibrate(job, say=lambda line: None).threshold == 0.25


@pytest.mark.parametrize("value", ["0", "1", "25", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(
    value: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.safetensors"
    assert main([str(source), "--out", str(out), "--threshold", value]) == 2
    assert "threshold: expected a probability between 0 and 1" in capsys.readouterr().err
    assert not out.exists()


def test_it_is_small_and_says_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.safetensors"
    assert main([str(source), "--out", str(out)]) == 0
    assert out.stat().st_size < 0.4 * source.stat().st_size
    assert f"{out}: {out.stat().st_size / 1e6:.2f} MB" in capsys.readouterr().out


def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "none.safetensors"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not out.exists()
