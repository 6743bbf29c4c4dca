"""Photo to model input and back: the only copy, for training, calibration, checks and runtime.

The geometry is that of the CRIS authors' code: scaled to fit, centred, cubic interpolation, border
in the mean colour; on the way back a bicubic resize with aligned corners, then a cubic warp.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

CUBIC_A = -0.75
"""The cubic convolution's parameter, as torch and OpenCV choose it."""


@dataclass(frozen=True)
class Letterbox:
    """How a photo of any size becomes a square input, and a mask comes back.

    Attributes:
        size: side of the square in pixels.
        mean, std: of the RGB channels, in units of [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

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
        border = tuple(255.0 * value for value in self.mean)
        rgb = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
        warped = cv2.warpAffine(
            rgb, matrix, (self.size, self.size), flags=cv2.INTER_CUBIC, borderValue=border
        )
        return np.asarray(warped, np.uint8)

    def colour(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR to (size, size, 3) uint8 RGB, letterboxed, not yet normalised."""
        return self.warp(photo, self.matrix(*photo.shape[:2]))

    def normalise(self, rgb: NDArray[np.uint8]) -> Float:
        """(S, S, 3) uint8 RGB to (3, S, S) float32, minus the mean, over the deviation."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (rgb.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def image(self, photo: NDArray[np.uint8]) -> Float:
        """(H, W, 3) uint8 BGR to the model's input, (1, 3, size, size) float32."""
        return self.normalise(self.colour(photo))[None]

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
        rows = cubic_weights(logits.shape[0], self.size)
        columns = cubic_weights(logits.shape[1], self.size)
        square = rows @ probability @ columns.T
        restored = cv2.warpAffine(
            square,
            self.inverse(height, width),
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderValue=0,
        )
        # Cubic interpolation overshoots at edges.
        return np.asarray(np.clip(restored, 0, 1), np.float32)


def _affine(source: Float, target: Float) -> NDArray[np.float64]:
    return np.asarray(cv2.getAffineTransform(source, target), np.float64)


@functools.lru_cache(maxsize=16)
def cubic_weights(inputs: int, outputs: int) -> Float:
    """Weights (outputs, inputs) of a bicubic resize with aligned corners along one axis.

    Keys' cubic convolution (IEEE TASSP 29, 1981) with a = -0.75; the border is repeated.
    """
    place = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    first = np.floor(place).astype(int) - 1
    weights = np.zeros((outputs, inputs))
    for tap in range(4):
        distance = np.abs(place - (first + tap))
        near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
        far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.arange(outputs), np.clip(first + tap, 0, inputs - 1)), weight)
    single = weights.astype(np.float32)
    single.setflags(write=False)
    return single
