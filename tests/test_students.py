"""The table of students: what it measures, what checkpoints add to it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from quantize.students import NAMES, main, write_random
from tests.scenes import small_tokenizer
from training import checkpoint
from training.model import CRIS
from training.model.config import STUDENT_S, STUDENT_XS
from training.model.cost import multiply_adds, parameters

LITTLE = {"text_layers": 1, "decoder_layers": 1, "input_size": 64}
"""Sizes of a student under its own name that is exported quickly."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `cris_edge_xs`, as a recipe with other sizes leaves it."""
    path, tokenizer = tmp_path_factory.mktemp("students") / "xs.safetensors", small_tokenizer()
    torch.manual_seed(0)
    config = dataclasses.replace(STUDENT_XS, vocab_size=tokenizer.vocab_size, **LITTLE)
    checkpoint.save(path, CRIS(config), tokenizer, {})
    return path


def test_a_row_has_cost_size_speed_and_accuracy(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = tmp_path / "students.json"
    status = main(
        ["--models", "cris_edge_xs", "--checkpoint", f"cris_edge_xs={trained}", "--scenes", "2",
         "--limit", "3", "--threads", "1", "--json", str(wanted)]
    )  # fmt: skip
    head, row, foot = capsys.readouterr().out.splitlines()
    assert status == 0
    written = json.loads(wanted.read_text())
    assert (written["engine"], written["threads"]) == ("onnxruntime", 1)
    assert written["data"] == "2 made-up scenes"
    assert list(written["models"]) == ["cris_edge_xs"]
    (found,) = written["models"].values()
    model = checkpoint.load(trained).model
    assert found["checkpoint"] == str(trained)
    assert found["parameters"] == parameters(model)
    assert found["multiply_adds"] == multiply_adds(model.config)
    # Two bytes a weight, and tokenizer and graphs beside them.
    assert 2 * found["parameters"] < found["bytes"] < 3 * found["parameters"]
    times = found["milliseconds"]
    assert times["total"] == pytest.approx(times["photo"] + times["phrase"] + times["pair"])
    assert found["scores"]["scenes"]["count"] == 3
    miou = found["scores"]["scenes"]["mIoU"]
    assert 0 <= miou <= 1
    assert head.split() == [
        "px", "M", "parameters", "G", "mult-adds", "MB", "ms", "mIoU", "scenes",
    ]  # fmt: skip
    assert row.split() == [
        "cris_edge_xs",
        "64",
        f"{found['parameters'] / 1e6:.2f}",
        f"{sum(found['multiply_adds'].values()) / 1e9:.2f}",
        f"{found['bytes'] / 1e6:.2f}",
        f"{times['total']:.2f}",
        f"{100 * miou:.1f}",
    ]
    assert "threads: 1" in foot


def test_without_a_checkpoint_weights_are_random_and_nothing_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = tmp_path / "students.json"
    assert main(["--models", "cris_edge_xs", "--threads", "1", "--json", str(wanted)]) == 0
    head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "ms"
    name, side, millions, billions, *_ = row.split()
    assert (name, side) == ("cris_edge_xs", "256")
    assert float(millions) < 4
    assert float(billions) < 0.6
    (found,) = json.loads(wanted.read_text())["models"].values()
    assert found["checkpoint"] is None
    assert found["scores"] == {}


@pytest.mark.parametrize("name", ["cris_edge_xs", "cris_edge_s", "cris_edge_m"])
def test_random_weights_have_the_models_own_sizes(name: str, tmp_path: Path) -> None:
    kept = checkpoint.load(write_random(name, tmp_path / "random.safetensors"))
    assert kept.model.config.name == name
    assert kept.tokenizer.vocab_size == kept.model.config.vocab_size == STUDENT_S.vocab_size


def test_all_students_and_full_cris_have_a_row() -> None:
    assert NAMES == ("cris_edge_xs", "cris_edge_s", "cris_edge_m", "cris_r50")


def test_a_checkpoint_of_another_model_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models", "cris_edge_s", "--checkpoint", f"cris_edge_s={trained}"]
    assert main([*arguments, "--scenes", "1"]) == 2
    assert "expected a checkpoint of cris_edge_s, this is of cris_edge_xs" in (
        capsys.readouterr().err
    )


def test_data_are_looked_at_before_anything_is_exported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models", "cris_edge_xs", "--checkpoint", f"cris_edge_xs={trained}"]
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "instances_val.json" in said
    assert "batch norms folded" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "cris_edge_xxl"], "invalid choice"),
        (["--checkpoint", "best.safetensors", "--scenes", "1"], "expected NAME=FILE"),
        (["--checkpoint", "cris_edge_xs=x.safetensors"], "give both --checkpoint and --data"),
        (["--scenes", "1"], "give both --checkpoint and --data"),
        (
            ["--models", "cris_edge_s", "--checkpoint", "cris_edge_xs=x", "--scenes", "1"],
            "--checkpoint of cris_edge_xs, which --models leaves out",
        ),
        (
            ["--checkpoint", "cris_edge_s=a", "--checkpoint", "cris_edge_s=b", "--scenes", "1"],
            "--checkpoint: expected one a model, got cris_edge_s, cris_edge_s",
        ),
        (["--split", "val"], "are of what checkpoints are judged by"),
    ],
)
def test_command_lines_that_ask_for_nothing_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
