"""`make model`: from a data folder to the bundle that ships, as one command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cris_edge import Segmenter
from tests.scenes import write_folder
from training import checkpoint, words
from training.model.cost import parameters

ROOT = Path(__file__).parents[1]
SOURCES = ("cris_edge", "training", "quantize", "export")
RUNS = ("model", "further-1", "further-2")
SMALL = "photos=4 phrases=3 epochs=2 train_repeats=2 warmup_steps=1 workers=0 precision=float32"


def make_model(checkout: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    # The environment of the tests is there already, and not to be made anew for a copy.
    command = ["make", "-o", f"{sys.prefix}/.dev", "model", f"VENV={sys.prefix}", *variables]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the command runs and writes, without the model that ships."""
    checkout = tmp_path / "checkout"
    generated = shutil.ignore_patterns("__pycache__", "cris_edge_s", "*.safetensors")
    for name in SOURCES:
        shutil.copytree(ROOT / name, checkout / name, ignore=generated)
    shutil.copytree(ROOT / "samples/photos", checkout / "samples/photos")
    shutil.copy(ROOT / "Makefile", checkout)
    return checkout


def teach_words(checkout: Path, data: Path) -> None:
    """The command's first step, which it leaves out where it is done, in 2 steps for its 600."""
    out, config = checkout / "runs/words.safetensors", "training/configs/cris_edge_s.yaml"
    out.parent.mkdir()
    options = ["--out", str(out), "--config", str(ROOT / config), "--steps", "2"]
    assert words.main([*options, f"data={data}", *SMALL.split()]) == 0


@pytest.mark.slow
def test_a_folder_becomes_the_bundle_that_ships(checkout: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    teach_words(checkout, data)
    done = make_model(checkout, f"DATA={data}", f"SET={SMALL}")
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {name: (checkout / "runs" / name / "log.jsonl").read_text() for name in RUNS}
    assert [json.loads(log.splitlines()[-1])["epoch"] for log in logs.values()] == [2, 2, 2]
    assert len(set(logs.values())) == len(RUNS)
    small = checkout / "training/checkpoints/cris_edge_s.safetensors"
    kept = checkpoint.load(small)
    assert kept.metadata["mean_of"].count("best.safetensors") == len(RUNS)
    segmenter = Segmenter(checkout / "cris_edge/models/cris_edge_s")
    assert kept.threshold == 0.25
    assert (segmenter.info.precision, segmenter.info.input_size) == ("weights8", 320)
    report = json.loads((checkout / "probe.json").read_text())
    assert report["runtime"] == dataclasses.asdict(segmenter.info)
    assert report["threshold"] == kept.threshold
    assert report["probes"]["Size"]["parameters"]["value"] == parameters(kept.model)
    assert report["probes"]["Written expressions"]["mIoU"]["n"] == 8

    # Stopped before its last steps and called again, it repeats none of the long ones.
    small.unlink()
    done = make_model(checkout, f"DATA={data}", f"SET={SMALL}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: (checkout / "runs" / name / "log.jsonl").read_text() for name in RUNS} == logs
    again = checkpoint.load(small).model.state_dict()
    assert all(torch.equal(again[name], t) for name, t in kept.model.state_dict().items())


def test_a_folder_that_is_not_there_is_refused(checkout: Path) -> None:
    done = make_model(checkout)
    assert done.returncode == 2
    assert "make model DATA=folder" in done.stdout
    assert not (checkout / "runs").exists()
