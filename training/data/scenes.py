"""A made-up world: coloured shapes over real photos.

Unlimited, and fixed by (seed, number): the same numbers give the same scene. Colours, shapes and
sizes are few in a scene, so that hardly a word is spare (training/data/scene_phrases.py); masks are
exact, since they are what is painted. Made for measuring: whether a model listens can be told in
minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.coco import Instance, Photo
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
JUDGED_WORLD = 0
"""Seed of the scenes that models are judged by. No recipe trains on them."""
HELD_OUT = Path(__file__).parents[2] / "samples" / "photos"
"""Photos under those scenes; nothing is painted on them to train on."""


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
