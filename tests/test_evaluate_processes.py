"""Several processes share the photos out and report what one process reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference_sets import PLAIN, write_set
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.evaluate import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("run") / "small.safetensors", small_tokenizer()
    checkpoint.save(path, small_model(tokenizer), tokenizer, {})
    return path


def under_torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in three processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "3", "-m", "training.evaluate", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def content(path: Path) -> dict[str, Any]:
    """All of a report but when it was made."""
    figures: dict[str, Any] = json.loads(path.read_text())
    del figures["date"]
    return figures


def test_processes_report_once_what_one_reports(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", PLAIN)
    # Samples of two photos: the third process has none, and waits for the others.
    command = [str(saved), "--data", str(folder), "--split", "all", "--limit", "2"]
    one, shared = tmp_path / "one.json", tmp_path / "shared.json"
    assert main([*command, "--threads", "1", "--json", str(one)]) == 0
    printed = capsys.readouterr().out
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    done = under_torchrun(*command, "--threads", "1", "--json", str(shared), *sheet)
    assert done.returncode == 0, done.stderr
    assert content(shared) == content(one)
    report, *sheets = done.stdout.split("\n\nsheet of overlays, ")
    assert report.splitlines()[8:] == printed.splitlines()[8:]
    assert [sheet.split(" expr")[0] for sheet in sheets] == ["made train", "made val", "made testA"]
    counts = [len(part["samples"]) for part in content(shared)["expressions"].values()]
    assert counts == [2, 2, 2]
    # The first process alone shows a bar: one of the two photos is its own.
    assert done.stderr.count("evaluating: 100%") == 1
    assert "1/1" in done.stderr


def test_what_one_process_refuses_all_refuse_in_one_line(saved: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", PLAIN)
    # The second process's.
    (tmp_path / "set" / "data" / "photos" / "scene_1.png").unlink()
    done = under_torchrun(str(saved), "--data", str(folder))
    assert done.returncode != 0
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "scene_1.png should be a picture" in lines[0]
