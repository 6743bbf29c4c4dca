"""What can be scored without looking or without listening: the least that a model must beat.

- A fixed ellipse, the same for every photo up to its size: knows where objects usually are.
- The same model with shuffled phrases: sees the photo, but is told of something else.
- The whole photo, for information; and nothing at all, where some phrases fit nothing.

True masks are compared as run lengths, so that tens of thousands of samples take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.samples import Sample
from training.errors import DataError
from training.metrics import Overlap, Scores

GRID = 64
"""Side of the coarse masks that ellipses are searched on."""

_Float = NDArray[np.float32]
_RunLengths = Mapping[str, Any]
"""A mask as a compressed COCO RLE."""


@dataclass(frozen=True)
class Ellipse:
    """An ellipse relative to the photo: centre and half axes as shares of its width and height."""

    cx: float
    cy: float
    rx: float
    ry: float

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool (height, width): the pixels whose centres lie inside."""
        y, x = np.ogrid[:height, :width]
        across = ((x + 0.5) / width - self.cx) / self.rx
        down = ((y + 0.5) / height - self.cy) / self.ry
        return np.asarray(across**2 + down**2 <= 1.0)


@dataclass(frozen=True)
class _Truths:
    """The masks of samples, each once for its photo.

    `coarse` is (N, GRID²) float32, the share of every cell that the mask covers; `weight` (N,)
    float32 the share of the samples that mean it.
    """

    coarse: _Float
    weight: _Float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Truths:
        if not samples:
            raise DataError("expected at least one sample to fit an ellipse to, got none")
        counted: dict[tuple[str, bytes | str], list[Sample]] = {}
        for sample in samples:
            # By the mask itself: instances that were joined have no id of their own.
            key = str(sample.photo.path), _truth(sample)["counts"]
            counted.setdefault(key, []).append(sample)
        weight = np.array([len(group) for group in counted.values()], np.float32)
        coarse = np.stack([_shrink(group[0].instance.mask()) for group in counted.values()])
        return cls(coarse, weight / weight.sum())


def _shrink(mask: NDArray[np.bool_]) -> _Float:
    shares = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.asarray(shares.ravel(), np.float32)


def best_ellipse(samples: Sequence[Sample]) -> Ellipse:
    """The ellipse of highest mIoU on samples, judged by masks of 64 x 64 cells.

    Raises:
        DataError: there are no samples.
    """
    return _best_ellipses(_Truths.of(samples), 1)[0]


def _best_ellipses(truths: _Truths, keep: int) -> list[Ellipse]:
    """The ellipses of highest mIoU on the coarse masks, best first.

    A grid over centres (0.2 to 0.8 of the photo) and half axes (0.08 to 0.8, a geometric row),
    then one four times as fine around the best `keep`.
    """
    places = np.linspace(0.2, 0.8, 8)
    radii = np.geomspace(0.08, 0.8, 9)
    points = _product(places, places, radii, radii)
    found = _search(truths, [Ellipse(*map(float, point)) for point in points], keep)
    step = float(places[1] - places[0]) / 4
    growth = float(radii[1] / radii[0]) ** 0.25
    near: dict[Ellipse, None] = {}
    for one in found:
        moves = np.arange(-2, 3)
        grown = growth**moves
        points = _product(
            one.cx + step * moves, one.cy + step * moves, one.rx * grown, one.ry * grown
        )
        near |= dict.fromkeys(Ellipse(*map(float, point)) for point in points)
    return _search(truths, list(near), keep)


