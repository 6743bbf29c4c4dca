"""The README's commands and its Python run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.refer_tree import write_tree
from tests.scenes import write_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A scene or two and one short epoch, so that the whole way takes seconds.
SHORT = ["precision=float32", "epochs=1", "photos=2", "workers=0", "warmup_steps=1"]
# Full CRIS with parts of the least sizes; without CLIP's weights, which are fetched.
SMALL = [
    "pretrained=null",
    "sizes={input_size: 64, vision_layers: [1, 1, 1, 1], vision_width: 8, vision_grid: 2, "
    "embed_dim: 32, text_width: 64, text_layers: 1, neck_channels: [16, 32, 32], "
    "decoder_layers: 1, decoder_heads: 2, decoder_ffn: 32, projector_channels: [16, 16]}",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(start: str) -> list[list[str]]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the checkout to relative paths, and takes what commands write."""
    for name in ("samples", "training", "export", "cris_edge"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_folder(tmp_path / "DATA")
    write_tree(tmp_path / "data", "refcoco")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_end_and_hold_something(page: Path) -> None:
    # Between, by turns: prose, a block, prose …
    parts = re.split(r"(?m)^```.*\n", page.read_text(encoding="utf-8") + "\n")
    assert len(parts) % 2 == 1
    assert all(block.strip() for block in parts[1::2])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_python_runs(checkout: Path) -> None:
    said = run([sys.executable, "-c", "\n".join(blocks("python"))], checkout).splitlines()
    assert "(336, 512)" in said[0]
    assert len(said) == 3


def test_shell_commands_run(checkout: Path) -> None:
    executable = Path(sys.executable).with_name("cris-edge")
    found = commands("cris-edge")
    assert len(found) == 3
    for command in found:
        assert run([str(executable), *command[1:]], checkout)
    assert (checkout / "overlay.png").stat().st_size > 10_000


@pytest.mark.slow
def test_training_evaluation_and_export_run_in_turn(checkout: Path) -> None:
    found = commands("python -m ")
    assert [command[2] for command in found] == [
        "training.train", "training.evaluate", "export.build", "training.evaluate",
        "training.model.cost", "samples.benchmark", "training.prepare", "training.evaluate",
    ]  # fmt: skip
    for command in found[:6]:
        short = SHORT if command[2] == "training.train" else []
        run([sys.executable, *command[1:], *short], checkout)
    for path in ("runs/s/best.safetensors", "sheet-written.png", "bundles/s/bundle.json"):
        assert (checkout / path).is_file()
    assert (checkout / "bundles/s.zip").is_file()


def test_the_way_from_refcoco_to_figures_runs(checkout: Path) -> None:
    *_, prepare, evaluate = commands("python -m ")
    (train,) = commands("torchrun")
    train[train.index("8")] = "2"
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    assert "as published" not in run([sys.executable, *prepare[1:]], checkout)
    run([torchrun, *train[1:], *SHORT, *SMALL], checkout)
    report = run([sys.executable, *evaluate[1:]], checkout)
    assert "refcoco testB, all sentences of each reference" in report


def test_the_sample_program_runs(checkout: Path) -> None:
    assert "score" in run([sys.executable, str(ROOT / "samples/predict.py")], checkout)
    assert (checkout / "predict.png").is_file()
