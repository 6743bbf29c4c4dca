"""Training end to end on made-up scenes: it learns, stops, goes on, and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from cris_edge.photo import as_photo
from tests.scenes import write_folder
from training import checkpoint
from training.predictor import open_segmenter
from training.train import Trainer, main

SIZES = {
    "image_encoder": "clip_resnet",
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
    "absent": 0.5,
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
    "naming": 0.5,
    "workers": 0,
    "log_every": 1,
}
FILES = {
    "best.safetensors", "last.safetensors", "log.jsonl", "sheet-derived.png", "sheet-written.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    path = data.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"data": str(data)}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """The folder of a run of three epochs."""
    out = recipe.parent / "undisturbed"
    assert run(recipe, out) == 0
    return out


def run(recipe: Path, out: Path, *more: str) -> int:
    return main(["--config", str(recipe), "--out", str(out), *more])


def log(out: Path) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def figures(out: Path) -> list[dict[str, Any]]:
    """The log without the time that each epoch took."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in log(out)]


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata())


def same_file(ours: Path, theirs: Path) -> None:
    (tensors, header), (others, heading) = contents(ours), contents(theirs)
    assert header == heading
    assert tensors.keys() == others.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert different == []


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let someone press Control-C in the middle of a step, the first of which is 0."""
    losses = Trainer.losses

    def stop(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if trainer.step == step:
            raise KeyboardInterrupt
        return losses(trainer, batch)

    monkeypatch.setattr(Trainer, "losses", stop)


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, out: Path, *more: str) -> str:
    """Start what must be refused; the line on stderr, after any progress bars."""
    capsys.readouterr()
    assert run(recipe, out, *more) == 2
    *_, line = re.split(r"[\r\n]+", capsys.readouterr().err.rstrip())
    assert line.startswith("error: ")
    return line


# --- what a run leaves ---


def test_a_run_leaves_its_files_whole(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == FILES
    for name in ("sheet-derived.png", "sheet-written.png"):
        assert as_photo(undisturbed / name).shape[1] > 1000


def test_the_log_has_a_line_an_epoch_with_losses_and_figures(undisturbed: Path) -> None:
    records = log(undisturbed)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    for record in records:
        assert set(record) == {"losses", "epoch", "seconds", "val"}
        assert set(record["losses"]) == {"mask", "dice", "which", "naming"}
        assert all(0 < loss < 20 for loss in record["losses"].values())
        assert set(record["val"]) == {"derived", "written"}
        for scores in record["val"].values():
            assert {"count", "mIoU", "oIoU", "Pr@50", "Pr@90"} <= set(scores)
    assert records[0]["val"]["written"]["count"] == 8


def test_the_state_is_kept_with_the_recipe(undisturbed: Path) -> None:
    kept = checkpoint.load(undisturbed / "last.safetensors")
    assert json.loads(kept.metadata["recipe"])["sizes"] == SIZES
    state = json.loads(kept.metadata["state"])
    assert (state["epoch"], state["step"]) == (3, 6)
    kinds = {name.partition(".")[0] for name in kept.extra}
    assert kinds == {"average", "nouns", "optimiser"}
    assert all(torch.isfinite(tensor).all() for tensor in kept.extra.values())


def test_the_best_model_says_what_it_is_and_segments(undisturbed: Path, data: Path) -> None:
    best = undisturbed / "best.safetensors"
    notes = checkpoint.load(best).metadata
    assert "4 photos" in notes["training_data"]
    accuracy = json.loads(notes["accuracy"])
    assert {"split": "val", "metric": "mIoU"}.items() <= accuracy.items()
    record = log(undisturbed)[accuracy["epoch"] - 1]["val"]
    assert accuracy["derived"] == record["derived"]["mIoU"]
    segmenter = open_segmenter(best)
    photo = as_photo(data / "photos" / "scene_0.png")
    result = segmenter.predict(photo, ["the dog"])[0]
    assert result.mask.shape == photo.shape[:2]
    assert 0 < result.score < 1


def test_validation_is_as_often_as_the_recipe_says_and_at_the_end(
    recipe: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path, "validate_every=2") == 0
    assert ["val" in record for record in log(tmp_path)] == [False, True, True]


# --- it learns ---


@pytest.fixture(scope="module")
def learnt(data: Path) -> Path:
    """A longer run of a student with ImageNet's weights."""
    sizes = SIZES | {"image_encoder": "tf_efficientnet_lite0", "input_size": 128, "embed_dim": 64}
    changed = {"pretrained": "imagenet", "sizes": sizes, "data": str(data), "learning_rate": 3e-3}
    often = {"epochs": 24, "photos": 4, "phrases": 4, "train_repeats": 2, "validate_every": 24}
    path = data.parent / "longer.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changed | often), encoding="utf-8")
    assert run(path, data.parent / "learnt") == 0
    return data.parent / "learnt"


def test_every_loss_falls(learnt: Path) -> None:
    first, *_, last = (record["losses"] for record in log(learnt))
    assert sum(last.values()) < 0.4 * sum(first.values())
    assert all(last[name] < first[name] for name in first)


