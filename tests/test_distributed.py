"""Several processes train as one does: the same losses, statistics and figures; one of them writes.

The processes are torchrun's, on the CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenes import write_folder
from tests.training_run import (
    RECIPE,
    SIZES,
    contents,
    epochs,
    log,
    norms_told,
    references_recipe,
    run,
    same_curves,
    states,
    steps,
    torchrun,
    wait_until,
    write_recipe,
)
from training import checkpoint
from training.data import batches
from training.data.batches import StepSampler, build_data
from training.data.items import Place
from training.evaluation import evaluate_samples
from training.predictor import open_segmenter
from training.recipe import Recipe, read_recipe

CASES: dict[str, list[str]] = {
    "plain": [],
    "in parts": ["accumulate=2"],
    "in parts, checkpointed": ["accumulate=2", "recompute=true"],
    "loaded apart": ["workers=1"],
}
"""Overrides of `PLAIN`."""
# Small, so that rounding errors do not grow from step to step; where a gradient is nothing but
# rounding, Adam takes a whole step in any direction.
RATE = 1e-5
STUDENT = RECIPE | {
    "pretrained": "imagenet",
    "sizes": SIZES | {"image_encoder": "tf_efficientnet_lite0", "dropout": 0.0},
    "learning_rate": RATE / 2,
    "photos": 4,
    "train_repeats": 2,
    "epochs": 2,
}
"""Several phrases a photo, several losses, a moving average, statistics that are frozen."""
# Trains every case in the same processes, since starting them takes longer than training.
TRAIN = """
import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.training_run import norms_told
from training import checkpoint, distributed
from training import train as command
from training.data.batches import build_data
from training.evaluation import evaluate_samples
from training.predictor import open_segmenter
from training.recipe import read_recipe

device = distributed.start()
rank, size = distributed.world()
assert size == 2

def refuse(*arguments, **named):
    raise AssertionError("this is not the first process, and it writes")

if rank:
    checkpoint.save = command.RunLog = command.draw_sheet = refuse
for config, out, overrides in json.loads(Path(sys.argv[1]).read_text()):
    recipe = read_recipe(config, overrides)
    with norms_told(Path(out)):
        command.train(recipe, Path(out), False, device)
# The first process writes the best model, of which the other is not told.
dist.barrier()
# The same weights judged again: how many processes do it makes no difference at all.
segmenter = open_segmenter(Path(out) / "best.safetensors")
for samples in build_data(recipe).validation.values():
    scores = evaluate_samples(segmenter, samples).scores.as_dict()
    (Path(out) / f"scores-{rank}.json").write_text(json.dumps(scores))
distributed.stop()
"""
# Hangs in rank 1 before step 4, so that it can be killed there.
HANG = """
import os
import sys
import time
from pathlib import Path

from training import distributed
from training.train import main
from training.trainer import Trainer

learn = Trainer.learn

def hang(trainer, parts):
    if trainer.step == 4 and distributed.world()[0] == 1:
        marker = Path(sys.argv[1])
        marker.with_suffix(".new").write_text(str(os.getpid()))
        marker.with_suffix(".new").replace(marker)
        time.sleep(600)
    return learn(trainer, parts)

Trainer.learn = hang
sys.exit(main(sys.argv[2:]))
"""


def finished(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    """Exit code and all that was written to the terminal."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        # torchrun ends its processes when it is asked to end.
        process.terminate()
    return process.returncode, output


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    return references_recipe(folder, epochs=2, learning_rate=RATE)


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """A folder with a run of each case by one process."""
    folder = recipe.parent / "alone"
    for name, overrides in CASES.items():
        with norms_told(folder / name):
            assert run(recipe, folder / name, *overrides) == 0
    data = write_folder(recipe.parent / "photos")
    path = write_recipe(recipe.parent / "student.yaml", STUDENT, data=str(data))
    with norms_told(folder / "student"):
        assert run(path, folder / "student") == 0
    return folder


