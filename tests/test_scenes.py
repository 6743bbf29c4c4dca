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
from pycocotools import mask as rle_codec

from tests.training_run import PLAIN, epochs, refused, run, steps, write_recipe
from training import checkpoint
from training.data import batches
from training.data.batches import build_data
from training.data.mirror import mirror
from training.data.scenes import (
    COLOURS,
    HELD_OUT,
    JUDGED_WORLD,
    KINDS,
    SHAPES,
    SIZES,
    Scene,
    draw,
    find_backgrounds,
    make_scene,
    phrases,
    scene_samples,
    vocabulary,
)
from training.data.vocabulary import student_tokenizer
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


def test_masks_are_what_is_painted(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
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
        "star": 5 * 0.42 * math.sin(math.pi / 5) / math.pi,
        "cross": (4 * 0.6 * 0.7 + 0.36) * 0.95**2 / math.pi,
    }
    assert set(shares) == set(SHAPES)
    found: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for scene in scenes:
        unit = math.sqrt(scene.width * scene.height)
        assert 2 <= len(scene.things) <= 6
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


# --- phrases: an interpreter of our own that looks at masks, not at how scenes are made ---

BEFORE = 0.07
"""Share of the picture by which one thing must come before another for people to agree."""
PIXELS = 2.0
"""By which the middle of a drawn mask may be off."""
ENDS: dict[str, tuple[int, int, bool]] = {
    "left": (0, 1, False), "right": (0, -1, False), "upper": (1, 1, False), "lower": (1, -1, False),
    "leftmost": (0, 1, True), "rightmost": (0, -1, True),
    "top": (1, 1, True), "bottom": (1, -1, True),
}  # fmt: skip
"""Axis, direction, and whether it is said of more than two."""
STARTS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
BY_SIZE = {
    "bigger": (1, False),
    "biggest": (1, True),
    "smaller": (-1, False),
    "smallest": (-1, True),
}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


class Reader:
    """Finds what a phrase means in a scene, or fails where it is not clear."""

    def __init__(self, scene: Scene):
        self.scene = scene
        masks = [instance.mask() for instance in scene.instances]
        self.areas = [int(mask.sum()) for mask in masks]
        self.middles = [tuple(np.argwhere(mask).mean(0)[::-1]) for mask in masks]
        self.extent = (scene.width, scene.height)

    def find(self, text: str) -> int:
        """The thing that is meant."""
        for relation in (*SIDES, "nearest to"):
            noun, said, landmark = text.partition(f" {relation} the ")
            if said:
                return self.related(self.fitting(noun), relation, self.only(landmark))
        first, _, rest = text.partition(" ")
        if first == "second":
            noun, said, start = rest.partition(" from the ")
            assert said
            return self.ordered(self.fitting(noun), *STARTS[start])[1]
        if first in ENDS:
            axis, direction, several = ENDS[first]
            members = self.fitting(rest)
            assert len(members) > 2 if several else len(members) == 2
            return self.ordered(members, axis, direction)[0]
        if first in BY_SIZE:
            return self.by_size(self.fitting(rest), *BY_SIZE[first])
        return self.only(text)

    def fitting(self, noun: str) -> list[int]:
        """What adjectives and noun are true of."""
        words = noun.split()
        assert words[-1] in (*SHAPES, "thing")
        assert len(words) == len(set(words))

        def fits(word: str, i: int) -> bool:
            thing = self.scene.things[i]
            if word in SHAPES:
                return thing.shape == word
            if word in SIZES:
                return thing.size == word
            return thing.colour == word if word in COLOURS else word == "thing"

        return [i for i in range(len(self.areas)) if all(fits(word, i) for word in words)]

    def only(self, noun: str) -> int:
        (one,) = self.fitting(noun)
        return one

    def ordered(self, members: list[int], axis: int, direction: int) -> list[int]:
        """From the nearest to the start on; who is meant must be clear of those beside it."""
        return sorted(members, key=lambda i: direction * self.middles[i][axis])

    def by_size(self, members: list[int], sign: int, several: bool) -> int:
        assert len(members) > 2 if several else len(members) == 2
        first, second, *_ = sorted(members, key=lambda i: -sign * self.areas[i])
        assert abs(math.log(self.areas[first] / self.areas[second])) > math.log(1.5)
        return first

    def related(self, members: list[int], relation: str, landmark: int) -> int:
        members = [i for i in members if i != landmark]
        # Where only one thing is of that name the relation would be idle words.
        assert len(members) > 1
        if relation == "nearest to":
            away = {i: math.dist(self.middles[i], self.middles[landmark]) for i in members}
            first, second, *_ = sorted(members, key=lambda i: away[i])
            assert away[first] < 0.65 * away[second]
            return first
        axis, sign = SIDES[relation]
        beyond = {i: sign * (self.middles[i][axis] - self.middles[landmark][axis]) for i in members}
        first, *others = sorted(members, key=lambda i: -beyond[i])
        assert beyond[first] > BEFORE * self.extent[axis] - PIXELS
        assert all(beyond[other] < PIXELS for other in others)
        return first

    def clear(self, text: str, index: int) -> None:
        """Fail where people could disagree about an order."""
        words = text.split()
        if words[0] not in (*ENDS, "second") or " of the " in text:
            return
        axis = ENDS[words[0]][0] if words[0] in ENDS else STARTS[words[-1]][0]
        noun = text.partition(" ")[2].partition(" from the ")[0]
        for other in set(self.fitting(noun)) - {index}:
            gap = abs(self.middles[index][axis] - self.middles[other][axis])
            assert gap > BEFORE * self.extent[axis] - PIXELS