def test_what_was_learnt_is_seen_in_validation_and_in_the_file(learnt: Path, data: Path) -> None:
    scores = log(learnt)[-1]["val"]["derived"]
    # A mask of the whole photo reaches 0.1 here, and no mask 0.
    assert scores["mIoU"] > 0.25
    segmenter = open_segmenter(learnt / "best.safetensors")
    dog, car = segmenter.predict(as_photo(data / "photos" / "scene_0.png"), ["dog", "left car"])
    assert dog.mask[50:70, 58:84].mean() > dog.mask[30:58, 6:46].mean()
    assert car.mask[30:58, 6:46].mean() > car.mask[50:70, 58:84].mean()


# --- stopping and going on ---


@pytest.mark.parametrize("step", [2, 3, 5], ids=["epoch 2 begins", "within", "epoch 3"])
def test_an_interrupted_run_goes_on_as_if_never_stopped(
    step: int,
    recipe: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as stopping:
        interrupt(stopping, step)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
    assert len(log(tmp_path)) == step // 2
    assert run(recipe, tmp_path, "--resume") == 0
    assert figures(tmp_path) == figures(undisturbed)
    for name in ("last.safetensors", "best.safetensors"):
        same_file(tmp_path / name, undisturbed / name)
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_dropout_goes_on_as_if_never_stopped(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "sizes=" + json.dumps(SIZES | {"dropout": 0.3})
    assert run(recipe, tmp_path / "whole", sizes) == 0
    with monkeypatch.context() as stopping:
        interrupt(stopping, 2)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "stopped", sizes)
    assert run(recipe, tmp_path / "stopped", sizes, "--resume") == 0
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")


def test_a_finished_run_resumed_is_left_as_it_is(recipe: Path, undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.iterdir()}
    assert run(recipe, undisturbed, "--resume") == 0
    assert {path: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_equal_seeds_train_equally_and_others_do_not(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path / "again") == 0
    assert figures(tmp_path / "again") == figures(undisturbed)
    assert run(recipe, tmp_path / "other", "seed=1", "epochs=1") == 0
    assert figures(tmp_path / "other")[0]["losses"] != figures(undisturbed)[0]["losses"]


# --- refusals ---


def test_a_second_start_is_refused(
    recipe: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in undisturbed.iterdir()}
    assert "holds a run already: give --resume" in refused(capsys, recipe, undisturbed)
    assert {path: path.read_bytes() for path in undisturbed.iterdir()} == before


@pytest.mark.parametrize("override", ["epochs=4", "learning_rate=1.0e-3"])
def test_going_on_by_another_recipe_is_refused(
    override: str, recipe: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "of another recipe" in refused(capsys, recipe, undisturbed, "--resume", override)


def test_going_on_with_other_words_is_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "data", scenes=2)
    assert run(recipe, tmp_path / "out", f"data={data}", "epochs=1") == 0
    written = data / "expressions_written_train.json"
    entry = {"image_id": 0, "annotation_id": 0, "expressions": ["antediluvian velocipede"]}
    written.write_text(json.dumps([entry]), encoding="utf-8")
    line = refused(capsys, recipe, tmp_path / "out", "--resume", f"data={data}", "epochs=1")
    assert "vocabulary" in line


def test_going_on_from_nothing_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, recipe, tmp_path / "out", "--resume")
    assert "last.safetensors: no such file" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data=/no/such/folder", "/no/such/folder"),
        ("photos=5", "an epoch has 4 photos, fewer than the 5 of one batch"),
        ("epochs=0", "epochs: expected a number from 1 up"),
        ("model=cris_edge_xxl", "is none of"),
        ("pretrained=openai", "CLIP's weights fit"),
        ("pretrained=imagenet", "ImageNet weights are at hand for tf_efficientnet_lite0"),
        ("sizes={image_encoder: no_such_network}", "no_such_network"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_written(
    override: str, words: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, recipe, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, recipe, tmp_path / "file" / "out")


def no_number(trainer: Trainer) -> Tensor:
    return torch.tensor(float("nan"))


def no_gradient(trainer: Trainer) -> Tensor:
    """Nothing added to the loss, with a gradient that is no number."""
    return (0 * trainer.model.neck.c5[0].weight.sum()).sqrt()


@pytest.mark.parametrize("poison", [no_number, no_gradient])
def test_a_loss_that_breaks_down_ends_the_run_before_it_spoils_the_weights(
    poison: Callable[[Trainer], Tensor],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = Trainer.losses

    def broken(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = losses(trainer, batch)
        # In the last step of the second epoch.
        return parts | ({"mask": parts["mask"] + poison(trainer)} if trainer.step == 3 else {})

    monkeypatch.setattr(Trainer, "losses", broken)
    line = refused(capsys, recipe, tmp_path)
    assert "at step 3" in line
    assert "last.safetensors" in line
    kept = checkpoint.load(tmp_path / "last.safetensors")
    assert json.loads(kept.metadata["state"])["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept.model.state_dict().values())
    assert len(log(tmp_path)) == 1


def test_a_learning_rate_beyond_all_measure_is_found_out(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["learning_rate=1.0e+30", "warmup_steps=0", "photos=4", "validate_every=9"]
    assert "at step 1" in refused(capsys, recipe, tmp_path, *wild)
    assert {path.name for path in tmp_path.iterdir()} == {"last.safetensors", "log.jsonl"}


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--config training/configs/cris_edge_s.yaml" in capsys.readouterr().out
