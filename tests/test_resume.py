"""Runs that are stopped in any way go on as if they never were, or say what is wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_edge.tokenizer import Tokenizer
from tests.refer_tree import write_tree
from tests.training_run import (
    SIZES,
    Started,
    contents,
    figures,
    hang,
    interrupted,
    last_line,
    photos_recipe,
    references_recipe,
    refused,
    run,
    same_curves,
    same_run,
    same_tensors,
    states,
    steps,
)
from training import checkpoint, train
from training.data.batches import build_data
from training.data.items import ItemMaker
from training.data.prepared import open_references
from training.prepare import prepare
from training.recipe import read_recipe
from training.trainer import Trainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of four steps, with everything that has a state or draws at random."""
    return photos_recipe(
        tmp_path_factory.mktemp("resume"),
        sizes=SIZES | {"dropout": 0.3},
        train_repeats=2,
        epochs=2,
    )


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    out = recipe.parent / "undisturbed"
    assert run(recipe, out) == 0
    return out


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three steps, the paper's way: batch norm learns its statistics."""
    return references_recipe(tmp_path_factory.mktemp("references"))


@pytest.fixture
def stopped(recipe: Path, tmp_path: Path) -> Path:
    """A run that was stopped in its sixth step; its states are of steps 2 and 4."""
    with interrupted(5):
        run(recipe, tmp_path / "out", "save_every=2")
    assert [path.name for path in states(tmp_path / "out")] == state_names(2, 4)
    return tmp_path / "out"


def state_names(*steps: int) -> list[str]:
    return [f"state-{step:08d}.safetensors" for step in steps]


def whole_states(out: Path, *steps: int) -> None:
    """Fail unless there are these states, and each can be read."""
    assert [path.name for path in states(out)] == state_names(*steps)
    for path, step in zip(states(out), steps, strict=True):
        assert json.loads(checkpoint.load(path).metadata["state"])["step"] == step


# --- stopped by hand ---