@pytest.fixture(scope="module")
def together(recipe: Path, alone: Path) -> Path:
    """The same by two."""
    folder = recipe.parent / "together"
    cases = [(str(recipe), str(folder / name), options) for name, options in CASES.items()]
    cases.insert(0, (str(recipe.parent / "student.yaml"), str(folder / "student"), []))
    (recipe.parent / "cases.json").write_text(json.dumps(cases))
    (recipe.parent / "train.py").write_text(TRAIN)
    program = torchrun(str(recipe.parent / "train.py"), str(recipe.parent / "cases.json"))
    code, output = finished(program)
    assert code == 0, output
    return folder


ALL = pytest.mark.parametrize("name", [*CASES, "student"])


@ALL
def test_two_processes_have_the_losses_of_one(name: str, alone: Path, together: Path) -> None:
    ours, theirs = steps(together / name), steps(alone / name)
    assert list(ours) == list(theirs) == list(range(1, len(theirs) + 1))
    for step, losses in theirs.items():
        assert ours[step] == pytest.approx(losses, abs=1e-4, rel=0)
    assert len({losses["mask"] for losses in theirs.values()}) == len(theirs)
    for mine, other in zip(epochs(together / name), epochs(alone / name), strict=True):
        assert mine["epoch_losses"] == pytest.approx(other["epoch_losses"], abs=1e-4, rel=0)


@ALL
def test_two_processes_have_the_gradients_of_one(name: str, alone: Path, together: Path) -> None:
    """Adam would not show it if they were twice as large."""
    ours, theirs = (json.loads((f / name / "norms.json").read_text()) for f in (together, alone))
    assert len(theirs) == len(steps(alone / name))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert min(theirs) > 1e-3


@ALL
def test_two_processes_end_with_the_statistics_of_one(
    name: str, alone: Path, together: Path
) -> None:
    (ours, _), (theirs, _) = (contents(states(f / name)[-1]) for f in (together, alone))
    assert ours.keys() == theirs.keys()
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    statistics = [key for key in theirs if key.endswith(kinds) and key.startswith("model.")]
    assert len(statistics) > 30
    for key in statistics:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-4, msg=key)


@ALL
def test_two_processes_judge_as_one(name: str, alone: Path, together: Path) -> None:
    for mine, other in zip(epochs(together / name), epochs(alone / name), strict=True):
        assert mine["val"].keys() == other["val"].keys()
        for source, scores in other["val"].items():
            assert mine["val"][source]["count"] == scores["count"]
            assert mine["val"][source]["mIoU"] == pytest.approx(scores["mIoU"], abs=1e-4)


def test_the_same_weights_have_the_very_same_figures(recipe: Path, together: Path) -> None:
    *_, last = CASES
    segmenter = open_segmenter(together / last / "best.safetensors")
    (samples,) = build_data(read_recipe(recipe)).validation.values()
    scores = evaluate_samples(segmenter, samples).scores.as_dict()
    for rank in (0, 1):
        assert json.loads((together / last / f"scores-{rank}.json").read_text()) == scores


def test_statistics_of_a_part_are_of_both_processes_halves(alone: Path) -> None:
    """What is compared above does depend on how a batch is divided."""
    assert steps(alone / "plain")[1] != pytest.approx(steps(alone / "in parts")[1], abs=1e-4)


