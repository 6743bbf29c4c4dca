"""The made-up world: always the same, masks exact, and every phrase true of its thing alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.training_run import PLAIN, epochs, refused, run, steps, write_recipe
from training import checkpoint
from training.data import batches
from training.data import scenes as world
from training.data.batches import build_data
from training.data.scene_phrases import phrases, scene_samples
from training.data.scenes import (
    COLOURS,
    HELD_OUT,
    JUDGED_WORLD,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    find_backgrounds,
    make_scene,
)
from training.errors import DataError
from training.recipe import read_recipe

BACKGROUNDS = find_backgrounds(HELD_OUT)
COUNT = 250


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(7, number, BACKGROUNDS) for number in range(COUNT)]


# --- pictures ---


def test_equal_numbers_make_the_same_scene_and_others_another() -> None:
    one, again = make_scene(3, 5, BACKGROUNDS), make_scene(3, 5, BACKGROUNDS)
    assert np.array_equal(one.read(), again.read())
    assert np.array_equal(one.read(), one.read())
    assert one.things == again.things
    assert [phrases(one, i) for i in range(3)] == [phrases(again, i) for i in range(3)]
    for other in (make_scene(4, 5, BACKGROUNDS), make_scene(3, 6, BACKGROUNDS)):
        assert other.things != one.things
        assert not np.array_equal(other.read(), one.read())


@pytest.fixture
def touching(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene whose shapes lie one on the other, by more than the pixel that outlines may share."""
    things = [
        Thing("square", "red", "big", 100.0, 100.0, 40.0, 0.1),
        Thing("circle", "blue", "small", 130.0, 110.0, 20.0, 0.0),
        Thing("cross", "white", "small", 105.0, 130.0, 20.0, 0.0),
    ]
    monkeypatch.setattr(world, "_place", lambda *_: things)
    return make_scene(7, 0, BACKGROUNDS)


def test_masks_are_what_is_painted(scenes: list[Scene], touching: Scene) -> None:
    for scene in [touching, *scenes[:60]]:
        picture = scene.read()
        assert picture.shape == (scene.height, scene.width, 3)
        assert picture.dtype == np.uint8
        bare = dataclasses.replace(scene, things=(), instances=()).read()
        covered = np.zeros(picture.shape[:2], int)
        for thing, instance in zip(scene.things, scene.instances, strict=True):
            mask = instance.mask()
            assert mask.any()
            assert instance.area == mask.sum()
            rows, columns = np.nonzero(mask)
            assert instance.box == (
                columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
            )  # fmt: skip
            covered += mask
            # Grain aside, each is of one colour, and of no other's.
            mean = picture[mask].mean(0)
            distances = {name: np.abs(mean - bgr).max() for name, bgr in COLOURS.items()}
            assert min(distances, key=lambda name: float(distances[name])) == thing.colour
            assert np.any(picture[mask] != bare[mask], axis=1).mean() > 0.98
        assert covered.max() == 1
        assert np.array_equal(picture[covered == 0], bare[covered == 0])


def test_shapes_have_their_areas_and_keep_apart(scenes: list[Scene]) -> None:
    # Of the circle around them.
    shares = {
        "circle": 1.0,
        "square": 2 / math.pi,
        "triangle": 3 * math.sqrt(3) / 4 / math.pi,
        "cross": (4 * 0.6 * 0.7 + 0.36) * 0.95**2 / math.pi,
    }
    assert set(shares) == set(SHAPES)
    found: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for scene in scenes:
        unit = math.sqrt(scene.width * scene.height)
        assert len(scene.things) >= 2
        for i, thing in enumerate(scene.things):
            low, high = SIZES[thing.size]
            assert low * unit <= thing.radius <= high * unit
            assert thing.radius <= thing.x <= scene.width - thing.radius
            assert thing.radius <= thing.y <= scene.height - thing.radius
            found[thing.shape].append(scene.instances[i].area / (math.pi * thing.radius**2))
            for other in scene.things[:i]:
                apart = math.hypot(thing.x - other.x, thing.y - other.y)
                assert apart > thing.radius + other.radius
    for shape, ratios in found.items():
        assert len(ratios) > 50
        # Pixels on the outline are painted too.
        assert np.mean(ratios) / shares[shape] == pytest.approx(1.06, abs=0.06), shape