def all_phrases(scene: Scene) -> list[tuple[str, str, int]]:
    """Kind, text and thing of all that can be said."""
    return [
        (kind, text, index)
        for index in range(len(scene.things))
        for kind, texts in phrases(scene, index).items()
        for text in texts
    ]


def test_every_phrase_means_its_thing_and_no_other(scenes: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    for scene in scenes:
        reader = Reader(scene)
        for kind, text, index in all_phrases(scene):
            assert reader.find(text) == index, (scene.path, text)
            reader.clear(text, index)
            kinds[kind] += 1
            openings[text.split()[0]] += 1
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 100
    # All that the interpreter knows is said somewhere.
    for word in (*ENDS, "second", *BY_SIZE, *COLOURS, *SIZES, *SHAPES):
        assert openings[word] > 0, word


def test_nothing_is_said_twice_in_a_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = [text for _, text, _ in all_phrases(scene)]
        assert len(texts) == len(set(texts))


def test_the_interpreter_knows_what_is_wrong(scenes: list[Scene]) -> None:
    """Phrases with one word changed mean something else, or nothing clear."""
    swapped = {"left": "right", "leftmost": "rightmost", "top": "bottom", "above": "below",
               "small": "big", "bigger": "smaller", "red": "blue", "circle": "square"}  # fmt: skip
    changed = caught = 0
    for scene in scenes[:80]:
        reader = Reader(scene)
        for _, text, index in all_phrases(scene):
            words = [swapped.get(word, word) for word in text.split()]
            if words != text.split():
                changed += 1
                try:
                    caught += reader.find(" ".join(words)) != index
                except (AssertionError, ValueError, IndexError):
                    caught += 1
    assert changed > 300
    # Some words are more than is needed: a big circle may be the only circle.
    assert caught > 0.9 * changed


def test_a_mirrored_scene_is_told_by_mirrored_words(scenes: list[Scene]) -> None:
    told = 0
    for scene in scenes[:80]:
        instances = []
        for instance in scene.instances:
            mask = np.asfortranarray(instance.mask()[:, ::-1].astype(np.uint8))
            instances.append(
                dataclasses.replace(instance, segmentation=dict(rle_codec.encode(mask)))
            )
        reader = Reader(dataclasses.replace(scene, instances=tuple(instances)))
        for _, text, index in all_phrases(scene):
            other = mirror(text)
            assert other is not None
            assert reader.find(other) == index, text
            told += other != text
    assert told > 100


def test_every_word_is_in_the_vocabulary(scenes: list[Scene]) -> None:
    known = {word for text in vocabulary() for word in text.split()}
    tokenizer = student_tokenizer(vocabulary(), first=0)
    texts = {text for scene in scenes for _, text, _ in all_phrases(scene)}
    assert len(texts) > 1000
    used = {word for text in texts for word in text.split()}
    # Whoever changes the phrases changes the vocabulary too.
    assert used == known
    for text in texts:
        ids = tokenizer.encode(text, 17)
        # A token a word, between start and end, and nothing is cut off.
        assert np.count_nonzero(ids) == len(text.split()) + 2
        assert ids.max() == tokenizer.end_id


def test_kinds_are_drawn_as_they_are_weighed(scenes: list[Scene]) -> None:
    counts: Counter[str] = Counter()
    for scene in scenes:
        rng = np.random.default_rng(scene.id)
        samples = draw(scene, 2 * len(scene.things), rng)
        for sample in samples:
            assert sample.instance in scene.instances
            index = scene.instances.index(sample.instance)
            assert sample.text in phrases(scene, index)[sample.kind]
            counts[sample.kind] += 1
        meant = Counter(sample.instance.id for sample in samples)
        # Things take turns.
        assert max(meant.values()) - min(meant.values()) <= 1
    shares = {kind: count / sum(counts.values()) for kind, count in counts.items()}
    assert shares.keys() == KINDS.keys()
    assert all(share > 0.05 for share in shares.values())


def test_scenes_to_judge_by_are_fixed_and_never_trained_on() -> None:
    samples, again = scene_samples(20), scene_samples(20)
    assert [sample.text for sample in samples] == [sample.text for sample in again]
    assert len(samples) == 80
    assert {sample.source for sample in samples} == {"scenes"}
    assert {sample.photo.path.name for sample in samples} == {
        f"scene-{JUDGED_WORLD}-{number}" for number in range(20)
    }
    assert [s.text for s in scene_samples(20, seed=1)] != [sample.text for sample in samples]


# --- what is trained on ---


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
        return list(build_data(read).batches(read, epoch))

    def same(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> bool:
        return all(
            torch.equal(one[name], two[name])
            for one, two in zip(ours, theirs, strict=True)
            for name in one
        )

    usual = items(0)
    assert len(usual) == 2
    for batch in usual:
        assert batch["image"].shape == (4, 3, 64, 64)
        assert batch["tokens"].shape == (12, 17)
        assert batch["masks"].shape == (12, 16, 16)
        assert set(batch["masks"].unique().tolist()) == {0.0, 1.0}
        assert not batch["ignore"].any()
        assert batch["distinct"].unflatten(0, (4, 3)).sum(1).min() >= 2
        assert batch["masks"].flatten(1).any(1).all()
    assert same(usual, items(0, "workers=2"))
    assert not same(usual, items(1))
    assert not same(usual, items(0, "seed=1"))


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
