"""Cut-outs in other colours: twins that nothing but their colour tells apart."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.clothes import upper_body
from training.data.colours import alike, dominant, smooth_colours
from training.data.cutouts import Cutout

PAINTABLE = frozenset((
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "fire hydrant", "bench", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "snowboard", "sports ball", "kite", "skateboard", "surfboard", "bottle", "cup", "bowl", "chair",
    "couch", "mouse", "remote", "cell phone", "refrigerator", "vase", "teddy bear", "toothbrush",
))  # fmt: skip
"""What comes in any colour."""

_PAINTS = {
    "black": (0, 20, 4, 44), "white": (0, 10, 168, 255), "red": (1, 205, 70, 225),
    "orange": (14, 215, 130, 250), "yellow": (28, 190, 125, 250), "green": (60, 150, 55, 195),
    "blue": (111, 180, 60, 215), "purple": (140, 140, 70, 200), "pink": (166, 110, 185, 250),
}  # fmt: skip
"""Hue in OpenCV's half degrees, saturation, and between what values light and shade then lie."""
_SKIN = (17, 40, 175)
"""Hues below the first are skin's, where the saturation is between the others."""


def in_colours(cutout: Cutout, count: int, rng: np.random.Generator) -> list[Cutout]:
    """The cut-out in colours that cannot be taken for each other.

    Of a person the clothes of the upper body are painted, of anything else the whole.

    Args:
        cutout: of a `PAINTABLE` category.
        count: of colours.
        rng: draws them.

    Returns:
        `count` cut-outs; none where the colours would not be plain to see.
    """
    hsv = np.asarray(cv2.cvtColor(cutout.bgra[..., :3], cv2.COLOR_BGR2HSV), np.uint8)
    part = _part(cutout, hsv)
    painted: list[tuple[str, Cutout]] = []
    for colour in (str(name) for name in rng.permutation(list(_PAINTS))):
        if any(alike(colour, other) for other, _ in painted):
            continue
        bgra = _painted(cutout.bgra, hsv[..., 2], part, colour)
        if dominant(smooth_colours(bgra[..., :3])[part]) == colour:
            own = None if cutout.category == "person" else colour
            painted.append((colour, dataclasses.replace(cutout, bgra=bgra, colour=own)))
        if len(painted) == count:
            return [twin for _, twin in painted]
    return []


def _part(cutout: Cutout, hsv: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels that are painted."""
    inside = cutout.bgra[..., 3] > 127
    if cutout.category != "person":
        return inside
    rows = upper_body(*inside.shape)
    part = np.zeros_like(inside)
    if rows is not None:
        hue, saturation, _ = cv2.split(hsv)
        skin = (hue < _SKIN[0]) & (saturation > _SKIN[1]) & (saturation < _SKIN[2])
        part[rows] = (inside & ~skin)[rows]
    return part


def _painted(
    bgra: NDArray[np.uint8], value: NDArray[np.uint8], part: NDArray[np.bool_], colour: str
) -> NDArray[np.uint8]:
    """The picture with one colour on a part of it, light and shade as `value` has them."""
    hue, saturation, darkest, lightest = _PAINTS[colour]
    shade = value.astype(np.float32) / np.float32(255)
    hsv = np.empty((*part.shape, 3), np.uint8)
    hsv[..., 0], hsv[..., 1] = hue, saturation
    hsv[..., 2] = np.round(darkest + shade * (lightest - darkest))
    painted = bgra.copy()
    painted[part, :3] = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[part]
    return painted
