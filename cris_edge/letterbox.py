"""Photo to model input and back: the only copy, for training, calibration, checks and runtime.

The geometry is that of the CRIS authors' code: scaled to fit, centred, cubic interpolation, border
in the mean colour; on the way back a bicubic resize with aligned corners, then a cubic warp.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

CUBIC_A = -0.75
"""The cubic convolution's parameter, as torch and OpenCV choose it."""
ALONE, WIDTH = 2**18, 128
"""Multiply-adds of a product that OpenBLAS leaves to one thread, and columns of one."""


@dataclass(frozen=True)
class Letterbox:
    """How a photo of any size becomes a square input, and a mask comes back.

    Attributes:
        size: side of the square in pixels.
        mean: of the RGB channels, in units of [0, 1]: the border's colour.
    """

    size: int
    mean: tuple[float, float, float]

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """The (2, 3) affine matrix from pixels of the photo to pixels of the input."""
        return _affine(*self._corners(height, width))

    def inverse(self, height: int, width: int) -> NDArray[np.float64]:
        """The (2, 3) affine matrix from pixels of the input to pixels of the photo."""
        photo, square = self._corners(height, width)
        return _affine(square, photo)

    def _corners(self, height: int, width: int) -> tuple[Float, Float]:
        """Three corners in the photo and in the input.

        As float32, because the authors' are: a cubic warp rounds to whole colours, and there the
        last digit of the matrix shows.
        """
        scale = min(self.size / height, self.size / width)
        w, h = width * scale, height * scale
        left, top = (self.size - w) / 2, (self.size - h) / 2
        photo = np.array([[0, 0], [width, 0], [0, height]], np.float32)
        square = np.array([[left, top], [w + left, top], [left, h + top]], np.float32)
        return photo, square

    def warp(self, photo: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR to (size, size, 3) uint8 RGB by any (2, 3) photo to input matrix."""
        border = tuple(255.0 * value for value in reversed(self.mean))
        warped = cv2.warpAffine(
            photo, matrix, (self.size, self.size), flags=cv2.INTER_CUBIC, borderValue=border
        )
        # Of the square, which as a rule is smaller than the photo.
        return np.asarray(cv2.cvtColor(warped, cv2.COLOR_BGR2RGB), np.uint8)

    def frame(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR to the model's input: (size, size, 3) uint8 RGB, letterboxed."""
        return self.warp(photo, self.matrix(*photo.shape[:2]))

    def mask(self, mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Float:
        """(H, W) mask, false or 0 outside, to (size, size) float32 in [0, 1]: linear, border 0."""
        warped = cv2.warpAffine(
            (np.asarray(mask) != 0).astype(np.float32),
            self.matrix(*mask.shape[:2]),
            (self.size, self.size),
            flags=cv2.INTER_LINEAR,
            borderValue=0,
        )
        return np.asarray(warped, np.float32)

    def restore(self, logits: Float, height: int, width: int) -> Float:
        """Logits at the model's stride to probabilities at the photo's own size.

        Args:
            logits: (h, w) float32, the model's result for one phrase.
            height, width: of the photo.

        Returns:
            (height, width) float32 in [0, 1].
        """
        # The sigmoid, in a form that no logit makes overflow.
        probability = np.exp(-np.logaddexp(np.float32(0), -logits.astype(np.float32)))
        inverse = self.inverse(height, width)
        rows = _way_back(probability.shape[0], self.size, height, *inverse[1, 1:])
        columns = _way_back(probability.shape[1], self.size, width, *inverse[0, ::2])
        restored: Float = _product(_product(rows, probability), columns.T)
        # Cubic interpolation overshoots at edges.
        np.clip(restored, 0, 1, out=restored)
        return restored


def _affine(source: Float, target: Float) -> NDArray[np.float64]:
    return np.asarray(cv2.getAffineTransform(source, target), np.float64)


@functools.lru_cache(maxsize=32)
def _way_back(logits: int, size: int, pixels: int, scale: float, offset: float) -> Float:
    """Weights (pixels, logits) of the whole way from logits to a photo along one axis.

    Resize and warp are linear and treat the axes apart, so they are one matrix an axis: the photo
    is reached in one product, however large the square between.
    """
    weights = _product(cubic_warp(size, pixels, scale, offset), cubic_resize(logits, size))
    single = weights.astype(np.float32)
    single.setflags(write=False)
    return single


def _product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """`left @ right` on one thread, of (rows, inner) and (inner, columns) of the same type.

    numpy's OpenBLAS computes a large product on all cores, and for tens of milliseconds after it
    its threads keep them busy waiting for another: an engine that runs next takes up to twice as
    long. Small products it computes alone.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    height = min(rows, max(1, ALONE // (inner * WIDTH)))
    whole = rows - rows % height
    result = np.empty((rows, columns), left.dtype)
    for start in range(0, columns, WIDTH):
        part, into = right[:, start : start + WIDTH], result[:, start : start + WIDTH]
        blocks = (-1, height, part.shape[1])
        np.matmul(left[:whole].reshape(-1, height, inner), part, out=into[:whole].reshape(blocks))
        if whole < rows:
            # The last rows, some of them again: for a single one numpy asks BLAS for less.
            np.matmul(left[-height:], part, out=into[-height:])
    return result


def cubic_resize(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Weights (outputs, inputs) of a bicubic resize with aligned corners; the border repeats."""
    place = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    whole = np.floor(place).astype(int)
    taps, weights = _cubic(whole, place - whole)
    matrix = np.zeros((outputs, inputs))
    np.add.at(matrix, (np.arange(outputs)[:, None], np.clip(taps, 0, inputs - 1)), weights)
    return matrix


def cubic_warp(inputs: int, outputs: int, scale: float, offset: float) -> NDArray[np.float64]:
    """Weights (outputs, inputs) of a cubic warp along one axis; what lies beyond the border is 0.

    As OpenCV 5 has it; OpenCV 4 looks weights up at 32 places between two pixels.

    Args:
        inputs, outputs: pixels.
        scale, offset: an input's place times `scale` plus `offset` is an output's.
    """
    place = (np.arange(outputs) - offset) / scale
    whole = np.floor(place).astype(int)
    taps, weights = _cubic(whole, place - whole)
    weights[(taps < 0) | (taps >= inputs)] = 0
    matrix = np.zeros((outputs, inputs))
    np.add.at(matrix, (np.arange(outputs)[:, None], np.clip(taps, 0, inputs - 1)), weights)
    return matrix


def _cubic(
    whole: NDArray[np.int_], part: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """The four neighbours (N, 4) of places whole + part, and their weights.

    Keys' cubic convolution (IEEE TASSP 29, 1981) with a = -0.75.
    """
    taps = np.arange(-1, 3)
    distance = np.abs(part[:, None] - taps)
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return whole[:, None] + taps, np.where(distance <= 1, near, far)
