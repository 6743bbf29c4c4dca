"""Small training runs: in this process, or in one of their own that tests can kill."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore
    EventAccumulator,
)
from torch import Tensor

from tests.refer_tree import write_tree
from tests.scenes import write_folder
from training.distributed import world
from training.prepare import prepare
from training.train import main
from training.trainer import Batch, Trainer

ROOT = Path(__file__).parent.parent
SIZES: dict[str, Any] = {
    "image_encoder": "clip_resnet",
    "image_blocks": 0,
    "input_size": 64,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 8,
    "vision_grid": 2,
    "embed_dim": 32,
    "text_width": 64,
    "text_layers": 1,
    "neck_channels": [16, 32, 32],
    "decoder_layers": 1,
    "decoder_heads": 2,
    "decoder_ffn": 32,
    "projector_channels": [16, 16],
}
RECIPE: dict[str, Any] = {
    "kind": "photos",
    "model": "cris_edge_s",
    "pretrained": None,
    "sizes": SIZES,
    "epochs": 3,
    "photos": 2,
    "phrases": 3,
    "mirror": 0.5,
    "outlines": "covered",
    "absent": 0.5,
    "several": 0.5,
    "optimiser": "adamw",
    "learning_rate": 6e-4,
    "image_encoder_rate": 0.2,
    "text_encoder_rate": 1.0,
    "weight_decay": 0.02,
    "schedule": "cosine",
    "warmup_steps": 2,
    "clip_norm": 1.0,
    "ema": 0.8,
    "frozen_statistics": True,
    "precision": "float32",
    "dice": 1.0,
    "which": 1.0,
    "referent": 0.5,
    "naming": 0.5,
    "workers": 0,
    "log_every": 1,
}
"""With everything that a student is taught."""
LOSSES = {"mask", "dice", "which", "referent"}
"""Of `RECIPE`, but for `naming`, which photos alone have."""
PLAIN: dict[str, Any] = {
    "kind": "references",
    "model": "cris_edge_s",
    "pretrained": None,
    "sizes": SIZES | {"dropout": 0.0},
    "epochs": 3,
    "photos": 4,
    "learning_rate": 1e-3,
    "milestones": [2],
    "precision": "float32",
    "workers": 0,
    "log_every": 1,
}
"""The paper's way, in float32."""
CHANGING = {"photos_per_second", "waiting", "memory_gib"}
"""What of a log record no two runs have in common."""


def write_recipe(path: Path, recipe: dict[str, Any], **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def photos_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of kind photos, with its data; an epoch has 2 steps."""
    data = write_folder(folder / "data")
    return write_recipe(folder / "recipe.yaml", RECIPE, data=str(data), **changes)


def references_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of kind references, with its data, some of which mean nothing: 3 steps an epoch."""
    write_tree(folder / "data", "grefcoco")
    prepare(folder / "data", "grefcoco", folder / "prepared")
    return write_recipe(folder / "recipe.yaml", PLAIN, data=str(folder / "prepared"), **changes)


def run(recipe: Path, out: Path, *more: str) -> int:
    """The command, on the CPU whatever else there is."""
    with patch.object(torch.cuda, "is_available", return_value=False):
        return main(["--config", str(recipe), "--out", str(out), *more])


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, out: Path, *more: str) -> str:
    """Start what must be refused; the line on stderr, after any progress bars."""
    capsys.readouterr()
    assert run(recipe, out, *more) == 2
    return last_line(capsys.readouterr().err)


def last_line(errors: str) -> str:
    """The one line that a refusal ends with; there may be progress bars before it."""
    *_, line = re.split(r"[\r\n]+", errors.rstrip())
    assert line.startswith("error: ")
    assert "Traceback" not in errors
    return line


# --- what a run wrote ---


def log(out: Path) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def figures(out: Path) -> list[dict[str, Any]]:
    """The log without what no two runs have in common."""
    return [{k: v for k, v in record.items() if k not in CHANGING} for record in log(out)]


def steps(out: Path) -> dict[int, dict[str, float]]:
    """Losses by step."""
    return {r["step"]: r["losses"] for r in log(out) if "losses" in r}


def epochs(out: Path) -> list[dict[str, Any]]:
    """The records of epochs that are over."""
    return [record for record in log(out) if "epoch_losses" in record]


def states(out: Path) -> list[Path]:
    return sorted(out.glob("state-*.safetensors"))


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata())


def same_tensors(ours: Path, theirs: Path, tolerance: float = 0.0) -> None:
    """Fail unless two checkpoints hold the same."""
    (tensors, header), (others, heading) = contents(ours), contents(theirs)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, others[name], rtol=0, atol=tolerance, equal_nan=False, msg=name
        )
    if not tolerance and "state" in header:
        assert json.loads(header["state"]) == json.loads(heading["state"])