@pytest.mark.parametrize(
    ("step", "first", "then"),
    [
        (1, [], []),
        (1, ["save_every=1"], []),
        (4, [], ["workers=1"]),
        (5, [], ["save_every=3"]),
        (6, ["save_every=1"], []),
        (7, ["save_every=3", "workers=2"], ["workers=2"]),
    ],
    ids=["before any state", "first epoch", "epoch 2 begins", "within", "each step", "workers"],
)
def test_an_interrupted_run_goes_on_as_if_never_stopped(
    step: int, first: list[str], then: list[str], recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with interrupted(step):
        run(recipe, tmp_path, *first)
    assert max(steps(tmp_path)) == step
    assert run(recipe, tmp_path, "--resume", *then) == 0
    same_run(tmp_path, undisturbed)
    same_curves(tmp_path)


def test_a_run_may_be_stopped_twice(recipe: Path, undisturbed: Path, stopped: Path) -> None:
    with interrupted(7):
        run(recipe, stopped, "--resume", "save_every=1")
    assert run(recipe, stopped, "--resume") == 0
    same_run(stopped, undisturbed)
    same_curves(stopped)


def test_the_papers_way_goes_on_as_if_never_stopped(references: Path, tmp_path: Path) -> None:
    assert run(references, tmp_path / "whole") == 0
    with interrupted(5):
        run(references, tmp_path / "stopped", "save_every=1")
    assert run(references, tmp_path / "stopped", "--resume") == 0
    same_run(tmp_path / "stopped", tmp_path / "whole")
    tensors, _ = contents(states(tmp_path / "whole")[-1])
    norm = "model.image_encoder.trunk.bn1.num_batches_tracked"
    assert tensors[norm].item() == 9


def test_a_finished_run_resumed_is_left_as_it_is(recipe: Path, undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    assert run(recipe, undisturbed, "--resume") == 0
    assert before == {p: p.read_bytes() for p in undisturbed.iterdir() if p.is_file()}
    same_curves(undisturbed)


# --- killed ---


def test_a_run_that_was_killed_goes_on_as_if_never_stopped(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    running = Started(recipe, out, before=partial(hang, 6, marker))
    running.until(marker.exists)
    running.kill()
    whole_states(out, 4)
    # What was told after the state is told again.
    assert max(steps(out)) == 6
    assert run(recipe, out, "--resume") == 0
    same_run(out, undisturbed)
    same_curves(out)


def die_in_the_middle_of(name: str) -> None:
    """Kill this process when half of a checkpoint of that name is written."""
    write = checkpoint.save_file

    def half(tensors: Any, path: Path, header: dict[str, str]) -> None:
        write(tensors, path, header)
        if path.name.startswith(f".{name}"):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = half


@pytest.mark.parametrize(
    ("name", "kept"), [("state-00000006.safetensors", (2, 4)), ("best.safetensors", (2, 4))]
)
def test_what_was_killed_while_it_wrote_has_lost_nothing_that_was_whole(
    name: str, kept: tuple[int, ...], recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = Started(recipe, out, "save_every=2", before=partial(die_in_the_middle_of, name))
    assert running.wait() == -signal.SIGKILL, running.errors()
    (leftover,) = out.glob(".*")
    assert leftover.name.startswith(f".{name}")
    assert not (out / name).exists()
    whole_states(out, *kept)
    for other in (f".{name}.x", ".sheet-derived.png.x", ".log.jsonl.x"):
        (out / other).write_bytes(b"half")
    assert run(recipe, out, "--resume") == 0
    same_run(out, undisturbed)


def die_when_judged() -> None:
    """Kill this process when it would validate."""

    def killed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    train.evaluate_samples = killed


def test_an_epoch_is_not_lost_by_its_validation(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = Started(recipe, out, before=die_when_judged)
    assert running.wait() == -signal.SIGKILL, running.errors()
    whole_states(out, 4)
    assert not (out / "best.safetensors").exists()
    with interrupted(4):
        # Nothing is left of the first epoch but to judge it.
        run(recipe, out, "--resume")
    assert (out / "best.safetensors").exists()
    assert run(recipe, out, "--resume") == 0
    same_run(out, undisturbed)
    same_curves(out)


# --- what a machine does to a run ---


def no_file_beyond(size: int) -> None:
    """As on a disk that is full: files cannot grow beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_ends_a_run_with_its_states_whole(
    recipe: Path, undisturbed: Path, stopped: Path
) -> None:
    size = states(stopped)[-1].stat().st_size
    running = Started(
        recipe, stopped, "--resume", "save_every=2", before=partial(no_file_beyond, size // 2)
    )
    assert running.wait() == 2, running.errors()
    line = last_line(running.errors())
    assert f"{stopped}/state-00000006.safetensors: cannot be written" in line
    assert "File too large" in line
    assert f"The last whole state is {stopped}/state-00000004.safetensors: --resume" in line
    assert not list(stopped.glob(".*"))
    whole_states(stopped, 2, 4)
    assert run(recipe, stopped, "--resume") == 0
    same_run(stopped, undisturbed)


def hang_at_photo(count: int, marker: Path) -> None:
    """Let a loading process wait for ever at its so-manieth photo, once it has told its number."""
    make, calls = ItemMaker.__call__, []

    def stop(items: ItemMaker, *arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == count:
            marker.with_suffix(".new").write_text(str(os.getpid()))
            marker.with_suffix(".new").replace(marker)
            time.sleep(600)
        return make(items, *arguments)

    ItemMaker.__call__ = stop  # type: ignore


@pytest.mark.parametrize("where", ["while it waits for photos", "in the middle of a step"])
def test_a_loading_process_that_dies_ends_the_run_with_one_line(
    where: str, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    before = partial(hang, 2, marker) if "step" in where else partial(hang_at_photo, 5, marker)
    running = Started(recipe, out, "workers=1", "save_every=1", before=before)
    running.until(marker.exists)
    (loader,) = map(int, marker.read_text().split())
    assert loader != running.process.pid
    running.until(lambda: len(states(out)) == 2)
    os.kill(loader, signal.SIGKILL)
    assert running.wait() == 2, running.errors()
    line = last_line(running.errors())
    assert "a process that loads photos died: DataLoader worker" in line
    assert f"The last whole state is {states(out)[-1]}: --resume" in line
    whole_states(out, 1, 2)
    assert run(recipe, out, "--resume") == 0
    same_run(out, undisturbed)


@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("train", 1), ("val", 0)])
def test_a_photo_that_cannot_be_read_is_named(
    split: str, workers: int, references: Path, tmp_path: Path
) -> None:
    photo = open_references(references.parent / "prepared").split(split)[0].photo.path
    content, out = photo.read_bytes(), tmp_path / "out"
    try:
        photo.write_bytes(b"no picture")
        running = Started(references, out, f"workers={workers}", "save_every=2")
        assert running.wait() == 2, running.errors()
    finally:
        photo.write_bytes(content)
    line = last_line(running.errors())
    assert line.startswith(f"error: {photo} should be a picture, but cannot be decoded")
    if split == "val":
        assert f"The last whole state is {out}/state-00000003.safetensors: --resume" in line


# --- other recipes ---


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        (["epochs=4"], "epochs: 2, now 4"),
        (["precision=bfloat16"], "precision: 'float32', now 'bfloat16'"),
        (
            ["seed=1", "learning_rate=1.0e-3", "workers=1"],
            "learning_rate: 0.0006, now 0.001, seed: 0, now 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_going_on_by_another_recipe_is_refused_with_the_differences(
    overrides: list[str],
    differences: str,
    recipe: Path,
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(capsys, recipe, undisturbed, "--resume", *overrides)
    assert f"state-00000008.safetensors: of another recipe ({differences})" in line


def test_what_changes_no_batch_and_no_loss_may_differ(
    recipe: Path, undisturbed: Path, stopped: Path
) -> None:
    others = ["workers=1", "keep=1", "log_every=3", "save_every=3", "validate_every=2"]
    moved = shutil.copytree(recipe.parent / "data", stopped.parent / "moved")
    assert run(recipe, stopped, "--resume", *others, f"data={moved}") == 0
    assert [path.name for path in states(stopped)] == state_names(8)
    same_tensors(states(stopped)[-1], states(undisturbed)[-1])
    assert steps(stopped) == {step: steps(undisturbed)[step] for step in (1, 2, 3, 4, 6)}


def test_going_on_with_other_phrases_is_refused(
    stopped: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = recipe.parent / "data" / "expressions_written_train.json"
    other = shutil.copytree(written.parent, tmp_path / "other") / written.name
    other.write_text(written.read_text().replace("car over there", "car there"))
    line = refused(capsys, recipe, stopped, "--resume", f"data={other.parent}")
    assert "state-00000004.safetensors: of other data than the 4 photos with" in line


def test_going_on_with_another_outline_is_refused(
    stopped: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(recipe.parent / "data", tmp_path / "other")
    labels = json.loads((data / "instances_train.json").read_text())
    outline = labels["annotations"][0]["segmentation"][0]
    outline[0] += 3
    (data / "instances_train.json").write_text(json.dumps(labels))
    line = refused(capsys, recipe, stopped, "--resume", f"data={data}")
    assert "state-00000004.safetensors: of other data than the 4 photos with" in line


def test_the_best_counts_anew_where_others_are_judged_by(
    stopped: Path, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(recipe.parent / "data", tmp_path / "other")
    path = data / "expressions_written_val.json"
    path.write_text(path.read_text().replace("car", "auto"))
    read = read_recipe(recipe, ["save_every=2", f"data={data}"])
    trainer = Trainer(read, build_data(read), torch.device("cpu"))
    trainer.load(stopped / state_names(4)[0])
    assert trainer.best == -1.0
    assert "judged by other samples than now, so the best counts anew" in caplog.text
    same = read_recipe(recipe, ["save_every=2"])
    trainer = Trainer(same, build_data(same), torch.device("cpu"))
    trainer.load(stopped / state_names(4)[0])
    assert trainer.best > 0


def test_going_on_with_other_references_is_refused(
    references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted(4):
        run(references, tmp_path / "out")
    tree = write_tree(tmp_path, "grefcoco")
    tree.refs = [ref for ref in tree.refs if ref["ref_id"] != tree.refs[0]["ref_id"]]
    tree.save()
    prepare(tmp_path, "grefcoco", tmp_path / "prepared")
    line = refused(
        capsys, references, tmp_path / "out", "--resume", f"data={tmp_path / 'prepared'}"
    )
    assert "state-00000003.safetensors: of other data than the 11 references of grefcoco" in line


def test_going_on_with_another_vocabulary_is_refused(
    undisturbed: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.safetensors"
    from_start = [f"start_from={start}", "pretrained=null"]
    kept = checkpoint.load(undisturbed / "best.safetensors")
    checkpoint.save(start, kept.model, kept.tokenizer, {})
    with interrupted(5):
        run(recipe, tmp_path / "out", *from_start)
    about = json.loads(kept.tokenizer.to_json())
    ids = about["model"]["vocab"]
    ids["car</w>"], ids["dog</w>"] = ids["dog</w>"], ids["car</w>"]
    checkpoint.save(start, kept.model, Tokenizer.from_json(json.dumps(about)), {})
    line = refused(capsys, recipe, tmp_path / "out", "--resume", *from_start)
    assert "state-00000004.safetensors: of another vocabulary" in line


def test_a_state_that_is_damaged_is_refused_by_its_name(
    recipe: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = states(stopped)[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    line = refused(capsys, recipe, stopped, "--resume")
    assert line.startswith(f"error: {newest}: damaged")
    assert "The last whole state" not in line


# --- logs that were cut short ---


@pytest.mark.parametrize("tail", ['{"step": 5, "epo', '{"step": 4}', "\0\0\0", "\n\n", "5\n[6]\n"])
def test_a_log_that_was_cut_short_is_mended(
    tail: str, recipe: Path, undisturbed: Path, stopped: Path
) -> None:
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    # The last of the lines is of the fifth step, after the state.
    (stopped / "log.jsonl").write_text("".join(lines[:-1]) + tail)
    assert run(recipe, stopped, "--resume") == 0
    mended = [record for record in figures(stopped) if record != {"step": 4}]
    assert mended == figures(undisturbed)
