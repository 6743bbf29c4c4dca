"""The result for one phrase: its mask, and what can be read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import InputError
from cris_edge.photo import Photo, as_photo

# BGR, far apart in hue and readable on most photos.
COLOURS = ((60, 60, 235), (235, 140, 30), (60, 190, 60), (30, 190, 240), (200, 70, 200))
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a phrase means in a photo.

    Attributes:
        phrase: as it was given.
        probability: (H, W) float32 in [0, 1], at the photo's own size.
        threshold: above it a pixel belongs to the mask.
    """

    phrase: str
    probability: NDArray[np.float32] = field(repr=False)
    threshold: float

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool: pixels whose probability is above the threshold."""
        return self.probability > self.threshold

    @property
    def coverage(self) -> float:
        """Share of the photo that the mask covers, in [0, 1]."""
        return float(self.mask.mean())

    @cached_property
    def score(self) -> float:
        """Mean probability over the mask; over an empty mask, the photo's highest probability."""
        chosen = self.probability[self.mask]
        return float(chosen.mean() if chosen.size else self.probability.max())

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """The mask's (x1, y1, x2, y2) in pixels, x2 and y2 exclusive; None when it is empty."""
        rows, columns = self.mask.any(axis=1).nonzero()[0], self.mask.any(axis=0).nonzero()[0]
        if not rows.size:
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def overlay(self, photo: object, colour: Colour = COLOURS[0], opacity: float = 0.45) -> Photo:
        """The photo with the mask tinted and outlined, and the phrase written above.

        Args:
            photo: what was given to `predict`, or another of the same size.
            colour: BGR, 0 to 255.
            opacity: of the tint, in [0, 1].

        Returns:
            (H, W, 3) uint8 BGR, a new array.

        Raises:
            InputError: the photo cannot be used, or is of another size.
        """
        return draw(photo, [self], [colour], opacity)


def draw(
    photo: object,
    results: Sequence[Segmentation],
    colours: Sequence[Colour] = COLOURS,
    opacity: float = 0.45,
) -> Photo:
    """One photo with the masks of several phrases, each in a colour of its own.

    Returns:
        (H, W, 3) uint8 BGR, a new array.

    Raises:
        InputError: the photo cannot be used, or is of another size than a mask, or there are no
            colours.
    """
    if not colours:
        raise InputError("colours: expected one at least, (blue, green, red)")
    canvas: Photo = as_photo(photo).copy()
    paired = [(result, colours[i % len(colours)]) for i, result in enumerate(results)]
    for result, colour in paired:
        if result.mask.shape != canvas.shape[:2]:
            raise InputError(
                f"the mask is {result.mask.shape}, the photo {canvas.shape[:2]} (height, width)"
            )
        tint(canvas, result.mask, colour, opacity)
    corner = 0
    for result, colour in paired:
        corner = _label(canvas, result, colour, corner)
    return canvas


def tint(canvas: Photo, mask: NDArray[np.bool_], colour: Colour, opacity: float = 0.45) -> None:
    """Tint and outline a mask in place."""
    # What each of 256 values becomes: arithmetic on the pixels would take many times their memory.
    values = np.arange(256)[:, None] * (1 - opacity) + np.array(colour) * opacity
    tinted = values.round().astype(np.uint8)
    for channel in range(3):
        plane = canvas[..., channel]
        plane[mask] = tinted[plane[mask], channel]
    width = max(1, round(min(canvas.shape[:2]) / 250))
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, (255, 255, 255), width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)


def _label(canvas: Photo, result: Segmentation, colour: Colour, corner: int) -> int:
    """Write the phrase above its mask, or down the left border where the mask is empty."""
    height, width = canvas.shape[:2]
    # OpenCV's font knows ASCII alone.
    text = result.phrase.encode("ascii", "replace").decode()
    text = text if result.box else f"{text}: nothing found"
    scale = max(0.3, min(height, width) / 700)
    thickness = max(1, round(scale * 1.6))
    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(2, h // 3)
    x, y = (result.box[0], result.box[1] - h - 3 * pad) if result.box else (0, corner)
    x, y = max(0, min(x, width - w - 2 * pad)), max(0, min(y, height - h - below - 2 * pad))
    end = (x + w + 2 * pad, y + h + below + 2 * pad)
    cv2.rectangle(canvas, (x, y), end, colour, cv2.FILLED)
    place = (x + pad, y + h + pad)
    cv2.putText(
        canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness,
        cv2.LINE_AA,
    )  # fmt: skip
    return corner if result.box else end[1]