def test_things_differ_within_scenes_and_between(scenes: list[Scene]) -> None:
    for read in (lambda t: t.shape, lambda t: t.colour, lambda t: t.size):
        counts = Counter(read(thing) for scene in scenes for thing in scene.things)
        assert min(counts.values()) > 0.4 * sum(counts.values()) / len(counts)
    assert Counter(len(scene.things) for scene in scenes)[3] > 10
    assert len({scene.background for scene in scenes}) == len(BACKGROUNDS)


# --- what is judged by, and what is trained on ---


def test_scenes_to_judge_by_are_fixed_and_never_trained_on() -> None:
    samples, again = scene_samples(20), scene_samples(20)
    assert [sample.text for sample in samples] == [sample.text for sample in again]
    assert len(samples) == 80
    assert {sample.source for sample in samples} == {"scenes"}
    assert {sample.photo.path.name for sample in samples} == {
        f"scene-{JUDGED_WORLD}-{number}" for number in range(20)
    }
    assert [s.text for s in scene_samples(20, seed=1)] != [sample.text for sample in samples]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    return write_recipe(
        folder / "recipe.yaml",
        PLAIN | {"kind": "scenes", "scenes": 8, "epochs": 2, "phrases": 3, "which": 1.0},
        data=str(HELD_OUT),
    )


@pytest.fixture
def few_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "JUDGED_SCENES", 4)


@pytest.mark.usefixtures("few_judged")
def test_items_differ_between_epochs_and_worlds_and_nothing_else(recipe: Path) -> None:
    def items(epoch: int, *overrides: str) -> list[dict[str, torch.Tensor]]:
        read = read_recipe(recipe, overrides)
        found = list(build_data(read).batches(read))
        assert len(found) == 4
        return found[2 * epoch : 2 * epoch + 2]

    def same(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> bool:
        return all(
            torch.equal(one[name], two[name])
            for one, two in zip(ours, theirs, strict=True)
            for name in one
        )

    usual = items(0)
    for batch in usual:
        assert batch["image"].shape == (4, 64, 64, 3)
        assert batch["tokens"].shape == (12, 17)
        assert batch["masks"].shape == (12, 16, 16)
        assert (batch["masks"].min(), batch["masks"].max()) == (0, 1)
        assert not batch["ignore"].any()
        assert batch["distinct"].any()
        assert batch["masks"].flatten(1).any(1).all()
    assert same(usual, items(0, "workers=2"))
    assert not same(usual, items(1))
    assert not same(usual, items(0, "seed=1"))
    dataset = build_data(read_recipe(recipe)).dataset
    texts = [dataset[epoch, 0, 0]["texts"] for epoch in (0, 1, 2, 0)]
    # The same place of an epoch is another scene in each.
    assert texts[0] == texts[3]
    assert len({tuple(said) for said in texts}) == 3


def test_a_student_of_scenes_is_trained_and_judged(
    recipe: Path, tmp_path: Path, few_judged: None
) -> None:
    out = tmp_path / "out"
    assert run(recipe, out) == 0
    assert list(steps(out)) == [1, 2, 3, 4]
    assert all(set(losses) == {"mask", "which"} for losses in steps(out).values())
    for record in epochs(out):
        assert record["val"]["scenes"]["count"] == 16
    notes = checkpoint.load(out / "best.safetensors").metadata
    assert notes["training_data"] == "made-up scenes over 7 photos"
    assert (out / "sheet-scenes.png").is_file()


def test_a_folder_without_photos_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="expected photos"):
            find_backgrounds(folder)
        line = refused(capsys, recipe, tmp_path / "out", f"data={folder}")
        assert f"{folder}: expected photos (.jpg, .png)" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_judged")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no photo"),
        lambda path: cv2.imwrite(str(path), np.zeros((7, 100, 3), np.uint8)),
    ],
    ids=["no picture", "too small"],
)
def test_a_background_that_is_none_is_named(
    write: Callable[[Path], object],
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "broken.png")
    line = refused(capsys, recipe, tmp_path / "out", f"data={tmp_path}")
    assert line.startswith(f"error: {tmp_path}/broken.png should be a picture")