def _product(*axes: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _search(truths: _Truths, ellipses: Sequence[Ellipse], keep: int) -> list[Ellipse]:
    """The best of many by coarse mIoU, the intersections of all pairs as matrix products."""
    areas = truths.coarse.sum(axis=1, keepdims=True)
    means: list[float] = []
    for start in range(0, len(ellipses), 512):
        shapes = _draw(ellipses[start : start + 512])
        shared = truths.coarse @ shapes.T
        union = areas + shapes.sum(axis=1) - shared
        means += (truths.weight @ (shared / np.maximum(union, 1e-6))).tolist()
    order = np.argsort(-np.array(means), kind="stable")[:keep]
    return [ellipses[index] for index in order]


def _draw(ellipses: Sequence[Ellipse]) -> _Float:
    """What `Ellipse.mask` draws on the coarse grid, for many at once: (P, GRID²), 0 or 1."""
    cx, cy, rx, ry = np.array([(e.cx, e.cy, e.rx, e.ry) for e in ellipses], np.float32).T
    cells = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    across = ((cells - cx[:, None]) / rx[:, None]) ** 2
    down = ((cells - cy[:, None]) / ry[:, None]) ** 2
    inside = down[:, :, None] + across[:, None, :] <= 1
    return np.asarray(inside.reshape(len(ellipses), -1), np.float32)


def score_ellipse(samples: Sequence[Sample], ellipse: Ellipse) -> Scores:
    """The scores of one ellipse on samples, at the photos' resolution."""
    drawn: dict[tuple[int, int], _RunLengths] = {}
    overlaps: list[Overlap] = []
    for sample in samples:
        size = sample.photo.height, sample.photo.width
        if size not in drawn:
            drawn[size] = rle_codec.encode(np.asfortranarray(ellipse.mask(*size), np.uint8))
        overlaps.append(_overlap(drawn[size], _truth(sample)))
    return Scores.of(overlaps)


def _truth(sample: Sample) -> _RunLengths:
    if sample.instance.segmentation is None:
        raise DataError(
            f"instance {sample.instance.id} has a box only, and no mask to compare with"
        )
    return sample.instance.segmentation


def _overlap(first: _RunLengths, second: _RunLengths) -> Overlap:
    shared = int(rle_codec.area(rle_codec.merge([first, second], intersect=True)))
    both = int(rle_codec.area(first)) + int(rle_codec.area(second))
    return Overlap(shared, both - shared)


def fit_ellipse(samples: Sequence[Sample], keep: int = 5) -> tuple[Ellipse, Scores]:
    """The ellipse of highest mIoU on these very samples, and what it scores on them.

    The best few by coarse masks are judged again at the photos' resolution. Nothing that is blind
    to the photo and knows the answers scores more with an ellipse, but for the grid's fineness.
    """
    best = _best_ellipses(_Truths.of(samples), keep)
    scored = [(ellipse, score_ellipse(samples, ellipse)) for ellipse in best]
    return max(scored, key=lambda pair: pair[1].miou)


def score_whole_photo(samples: Sequence[Sample]) -> Scores:
    """The scores of calling every pixel the object."""
    areas = (int(rle_codec.area(_truth(sample))) for sample in samples)
    pixels = (sample.photo.height * sample.photo.width for sample in samples)
    return Scores.of(Overlap(area, whole) for area, whole in zip(areas, pixels, strict=True))


def score_nothing(samples: Sequence[Sample]) -> Scores:
    """The scores of empty masks: right where a phrase fits nothing."""
    return Scores.of(Overlap(0, int(rle_codec.area(_truth(sample)))) for sample in samples)


def shuffled_phrases(samples: Sequence[Sample], seed: int = 0) -> list[str]:
    """For every sample the phrase of a sample of another photo; each phrase is used once.

    Photos are put in random order, phrases in random order within them, and the row is turned by
    the size of the largest photo: nothing can land on its own photo while no photo has more than
    half of all samples.

    Raises:
        DataError: one photo has more than half of the samples, so that no such order exists.
    """
    rng = np.random.default_rng(seed)
    photos: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        photos.setdefault(str(sample.photo.path), []).append(index)
    largest = max(map(len, photos.values()), default=0)
    if not samples or 2 * largest > len(samples):
        raise DataError(
            "expected samples of several photos, none with more than half of them, so that phrases "
            f"can be shuffled; got {len(samples)} samples, {largest} of one photo. Evaluate more."
        )
    groups = list(photos.values())
    row = [int(i) for g in rng.permutation(len(groups)) for i in rng.permutation(groups[g])]
    texts = [""] * len(samples)
    for place, index in enumerate(row):
        texts[index] = samples[row[(place + largest) % len(row)]].text
    return texts
