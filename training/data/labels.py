"""A photo's labels, drawn where the input shows them."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.coco import Instance, Photo
from training.data.nouns import CATEGORY_INDEX
from training.model.config import THRESHOLD

MASK_STRIDE = 4
"""Input pixels per logit."""
FINER = 4
"""Samples of a cell along an axis."""
CATEGORY_STRIDE = 8
UNKNOWN = -1
OUTLINE = math.log(THRESHOLD) / math.log(0.5)
"""Exponent by which a cell that is half covered has the probability at which a mask ends."""


def _step(side: int) -> float:
    """Input pixels between logits whose outer ones lie on the corners of the input."""
    return (side * MASK_STRIDE - 1) / (side - 1)


class Labels:
    """The labels of one photo, drawn in the input's frame at any stride.

    A stride divides the matrix, which picks the pixels 0, stride, 2 stride … of the input: the
    nearest-neighbour resize of the mask at the input's size. Categories are of the middles of
    cells instead, where features are.
    """

    def __init__(self, photo: Photo, matrix: NDArray[np.float64]) -> None:
        """Prepare to draw; `matrix` is the (2, 3) way from the photo's pixels to the input's."""
        self._photo, self._matrix = photo, matrix
        self._drawn: dict[Instance, NDArray[np.uint8]] = {}

    def mask(self, instance: Instance | None, side: int) -> NDArray[np.float32]:
        """Mask in [0, 1], float32 (side, side): linear from the photo's pixels; None is empty."""
        if instance is None:
            return np.zeros((side, side), np.float32)
        drawn = self._draw(instance) * np.uint8(255)
        warped = self._warp(drawn, side, MASK_STRIDE, cv2.INTER_LINEAR)
        return np.asarray(warped / np.float32(255), np.float32)

    def taught(self, instance: Instance | None, side: int, outlines: str) -> NDArray[np.float32]:
        """What a model is taught of a mask, in [0, 1], float32 (side, side).

        Args:
            instance: None is empty.
            side: of the logits.
            outlines: `published` or `covered`, as in a recipe.
        """
        if outlines == "published":
            return self.mask(instance, side)
        return np.asarray(self.coverage(instance, side) ** np.float32(OUTLINE), np.float32)

    def coverage(self, instance: Instance | None, side: int) -> NDArray[np.float32]:
        """Share of each logit's cell that the mask covers: float32 (side, side); None is empty.

        Cells lie where the way back from logits to photos puts them, corner on corner; the pixels
        that `mask` picks lie up to `MASK_STRIDE` - 1 away from there.
        """
        if instance is None:
            return np.zeros((side, side), np.float32)
        finer = np.array([FINER, FINER, 1])[:, None]
        to_cells = np.vstack([self._matrix / _step(side), [0, 0, 1]])
        to_parts = finer * to_cells
        to_parts[:2, 2] += (FINER - 1) / 2
        drawn = self._draw(instance) * np.uint8(255)
        parts = cv2.warpAffine(drawn, to_parts[:2], (side * FINER, side * FINER))
        cells = cv2.resize(parts, (side, side), interpolation=cv2.INTER_AREA)
        return np.asarray(cells / np.float32(255), np.float32)

    def crowds(self, side: int) -> NDArray[np.bool_]:
        """Crowd regions without the instances outlined in them: bool (side, side)."""
        crowd = self._blank(np.uint8)
        for instance in self._photo.instances:
            if instance.crowd:
                self._paint(crowd, instance, 1)
        if not crowd.any():
            return np.zeros((side, side), bool)
        for instance in self._photo.instances:
            if instance.has_mask and not instance.crowd:
                self._paint(crowd, instance, 0)
        return self._warp(crowd, side, _step(side), cv2.INTER_NEAREST).astype(bool)

    def categories(self, side: int) -> NDArray[np.int64]:
        """Category of each cell's middle, the smaller instance in front: int64 (side, side)."""
        drawn = self._blank(np.int16)
        if self._photo.person_only:
            drawn[:] = UNKNOWN
        # What is only boxed or crowded first, so that outlined instances stand out from it.
        for instance in sorted(
            self._photo.instances, key=lambda i: (i.has_mask and not i.crowd, -i.area)
        ):
            known = instance.has_mask and not instance.crowd
            self._paint(drawn, instance, CATEGORY_INDEX[instance.category] if known else UNKNOWN)
        middle = (1 - 1 / CATEGORY_STRIDE) / 2
        warped = self._warp(drawn, side, CATEGORY_STRIDE, cv2.INTER_NEAREST, middle)
        return warped.astype(np.int64)

    def _draw(self, instance: Instance) -> NDArray[np.uint8]:
        if instance not in self._drawn:
            self._drawn[instance] = instance.mask().view(np.uint8)
        return self._drawn[instance]

    def _blank(self, dtype: type[np.uint8] | type[np.int16]) -> NDArray[Any]:
        return np.zeros((self._photo.height, self._photo.width), dtype)

    def _paint(self, canvas: NDArray[Any], instance: Instance, value: int) -> None:
        if instance.has_mask:
            canvas[self._draw(instance).view(bool)] = value
        else:
            x1, y1, x2, y2 = (round(edge) for edge in instance.box)
            canvas[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = value

    def _warp(
        self, drawn: NDArray[Any], side: int, stride: float, how: int, within: float = 0.0
    ) -> NDArray[Any]:
        """Draw at a stride, each cell by the pixel that lies so far within it, as a share of it."""
        matrix = self._matrix / stride
        matrix[:, 2] -= within
        return np.asarray(cv2.warpAffine(drawn, matrix, (side, side), flags=how))
