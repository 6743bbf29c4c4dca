"""A made-up world: coloured shapes over real photos, and phrases that tell them apart.

Unlimited, and fixed by (seed, number): the same numbers give the same scene. Colours, shapes and
sizes are few in a scene, so that hardly a word is spare; masks are exact, since they are what is
painted. Made for measuring: whether a model listens can be told in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.coco import Instance, Photo, join
from training.data.samples import Sample
from training.errors import DataError

Picture = NDArray[np.uint8]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (40, 35, 215),
    "yellow": (30, 215, 240),
    "green": (50, 160, 40),
    "blue": (215, 90, 25),
    "white": (245, 245, 245),
}
"""BGR."""
SIZES = {"small": (0.1, 0.115), "big": (0.165, 0.195)}
"""Radii as shares of the root of the picture's area."""
FRAMES = ((256, 256), (256, 208), (208, 256), (256, 192), (240, 256))
"""Widths and heights in pixels."""
CLEAR = 0.07
"""Share of the picture's extent by which one centre must come before another to be called so."""
LARGER = 1.6
"""Ratio of areas from which one thing is called larger than another."""
JUDGED_WORLD = 0
"""Seed of the scenes that models are judged by. No recipe trains on them."""
HELD_OUT = Path(__file__).parents[2] / "samples" / "photos"
"""Photos under those scenes; no recipe of ours trains on them."""
KINDS = {"attributes": 0.4, "order": 0.2, "size": 0.1, "relation": 0.15, "all": 0.15}
"""Kinds of phrases and how often each is said where all are true."""
FIRST_KINDS = {"attributes": 0.7, "order": 0.3}
"""The same for the first epoch of training: what words mean comes first."""
LATER_KINDS = {"attributes": 0.2, "order": 0.35, "size": 0.1, "relation": 0.25, "all": 0.1}
"""And for the other ones: what is hard most of all."""


@dataclass(frozen=True)
class Thing:
    """A shape: `x`, `y`, `radius` in pixels, `turn` in radians; its outline fits the radius."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float

    def outline(self) -> NDArray[np.float64]:
        """Corners (N, 2) in pixels; a circle has 48."""
        if self.shape == "cross":
            return self._placed(_CROSS)
        corners = {"circle": 48, "square": 4, "triangle": 3}[self.shape]
        angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
        angles += np.pi / 4 if self.shape == "square" else 0
        return self._placed(np.stack([np.cos(angles), np.sin(angles)], axis=1))

    def _placed(self, corners: NDArray[np.float64]) -> NDArray[np.float64]:
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        turned = corners @ np.array([[cos, sin], [-sin, cos]])
        return np.asarray(turned * self.radius + (self.x, self.y), np.float64)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The pixels it is painted on: bool (height, width)."""
        canvas = np.zeros((height, width), np.uint8)
        corners = np.round(self.outline() * 16).astype(np.int32)
        return np.asarray(cv2.fillPoly(canvas, [corners], 1, shift=4), bool)


