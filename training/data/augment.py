"""Changes to a photo that leave its phrases true."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """How often and how far photos are changed.

    `flip` and `crop` are probabilities; `zoom_out` and `zoom_in` the farthest scales;
    brightness, contrast and saturation each vary by a factor within 1 ± their value. The hue is
    left alone, since phrases name colours.
    """

    flip: float = 0.5
    crop: float = 0.5
    zoom_out: float = 0.75
    zoom_in: float = 1.6
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3


def flipped(matrix: Matrix, width: int) -> Matrix:
    """The photo → input matrix of a photo that is mirrored first."""
    mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(matrix @ mirror, np.float64)


def moved_out(
    matrix: Matrix, photo: tuple[int, int], size: int, rng: np.random.Generator, smallest: float
) -> Matrix:
    """Shrink the letterboxed photo and put it anywhere in the input, all of it in sight.

    Args:
        matrix: (2, 3) photo → input.
        photo: height and width of the photo.
        size: side of the input.
        rng: draws scale and place.
        smallest: the smallest scale, at most 1.
    """
    zoom = rng.uniform(smallest, 1.0)
    extents = _corners(matrix, [(0.0, 0.0, float(photo[1]), float(photo[0]))])
    return _zoomed(matrix, zoom, extents, extents, size, rng)


def moved_in(
    matrix: Matrix, photo: tuple[int, int], size: int, rng: np.random.Generator, largest: float,
    keep: Sequence[tuple[float, float, float, float]],
) -> Matrix:  # fmt: skip
    """Enlarge the letterboxed photo, with all boxes of `keep` still wholly in sight.

    Args:
        matrix: (2, 3) photo → input.
        photo: height and width of the photo.
        size: side of the input.
        rng: draws scale and place.
        largest: the largest scale, at least 1.
        keep: (x1, y1, x2, y2) in pixels of the photo; at least one.
    """
    kept = _corners(matrix, keep)
    room = size / max(float((kept[1] - kept[0]).max()), 1.0)
    zoom = rng.uniform(1.0, max(1.0, min(largest, room)))
    whole = _corners(matrix, [(0.0, 0.0, float(photo[1]), float(photo[0]))])
    return _zoomed(matrix, zoom, whole, kept, size, rng)


def _corners(
    matrix: Matrix, boxes: Sequence[tuple[float, float, float, float]]
) -> NDArray[np.float64]:
    """Lowest and highest corner (2, 2) in the input of everything inside the boxes."""
    points = np.array([[x, y, 1.0] for x1, y1, x2, y2 in boxes for x, y in ((x1, y1), (x2, y2))])
    mapped = points @ matrix.T
    return np.stack([mapped.min(axis=0), mapped.max(axis=0)])


def _zoomed(
    matrix: Matrix, zoom: float, whole: NDArray[np.float64], kept: NDArray[np.float64], size: int,
    rng: np.random.Generator,
) -> Matrix:  # fmt: skip
    """Scale in the input, then shift: no border where the photo can cover it, `kept` in sight."""
    whole, kept = whole * zoom, kept * zoom
    edges = np.stack([-whole[0], size - whole[1]])
    low = np.maximum(edges.min(axis=0), -kept[0])
    high = np.maximum(np.minimum(edges.max(axis=0), size - kept[1]), low)
    result = matrix * zoom
    result[:, 2] += rng.uniform(low, high)
    return result


def jittered(
    bgr: NDArray[np.uint8], rng: np.random.Generator, amounts: Augmentation
) -> NDArray[np.uint8]:
    """Vary brightness, contrast and saturation of a (H, W, 3) uint8 BGR picture."""
    brightness, contrast, saturation = (
        1.0 + rng.uniform(-amount, amount)
        for amount in (amounts.brightness, amounts.contrast, amounts.saturation)
    )
    luma = np.array([0.114, 0.587, 0.299])  # ITU-R BT.601, in BGR order
    mix = saturation * np.eye(3) + (1.0 - saturation) * luma
    scale = brightness * contrast
    offset = 128.0 * brightness * (1.0 - contrast)
    change = np.hstack([scale * mix, np.full((3, 1), offset)])
    return np.asarray(cv2.transform(bgr, change), np.uint8)