def same_run(ours: Path, theirs: Path) -> None:
    """Fail unless two runs tell the same and end the same."""
    assert figures(ours) == figures(theirs)
    assert states(ours)[-1].name == states(theirs)[-1].name
    same_tensors(states(ours)[-1], states(theirs)[-1])
    same_tensors(ours / "best.safetensors", theirs / "best.safetensors")
    assert not list(ours.glob(".*"))


def board(out: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    found = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def same_curves(out: Path) -> None:
    """Fail unless TensorBoard's curves are the numbers of the log, each once."""
    shown = board(out)
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in log(out):
        for name, value in _numbers(record):
            expected.setdefault(name, []).append((record["step"], value))
    assert set(shown.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        curve = [(event.step, event.value) for event in shown.Scalars(name)]
        # TensorBoard keeps float32.
        assert curve == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{rest}", number) for rest, number in _numbers(value))
        elif name not in ("step", "epoch"):
            yield name, value


@contextmanager
def norms_told(out: Path) -> Iterator[None]:
    """Write the norm of each step's gradient to `norms.json`, by the first process."""
    learn, norms = Trainer.learn, []

    def tell(trainer: Trainer, parts: Sequence[Batch]) -> dict[str, float]:
        losses = learn(trainer, parts)
        gradients = [p.grad for p in trainer.objective.parameters() if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return losses

    with patch.object(Trainer, "learn", tell):
        yield
    if world()[0] == 0:
        (out / "norms.json").write_text(json.dumps(norms))


# --- stopping ---


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Someone presses Control-C in the middle of a step, the first of which is 0."""
    learn = Trainer.learn

    def stop(trainer: Trainer, parts: Sequence[Batch]) -> dict[str, float]:
        if trainer.step == step:
            raise KeyboardInterrupt
        return learn(trainer, parts)

    with patch.object(Trainer, "learn", stop), pytest.raises(KeyboardInterrupt):
        yield


SERVER = multiprocessing.get_context("forkserver")
# Once for all the processes that tests start: importing torch takes longer than training.
SERVER.set_forkserver_preload(["training.train"])


LONG = 240
"""Seconds after which a process tells where each of its threads is."""


class Started:
    """The command in a process of its own; `before` runs there first."""

    def __init__(
        self,
        recipe: Path,
        out: Path,
        *more: str,
        before: Callable[[], None] | None = None,
    ):
        argv = ["--config", str(recipe), "--out", str(out), *more]
        out.parent.mkdir(parents=True, exist_ok=True)
        self.output = out.with_name(f"{out.name}-output-{time.monotonic_ns()}.txt")
        self.process = SERVER.Process(
            target=_work, args=(argv, self.output, before, multiprocessing.get_start_method())
        )
        self.process.start()

    def kill(self) -> None:
        """As the system does where memory is short: nothing in the process can see it coming."""
        self.process.kill()
        assert self.wait() == -9

    def wait(self, seconds: float = 300) -> int:
        """The exit code; negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"not over after {seconds} s: {self.errors()}")
        return self.process.exitcode

    def errors(self) -> str:
        """All that it wrote to the terminal."""
        return self.output.read_text(encoding="utf-8")

    def until(self, ready: Callable[[], object], seconds: float = 300) -> None:
        """Wait for something, as long as the process lives."""
        wait_until(ready, lambda: self.process.is_alive(), seconds, self.errors)


def _work(argv: list[str], output: Path, before: Callable[[], None] | None, method: str) -> None:
    terminal = os.open(output, os.O_CREAT | os.O_WRONLY, 0o644)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    # Whoever waits for it gives up after 300 s, and wants to know what it did.
    faulthandler.dump_traceback_later(LONG)
    # Loading processes start as everywhere else, and are this one's own children.
    multiprocessing.set_start_method(method, force=True)
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    if before is not None:
        before()
    sys.exit(main(argv))


def wait_until(
    ready: Callable[[], object],
    alive: Callable[[], bool],
    seconds: float,
    errors: Callable[[], str],
) -> None:
    """Wait until `ready` says so."""
    end = time.monotonic() + seconds
    while not ready():
        assert alive(), errors()
        assert time.monotonic() < end, errors()
        time.sleep(0.01)


def hang(step: int, marker: Path) -> None:
    """Let a step of this process wait for ever, once it has told by a file who its children are."""
    learn = Trainer.learn

    def stop(trainer: Trainer, parts: Sequence[Batch]) -> dict[str, float]:
        if trainer.step == step:
            children = " ".join(str(child.pid) for child in multiprocessing.active_children())
            marker.with_suffix(".new").write_text(children)
            marker.with_suffix(".new").replace(marker)
            # The system may tell another thread that a child died, which wakes no long sleep.
            for _ in range(6000):
                time.sleep(0.1)
        return learn(trainer, parts)

    Trainer.learn = stop  # type: ignore


def torchrun(*arguments: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start two processes that train together on the CPU."""
    command = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.Popen(
        [*command, "--standalone", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
