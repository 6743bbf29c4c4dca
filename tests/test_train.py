"""Training end to end on made-up photos: what a run leaves, that it learns, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from cris_edge.photo import as_photo
from tests.training_run import (
    LOSSES,
    RECIPE,
    SIZES,
    board,
    epochs,
    figures,
    last_line,
    log,
    photos_recipe,
    refused,
    run,
    same_curves,
    states,
    steps,
    write_recipe,
)
from training import checkpoint
from training.objective import Batch, Objective
from training.predictor import open_segmenter
from training.train import main

FILES = {
    "best.safetensors", "state-00000004.safetensors", "state-00000006.safetensors", "log.jsonl",
    "tensorboard", "sheet-derived.png", "sheet-written.png",
}  # fmt: skip
NAMED_LOSSES = LOSSES | {"naming"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos_recipe(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def photo(recipe: Path) -> Path:
    return recipe.parent / "data" / "photos" / "scene_0.png"


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The folder of a run of three epochs of two steps."""
    out = recipe.parent / "whole"
    assert run(recipe, out) == 0
    return out


def kept_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


# --- what a run leaves ---


def test_a_run_leaves_its_files_whole(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    for name in ("sheet-derived.png", "sheet-written.png"):
        assert as_photo(whole / name).shape[1] > 1000


def test_the_log_has_a_line_a_step(whole: Path) -> None:
    records = [record for record in log(whole) if "losses" in record]
    assert [(record["step"], record["epoch"]) for record in records] == [
        (1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2),
    ]  # fmt: skip
    for record in records:
        assert set(record["losses"]) == NAMED_LOSSES
        assert all(0 < loss < 20 for loss in record["losses"].values())
        assert record["photos_per_second"] > 0
        assert 0 < record["waiting"] < 1
        # A process that has torch in memory, and a machine that has no terabyte of it.
        assert 0.1 < record["memory_gib"] < 1000
        assert 0 <= record["learning_rate"] <= RECIPE["learning_rate"]


def test_the_log_has_a_line_an_epoch_with_mean_losses_and_figures(whole: Path) -> None:
    losses = steps(whole)
    assert [(record["step"], record["epoch"]) for record in epochs(whole)] == [
        (2, 1), (4, 2), (6, 3),
    ]  # fmt: skip
    for record in epochs(whole):
        one, two = losses[record["step"] - 1], losses[record["step"]]
        means = {name: pytest.approx((one[name] + two[name]) / 2) for name in NAMED_LOSSES}
        assert record["epoch_losses"] == means
        assert set(record["val"]) == {"derived", "written"}
        for scores in record["val"].values():
            assert {"count", "mIoU", "oIoU", "Pr@50", "Pr@90"} <= set(scores)
        assert record["val"]["written"]["count"] == 8


def test_the_log_is_as_dense_as_the_recipe_says(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path, "log_every=4", "train_repeats=2", "epochs=2") == 0
    assert list(steps(tmp_path)) == [4, 8]
    # The means are of all steps, also of those that have no line.
    assert set(epochs(tmp_path)[0]["epoch_losses"]) == NAMED_LOSSES
    assert epochs(tmp_path)[0]["epoch_losses"] != steps(tmp_path)[4]


def test_tensorboard_shows_the_same_curves_and_the_sheets(whole: Path) -> None:
    same_curves(whole)
    shown = board(whole)
    assert {"losses/which", "val/derived/mIoU", "waiting"} <= set(shown.Tags()["scalars"])
    assert set(shown.Tags()["images"]) == {"sheet-derived", "sheet-written"}
    for name in ("sheet-derived", "sheet-written"):
        pictures = shown.Images(name)
        assert [picture.step for picture in pictures] == [2, 4, 6]
        content = np.frombuffer(pictures[-1].encoded_image_string, np.uint8)
        sheet = as_photo(whole / f"{name}.png")
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert picture is not None
        assert np.array_equal(picture, sheet)


def test_the_state_is_kept_with_the_recipe(whole: Path) -> None:
    kept = checkpoint.load(whole / "state-00000006.safetensors")
    assert json.loads(kept.metadata["recipe"])["sizes"] == SIZES
    state = json.loads(kept.metadata["state"])
    assert (state["epoch"], state["step"], state["sums"]) == (3, 6, {})
    kinds = {name.partition(".")[0] for name in kept.extra}
    assert kinds == {"average", "helpers", "optimiser"}
    assert all(torch.isfinite(tensor).all() for tensor in kept.extra.values())


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["keep=1"], [6]),
        (["keep=5"], [2, 4, 6]),
        (["keep=3", "save_every=1"], [4, 5, 6]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_the_newest_states_are_kept(
    overrides: list[str], kept: list[int], recipe: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path, *overrides, "validate_every=9") == 0
    assert [path.name for path in states(tmp_path)] == [
        f"state-{step:08d}.safetensors" for step in kept
    ]
    for path, step in zip(states(tmp_path), kept, strict=True):
        assert json.loads(checkpoint.load(path).metadata["state"])["step"] == step


def test_the_best_model_says_what_it_is_and_segments(whole: Path, photo: Path) -> None:
    notes = checkpoint.load(whole / "best.safetensors").metadata
    assert "4 photos" in notes["training_data"]
    assert json.loads(notes["recipe"])["epochs"] == 3
    accuracy = json.loads(notes["accuracy"])
    assert {"split": "val", "metric": "mIoU"}.items() <= accuracy.items()
    record = epochs(whole)[accuracy["epoch"] - 1]["val"]
    assert accuracy["derived"] == record["derived"]["mIoU"]
    segmenter = open_segmenter(whole / "best.safetensors")
    picture = as_photo(photo)
    result = segmenter.predict(picture, ["the dog"])[0]
    assert result.mask.shape == picture.shape[:2]
    assert 0 < result.score < 1


def test_a_model_tells_what_the_one_it_started_from_had_learned(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    start = checkpoint.load(whole / "best.safetensors")
    notes = {"training_data": "5 photos of mine", "licence": "research only"}
    path = tmp_path / "start.safetensors"
    checkpoint.save(path, start.model, start.tokenizer, notes)
    assert run(recipe, tmp_path / "out", "epochs=1", f"start_from={path}") == 0
    found = checkpoint.notes(tmp_path / "out" / "best.safetensors")
    assert found["licence"] == "research only"
    assert found["training_data"].startswith("4 photos")
    assert found["training_data"].endswith("; before that: 5 photos of mine")


def test_the_best_epoch_is_kept(whole: Path) -> None:
    def score(record: dict[str, dict[str, dict[str, float]]]) -> float:
        return record["val"]["derived"]["mIoU"] + record["val"]["written"]["mIoU"]

    best = max(epochs(whole), key=score)
    accuracy = json.loads(checkpoint.load(whole / "best.safetensors").metadata["accuracy"])
    assert accuracy["epoch"] == best["epoch"]


def test_validation_is_as_often_as_the_recipe_says_and_at_the_end(
    recipe: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path, "validate_every=2") == 0
    assert ["val" in record for record in epochs(tmp_path)] == [False, True, True]


# --- it learns ---


@pytest.fixture(scope="module")
def learnt(recipe: Path) -> Path:
    """A longer run of a student with ImageNet's weights."""
    sizes = SIZES | {"image_encoder": "tf_efficientnet_lite0", "input_size": 128, "embed_dim": 64}
    often = {"epochs": 32, "photos": 4, "phrases": 4, "train_repeats": 2, "validate_every": 32}
    path = write_recipe(
        recipe.parent / "longer.yaml",
        RECIPE | often,
        pretrained="imagenet",
        sizes=sizes,
        data=str(recipe.parent / "data"),
        learning_rate=3e-3,
    )
    assert run(path, recipe.parent / "learnt") == 0
    return recipe.parent / "learnt"


def test_every_loss_falls(learnt: Path) -> None:
    first, *_, last = (record["epoch_losses"] for record in epochs(learnt))
    assert sum(last.values()) < 0.4 * sum(first.values())
    assert all(last[name] < first[name] for name in first)


def test_what_was_learnt_is_seen_in_validation_and_in_the_file(learnt: Path, photo: Path) -> None:
    scores = epochs(learnt)[-1]["val"]["derived"]
    # A mask of the whole photo reaches 0.1 here, and no mask 0.
    assert scores["mIoU"] > 0.4
    segmenter = open_segmenter(learnt / "best.safetensors")
    dog, car = segmenter.predict(as_photo(photo), ["dog", "left car"])
    assert dog.mask[50:70, 58:84].mean() > dog.mask[30:58, 6:46].mean()
    assert car.mask[30:58, 6:46].mean() > car.mask[50:70, 58:84].mean()


def test_equal_seeds_train_equally_and_others_do_not(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path / "again") == 0
    assert figures(tmp_path / "again") == figures(whole)
    assert run(recipe, tmp_path / "other", "seed=1", "epochs=1") == 0
    assert steps(tmp_path / "other")[1] != steps(whole)[1]


def test_going_on_from_nothing_starts(
    recipe: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(recipe, tmp_path / "out", "--resume") == 0
    assert "no state to go on from" in caplog.text
    assert figures(tmp_path / "out") == figures(whole)


# --- refusals ---


def test_a_second_start_is_refused(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept_files(whole)
    assert "holds a run already: give --resume" in refused(capsys, recipe, whole)
    assert kept_files(whole) == before


def test_a_model_without_its_states_is_not_written_over(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    for state in states(out):
        state.unlink()
    before = kept_files(out)
    for more in ([], ["--resume"]):
        said = refused(capsys, recipe, out, *more)
        assert "holds best.safetensors and no state to go on from" in said
    assert kept_files(out) == before


def test_overrides_may_stand_on_both_sides_of_an_option(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["epochs=1", "--config", str(recipe), "photos=5", "--out", str(tmp_path / "out")]
    assert main([*options, "workers=0"]) == 2
    assert "fewer than the 5 of one batch" in last_line(capsys.readouterr().err)


def test_one_photo_with_one_phrase_is_no_part_of_a_batch(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, recipe, tmp_path / "out", "accumulate=2", "photos=2", "phrases=1")
    assert "take more photos, more phrases, or a smaller accumulate" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data=/no/such/folder", "/no/such/folder"),
        ("photos=5", "an epoch has 4 photos, fewer than the 5 of one batch"),
        ("accumulate=4", "a batch of 2 cannot be shared by 1 processes in 4 parts each"),
        ("epochs=0", "epochs: expected a number from 1 up"),
        ("kind=videos", "'videos' is none of references, photos, scenes"),
        ("model=cris_edge_xxl", "is none of"),
        ("pretrained=openai", "CLIP's weights fit"),
        ("pretrained=imagenet", "ImageNet weights are at hand for tf_efficientnet_lite0"),
        ("sizes={image_encoder: no_such_network}", "no_such_network"),
        (
            "sizes={image_encoder: tf_efficientnet_lite0, image_blocks: 3}",
            "sizes: image_blocks: expected 0, or 6",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_written(
    override: str, words: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, recipe, tmp_path / "out", override)
    assert words in line
    assert "--resume" not in line
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, recipe, tmp_path / "file" / "out")


def no_number(objective: Objective) -> Tensor:
    return torch.tensor(float("nan"))


def no_gradient(objective: Objective) -> Tensor:
    """Nothing added to the loss, with a gradient that is no number."""
    return (0 * cast("Tensor", objective.model.neck.c5[0].weight).sum()).sqrt()


@pytest.mark.parametrize("poison", [no_number, no_gradient])
def test_a_loss_that_breaks_down_ends_the_run_before_it_spoils_the_weights(
    poison: Callable[[Objective], Tensor],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forward, calls = Objective.forward, []

    def broken(objective: Objective, batch: Batch) -> dict[str, Tensor]:
        losses = forward(objective, batch)
        calls.append(batch)
        # In the last step of the second epoch.
        return losses | ({"mask": losses["mask"] + poison(objective)} if len(calls) == 4 else {})

    monkeypatch.setattr(Objective, "forward", broken)
    line = refused(capsys, recipe, tmp_path, "save_every=1")
    assert "at step 3" in line
    assert "learning_rate" in line
    assert f"The last whole state is {tmp_path / 'state-00000003.safetensors'}" in line
    assert [path.name for path in states(tmp_path)][-1] == "state-00000003.safetensors"
    kept = checkpoint.load(states(tmp_path)[-1])
    assert all(torch.isfinite(tensor).all() for tensor in kept.model.state_dict().values())
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 2, 3]


def test_a_learning_rate_beyond_all_measure_is_found_out(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["learning_rate=1.0e+30", "warmup_steps=0", "photos=4", "validate_every=9"]
    assert "at step 1" in refused(capsys, recipe, tmp_path, *wild)
    assert [path.name for path in states(tmp_path)] == ["state-00000001.safetensors"]
    assert not (tmp_path / "best.safetensors").exists()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--config training/configs/cris_edge_s.yaml" in capsys.readouterr().out
