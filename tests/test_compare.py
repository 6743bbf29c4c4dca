"""Comparing ways to train: a table over seeds, and nothing trained twice."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml

from tests.training_run import SIZES
from training.compare import main

ROOT = Path(__file__).parent.parent
COMMON = ["epochs=1", "scenes=4", "photos=2", "workers=0"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("training.data.batches.JUDGED_SCENES", 2)
    path = tmp_path / "recipe.yaml"
    content = {
        "kind": "scenes",
        "data": str(ROOT / "samples" / "photos"),
        "model": "cris_edge_s",
        "pretrained": None,
        "sizes": SIZES,
        "precision": "float32",
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_ways_and_seeds_are_tabled_and_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(recipe), "--out", str(tmp_path / "runs"), "--way", ""]
    command += ["--way", "dice=1.0 learning_rate=1.0e-3", "--seeds", "0", "1", "--set", *COMMON]
    assert main(command) == 0
    text = capsys.readouterr().out
    *_, heading, first, second = text.splitlines()
    assert heading.split() == ["seeds", "mIoU", "+-", "more", "Pr@50"]
    assert first.startswith("as it is")
    assert second.startswith("dice=1.0 learning_rate=1.0e-3")
    folders = sorted((tmp_path / "runs").glob("*/seed-*"))
    assert len(folders) == 4
    scores = [
        json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["val"]["scenes"]["mIoU"]
        for folder in folders
        if folder.parent.name == "as-it-is"
    ]
    assert first.split()[-4] == f"{100 * statistics.mean(scores):.1f}"
    assert first.split()[-2] == "+0.0"
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [heading, first, second]
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.safetensors")} == before


def test_a_way_that_is_no_recipe_is_refused_before_anything_is_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    ways = ["--way", "", "--way", "dicee=1.0"]
    assert main(["--config", str(recipe), "--out", str(out), *ways, "--set", *COMMON]) == 2
    assert "unknown names ['dicee']" in capsys.readouterr().err
    ways = ["--way", "a='b"]
    assert main(["--config", str(recipe), "--out", str(out), *ways, "--set", *COMMON]) == 2
    assert "--way a='b: No closing quotation" in capsys.readouterr().err
    assert not out.exists()
