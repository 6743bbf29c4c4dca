"""The mean of checkpoints of one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cris_edge.tokenizer import build
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.average import main
from training.data.vocabulary import clip_merges
from training.model import CRIS


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    tokenizer = small_tokenizer()
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        notes = {"training_data": f"data {seed}", "accuracy": "{}"}
        notes |= [{"licence": "CC BY 4.0"}, {"licence": "research only"}, {}][seed]
        extra = {"optimiser.0.exp_avg": torch.zeros(3)}
        threshold = 0.2 + seed / 10
        model = small_model(tokenizer, seed)
        checkpoint.save(path, model, tokenizer, notes, extra, threshold=threshold)
    return paths


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("weights", [None, (1, 2, 5)])
def test_each_tensor_is_the_weighted_mean(
    weights: tuple[float, ...] | None, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "mean.safetensors"
    said = [] if weights is None else ["--weights", *map(str, weights)]
    assert main([*map(str, sources), *said, "--out", str(out)]) == 0
    found = checkpoint.load(out)
    states = [checkpoint.load(path).model.state_dict() for path in sources]
    shares = torch.tensor(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    for name, tensor in found.model.state_dict().items():
        parts = torch.stack([state[name] for state in states])
        if tensor.is_floating_point():
            expected = torch.einsum("n...,n->...", parts.double(), shares.double()).float()
            torch.testing.assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, parts[0])


def test_the_rest_is_the_firsts_but_for_what_is_no_longer_true(
    sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "mean.safetensors"
    assert main([*map(str, sources), "--out", str(out)]) == 0
    first, found = checkpoint.load(sources[0]), checkpoint.load(out)
    assert found.tokenizer.to_json() == first.tokenizer.to_json()
    assert found.threshold == first.threshold
    assert found.metadata["training_data"] == "data 0; data 1; data 2"
    assert found.metadata["licence"] == "CC BY 4.0; research only"
    assert "accuracy" not in found.metadata
    assert found.metadata["mean_of"] == (
        "a.safetensors (0.333), b.safetensors (0.333), c.safetensors (0.333)"
    )
    assert found.extra == {}


def test_inputs_may_be_of_other_sizes_and_the_means_is_the_firsts(
    sources: list[Path], tmp_path: Path
) -> None:
    out, larger = tmp_path / "mean.safetensors", tmp_path / "larger.safetensors"
    kept = checkpoint.load(sources[1])
    model = CRIS(dataclasses.replace(kept.model.config, input_size=96))
    model.load_state_dict(kept.model.state_dict())
    checkpoint.save(larger, model, kept.tokenizer, {})
    assert main([str(larger), str(sources[0]), "--out", str(out)]) == 0
    of_one_size = tmp_path / "other.safetensors"
    assert main([str(sources[1]), str(sources[0]), "--out", str(of_one_size)]) == 0
    mean, other = (checkpoint.load(path).model for path in (out, of_one_size))
    assert (mean.config.input_size, other.config.input_size) == (96, 64)
    assert all(torch.equal(other.state_dict()[name], t) for name, t in mean.state_dict().items())


def test_what_has_no_mean_is_refused(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean.safetensors"
    code, error = run(capsys, sources[0], "--out", out)
    assert (code, error) == (2, "error: a mean is of two checkpoints at least, not of 1\n")
    for weights in (["1"], ["1", "0"], ["1", "nan"]):
        code, error = run(capsys, *sources[:2], "--out", out, "--weights", *weights)
        assert code == 2
        assert "expected 2 positive numbers" in error
    code, error = run(capsys, sources[0], tmp_path / "none.safetensors", "--out", out)
    assert code == 2
    assert "no such file" in error
    assert not out.exists()


def test_checkpoints_of_different_models_are_refused(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "mean.safetensors", tmp_path / "other.safetensors"
    fewer = build(clip_merges()[:900])
    checkpoint.save(other, small_model(fewer), fewer, {})
    code, error = run(capsys, sources[0], other, "--out", out)
    assert code == 2
    assert "their sizes differ" in error
    others = build([*clip_merges()[:999], clip_merges()[1000]])
    checkpoint.save(other, small_model(others), others, {})
    code, error = run(capsys, sources[0], other, "--out", out)
    assert code == 2
    assert "their tokenizers differ" in error
    assert not out.exists()