@ALL
def test_one_process_writes(name: str, alone: Path, together: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {path.name for path in (folder / name).iterdir() if "scores" not in path.name}

    assert files(together) == files(alone)
    assert [r["step"] for r in log(together / name)] == [r["step"] for r in log(alone / name)]
    assert len(list((together / name / "tensorboard").iterdir())) == 1
    same_curves(together / name)


# --- what goes wrong ---


def test_a_batch_that_cannot_be_shared_is_refused(recipe: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(recipe), "--out", str(tmp_path / "out"), "photos=3"]
    code, output = finished(torchrun("-m", "training.train", *arguments))
    assert code != 0
    line = "error: photos: a batch of 3 cannot be shared by 2 processes in 1 parts each"
    assert [one for one in output.splitlines() if "error: " in one] == [line]
    assert not (tmp_path / "out").exists()


APART = """
import os
import sys

from training import train

if os.environ["RANK"] == "1":
    sys.argv[sys.argv.index("--out") + 1] += "-elsewhere"
sys.exit(train.main())
"""


def test_machines_whose_folders_are_not_one_do_not_go_on(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", tmp_path / "apart.py"
    program.write_text(APART)
    shutil.copytree(alone / "plain", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    arguments = ["--config", str(recipe), "--out", str(out), "--resume"]
    code, output = finished(torchrun(str(program), *arguments))
    assert code != 0
    (line,) = [one for one in output.splitlines() if "error: " in one]
    assert "from different states (process 0: step " in line
    assert ", process 1: step 0): " in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_process_that_is_killed_ends_the_run_and_one_alone_goes_on(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    out, marker, program = tmp_path / "out", tmp_path / "marker", tmp_path / "hang.py"
    program.write_text(HANG)
    arguments = ["--config", str(recipe), "--out", str(out), "save_every=2"]
    with (tmp_path / "output.txt").open("w") as output:
        running = torchrun(str(program), str(marker), *arguments, output=output)
        try:
            errors = (tmp_path / "output.txt").read_text
            wait_until(marker.exists, lambda: running.poll() is None, 120, errors)
            os.kill(int(marker.read_text()), signal.SIGKILL)
            assert running.wait(120) != 0
        finally:
            running.terminate()
    newest = states(out)[-1]
    assert newest.name == "state-00000003.safetensors"
    assert json.loads(checkpoint.load(newest).metadata["state"])["step"] == 3
    assert run(recipe, out, "--resume") == 0
    for step, losses in steps(alone / "plain").items():
        assert steps(out)[step] == pytest.approx(losses, abs=1e-4, rel=0)
    assert not list(out.glob(".*"))


# --- who reads what ---


def read(
    repeats: list[int], recipe: Recipe, rank: int, size: int, first: int = 0
) -> list[list[Place]]:
    """What a process reads to the end of its run, part by part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "world", lambda: (rank, size))
        return list(StepSampler(repeats, recipe, first))


@settings(deadline=None)
@given(
    repeats=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    share=st.integers(1, 3),
    seed=st.integers(0, 5),
    epochs=st.integers(1, 4),
    data=st.data(),
)
def test_processes_share_the_very_batches_of_one(
    repeats: list[int], size: int, accumulate: int, share: int, seed: int, epochs: int, data: Any
) -> None:
    photos = size * accumulate * share
    recipe = dataclasses.replace(Recipe(), photos=photos, seed=seed, epochs=epochs)
    whole = read(repeats, recipe, 0, 1)
    assert len(whole) == epochs * (sum(repeats) // photos)
    assert all(len(batch) == photos for batch in whole)
    first = data.draw(st.integers(0, len(whole)))
    divided = dataclasses.replace(recipe, accumulate=accumulate)
    shares = [read(repeats, divided, rank, size, first) for rank in range(size)]
    for step, batch in enumerate(whole[first:]):
        pieces = range(step * accumulate, (step + 1) * accumulate)
        # Part for part, in the order of the ranks: batch norm over the processes then sees what
        # that of one process does which takes the batch in as many parts.
        assert batch == [place for piece in pieces for own in shares for place in own[piece]]
    assert all(len(own) == accumulate * (len(whole) - first) for own in shares)
    places = [place for batch in whole for place in batch]
    assert len(set(places)) == len(places)
    draws = {(i, draw) for i, times in enumerate(repeats) for draw in range(times)}
    assert set(places) <= {(epoch, *draw) for epoch in range(epochs) for draw in draws}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    recipe = dataclasses.replace(Recipe(), photos=10, epochs=2)
    runs = [read([1] * 40, dataclasses.replace(recipe, seed=seed), 0, 1) for seed in (0, 1)]
    orders = [
        [place for batch in half for place in batch] for run in runs for half in (run[:4], run[4:])
    ]
    photos = [[photo for _, photo, _ in order] for order in orders]
    assert all(a != b for i, a in enumerate(photos) for b in photos[:i])
    for order, epoch in zip(orders, (0, 1, 0, 1), strict=True):
        assert sorted(order) == [(epoch, photo, 0) for photo in range(40)]


def test_what_loads_photos_starts_once_for_all_epochs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"

    def start_worker(worker: int) -> None:
        with started.open("a") as file:
            file.write(f"{worker} ")

    monkeypatch.setattr(batches, "start_worker", start_worker)
    assert run(recipe, tmp_path / "out", "workers=2") == 0
    assert len(epochs(tmp_path / "out")) > 1
    assert sorted(started.read_text().split()) == ["0", "1"]