_ARM = 0.3
_CROSS = np.array(
    [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
     (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
) * 0.95  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scene(Photo):
    """A painted photo with its shapes as instances; `path` is a name, no file: `read` paints it."""

    background: Path
    things: tuple[Thing, ...]
    seed: tuple[int, int]

    def read(self) -> Picture:
        """Paint the scene: (height, width, 3) uint8 BGR, always the same."""
        rng = np.random.default_rng((*self.seed, 1))
        picture = _background(self.background, self.width, self.height, rng)
        for thing in self.things:
            inside = thing.mask(self.height, self.width)
            colour = np.array(COLOURS[thing.colour]) * rng.uniform(0.85, 1.0)
            grain = rng.normal(0, 6, (int(inside.sum()), 3))
            picture[inside] = np.clip(colour + grain, 0, 255).astype(np.uint8)
        return picture


def _background(path: Path, width: int, height: int, rng: np.random.Generator) -> Picture:
    """A random part of a photo, at least half of it each way, stretched to the frame."""
    photo = _decoded(path)
    h, w = photo.shape[:2]
    part_w, part_h = int(w * rng.uniform(0.5, 1)), int(h * rng.uniform(0.5, 1))
    x, y = int(rng.integers(w - part_w + 1)), int(rng.integers(h - part_h + 1))
    part = photo[y : y + part_h, x : x + part_w]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=16)
def _decoded(path: Path) -> Picture:
    photo = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if photo is None or min(photo.shape[:2]) < 8:
        raise DataError(f"{path} should be a picture of 8 pixels a side or more")
    return np.asarray(photo, np.uint8)


def find_backgrounds(folder: str | Path) -> list[Path]:
    """The photos of a folder, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in (".jpg", ".png"))
    if not found:
        raise DataError(f"{folder}: expected photos (.jpg, .png) to paint scenes on, found none")
    return found


def make_scene(seed: int, number: int, backgrounds: Sequence[Path]) -> Scene:
    """Scene `number` of the world `seed`: three or four shapes that do not touch."""
    rng = np.random.default_rng((seed, number))
    width, height = FRAMES[int(rng.integers(len(FRAMES)))]
    things = _place(rng, width, height)
    return Scene(
        id=number,
        path=Path(f"scene-{seed}-{number}"),
        width=width,
        height=height,
        person_only=False,
        instances=_instances(things, height, width),
        background=backgrounds[int(rng.integers(len(backgrounds)))],
        things=tuple(things),
        seed=(seed, number),
    )


def _place(rng: np.random.Generator, width: int, height: int) -> list[Thing]:
    shapes = rng.choice(SHAPES, rng.integers(2, 4), replace=False)
    colours = rng.choice(list(COLOURS), rng.integers(2, 4), replace=False)
    unit, wanted = math.sqrt(width * height), rng.integers(3, 5)
    things: list[Thing] = []
    for _ in range(60):
        size = str(rng.choice(list(SIZES)))
        radius = unit * rng.uniform(*SIZES[size])
        thing = Thing(
            str(rng.choice(shapes)),
            str(rng.choice(colours)),
            size,
            float(rng.uniform(radius, width - radius)),
            float(rng.uniform(radius, height - radius)),
            radius,
            float(rng.uniform(-0.2, 0.2)),
        )
        gaps = [math.hypot(t.x - thing.x, t.y - thing.y) - t.radius - radius for t in things]
        if min(gaps, default=1.0) > 0:
            things.append(thing)
        if len(things) == wanted:
            break
    return things


def _instances(things: Sequence[Thing], height: int, width: int) -> tuple[Instance, ...]:
    """What is seen of each: outlines may share a pixel, which is the later thing's."""
    free = np.ones((height, width), bool)
    found: list[Instance] = []
    for index, thing in reversed(list(enumerate(things))):
        mask = thing.mask(height, width) & free
        free &= ~mask
        encoded = dict(rle_codec.encode(np.asfortranarray(mask, np.uint8)))
        x, y, w, h = (float(value) for value in rle_codec.toBbox(encoded))
        box, area = (x, y, x + w, y + h), float(mask.sum())
        found.append(Instance(index, thing.shape, box, area, False, encoded))
    return tuple(reversed(found))


# --- phrases ---

Said = tuple[str, tuple[int, ...]]
"""A phrase, and the places of the things that it means."""


def phrases(scene: Scene, index: int) -> dict[str, list[Said]]:
    """All that can be said of thing `index` and of no other, by kind; kinds may be missing.

    Of kind `all` are phrases that mean several things, this one among them.
    """
    speaker = _Speaker(scene, index)
    unique = {
        "attributes": speaker.attributes(),
        "order": speaker.order(),
        "size": speaker.size(),
        "relation": speaker.relation(),
    }
    found: dict[str, list[Said]] = {
        kind: [(text, (index,)) for text in texts] for kind, texts in unique.items()
    }
    found["all"] = list(speaker.everything())
    return {kind: said for kind, said in found.items() if said}


def draw(
    scene: Scene, count: int, rng: np.random.Generator, kinds: Mapping[str, float] = KINDS
) -> list[Sample]:
    """`count` samples of a scene: its things in turns, each kind of phrase as `kinds` weighs it.

    None where nothing of these kinds can be said of any thing that is true of no other.
    """
    order = [int(i) for i in rng.permutation(len(scene.things))]
    sayable = {}
    for i in order:
        if found := {kind: said for kind, said in phrases(scene, i).items() if kind in kinds}:
            sayable[i] = found
    chosen: list[Sample] = []
    for turn in range(count if sayable else 0):
        found = sayable[list(sayable)[turn % len(sayable)]]
        weights = np.array([kinds[kind] for kind in found])
        kind = str(rng.choice(list(found), p=weights / weights.sum()))
        text, members = found[kind][int(rng.integers(len(found[kind])))]
        target = join([scene.instances[i] for i in members], scene.height, scene.width)
        chosen.append(Sample(scene, target, text, kind, "scenes"))
    return chosen


def scene_samples(
    count: int, seed: int = JUDGED_WORLD, folder: str | Path = HELD_OUT, phrases_each: int = 4
) -> list[Sample]:
    """Samples of `count` scenes, to judge a model by.

    Args:
        count: scenes.
        seed: of the world; another one than was trained on gives scenes never seen.
        folder: photos to paint on.
        phrases_each: samples of each scene.

    Raises:
        DataError: the folder has no photo.
    """
    backgrounds = find_backgrounds(folder)
    samples: list[Sample] = []
    for number in range(count):
        scene = make_scene(seed, number, backgrounds)
        samples += draw(scene, phrases_each, np.random.default_rng((seed, number, 2)))
    return samples


class _Speaker:
    """What is true of one thing of a scene and of no other."""

    def __init__(self, scene: Scene, index: int):
        self.things, self.index = scene.things, index
        self.me = scene.things[index]
        self.extent = (scene.width, scene.height)
        self.areas = [instance.area for instance in scene.instances]

    def attributes(self) -> Iterator[str]:
        """Red circle; small thing."""
        for noun, members in _nouns(self.things, self.me):
            if members == [self.index]:
                yield noun

    def order(self) -> Iterator[str]:
        """Leftmost red thing; lower circle; second cross from the left."""
        for noun, members in _nouns(self.things, self.me):
            for axis, (first, last, start, end) in enumerate(_ENDS):
                place = self._rank(members, axis)
                if place is None or len(members) < 2:
                    continue
                if place in (0, len(members) - 1):
                    side = first if place == 0 else last
                    yield f"{side[len(members) > 2]} {noun}"
                elif place == 1:
                    yield f"second {noun} from the {start}"
                elif place == len(members) - 2:
                    yield f"second {noun} from the {end}"

    def size(self) -> Iterator[str]:
        """Biggest square; smaller thing."""
        mine = self.areas[self.index]
        for noun, members in _nouns(self.things, self.me, sizes=False):
            others = [self.areas[i] for i in members if i != self.index]
            if others and mine >= LARGER * max(others):
                yield f"{'bigger' if len(others) == 1 else 'biggest'} {noun}"
            elif others and LARGER * mine <= min(others):
                yield f"{'smaller' if len(others) == 1 else 'smallest'} {noun}"

    def everything(self) -> Iterator[Said]:
        """All red things; all small circles."""
        for noun, members in _nouns(self.things, self.me):
            if 1 < len(members) < len(self.things):
                yield f"all {_plural(noun)}", tuple(members)

    def relation(self) -> Iterator[str]:
        """Small circle left of the blue square; circle nearest to the white thing."""
        landmarks = [
            (i, noun)
            for i, thing in enumerate(self.things)
            if i != self.index
            for noun, members in _nouns(self.things, thing)
            if members == [i]
        ]
        for noun, members in _nouns(self.things, self.me):
            if len(members) < 2:
                continue
            for i, landmark in landmarks:
                others = [m for m in members if m not in (self.index, i)]
                if others:
                    for words in self._relations(i, others):
                        yield f"{noun} {words} the {landmark}"

    def _relations(self, landmark: int, others: Sequence[int]) -> Iterator[str]:
        for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
            offsets = [self._offset(i, landmark, axis) for i in others]
            mine = self._offset(self.index, landmark, axis)
            if mine < -CLEAR and min(offsets) > 0:
                yield before
            elif mine > CLEAR and max(offsets) < 0:
                yield after
        distances = [self._distance(i, landmark) for i in others]
        if self._distance(self.index, landmark) < 0.6 * min(distances):
            yield "nearest to"

    def _offset(self, index: int, other: int, axis: int) -> float:
        return (_at(self.things[index], axis) - _at(self.things[other], axis)) / self.extent[axis]

    def _distance(self, index: int, other: int) -> float:
        one, two = self.things[index], self.things[other]
        return math.hypot(one.x - two.x, one.y - two.y)

    def _rank(self, members: Sequence[int], axis: int) -> int | None:
        """Members before me along the axis; None where a centre is too close to tell."""
        offsets = [self._offset(i, self.index, axis) for i in members if i != self.index]
        if any(abs(offset) < CLEAR for offset in offsets):
            return None
        return sum(offset < 0 for offset in offsets)


_ENDS = (
    (("left", "leftmost"), ("right", "rightmost"), "left", "right"),
    (("upper", "top"), ("lower", "bottom"), "top", "bottom"),
)
"""Along x, then y: said of the first, of the last (of two, of more), and where counting starts."""


def _at(thing: Thing, axis: int) -> float:
    return thing.x if axis == 0 else thing.y


def _nouns(
    things: Sequence[Thing], me: Thing, sizes: bool = True
) -> Iterator[tuple[str, list[int]]]:
    """Nouns that fit `me` ("small red circle", "red thing", …), each with all that it fits."""
    said: tuple[Callable[[Thing], str], ...] = (_size, _colour, _shape)
    for with_size in (False, True)[: 1 + sizes]:
        for with_colour in (False, True):
            for with_shape in (True, False):
                used = [
                    read
                    for read, wanted in zip(said, (with_size, with_colour, with_shape), strict=True)
                    if wanted
                ]
                words = [read(me) for read in used]
                members = [
                    i for i, t in enumerate(things) if all(read(t) == read(me) for read in used)
                ]
                yield " ".join(words if with_shape else [*words, "thing"]), members


def _size(thing: Thing) -> str:
    return thing.size


def _colour(thing: Thing) -> str:
    return thing.colour


def _shape(thing: Thing) -> str:
    return thing.shape


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def vocabulary() -> list[str]:
    """Texts that hold every word which the phrases use."""
    nouns = [*SHAPES, "thing"]
    words = [*nouns, *(f"all {_plural(noun)}" for noun in nouns)]
    words += [*COLOURS, *SIZES, "the second from", "left right top bottom"]
    words += ["leftmost rightmost upper lower", "bigger biggest smaller smallest"]
    return [*words, "left of right of above below nearest to"]
