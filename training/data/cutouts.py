"""Labelled instances, cut out of their photos: what can be pasted onto others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.augment import Augmentation, jittered
from training.data.coco import Instance, Photo
from training.data.colours import dominant, smooth_colours

LEAST_SIDE = 24
"""Root of the smallest area, in pixels."""
LARGEST_SHARE = 0.5
"""Of the photo: what fills it is rarely whole."""
BORDER = 0.05
"""Of the box's width and height: how much of it may lie on the photo's border."""
HIDDEN = 0.15
"""Share of the mask that other instances may claim."""
RIDER = 0.2
"""Share of another instance in the mask from which on it would be cut out too, unlabelled."""
SOLID = 0.75
"""Share of the mask that its eroded core has at least: wires and spokes bring background along."""
WHOLE = 0.85
"""Share of the core in its largest piece: a thing seen through a fence is none."""
LONGEST = 256
"""Longest side that is kept, in pixels."""
MARGIN = 2
"""Pixels around the mask, for edges that fade."""
ENLARGED = 1.4
"""Largest scale at which one is pasted."""
SOFT = 0.7
"""Standard deviation of the blur of an edge, in pixels."""

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_JITTER = Augmentation(brightness=0.12, contrast=0.12, saturation=0.15)


@dataclass(frozen=True, eq=False)
class Cutout:
    """An instance without its photo.

    `bgra` is uint8 (h, w, 4), alpha 0 outside the mask and 255 inside, with some pixels around it;
    `share` is the part of its photo that it covered, `colour` its name if clear.
    """

    category: str
    bgra: NDArray[np.uint8]
    share: float
    colour: str | None

    @property
    def side(self) -> float:
        """Root of the mask's area, in pixels of `bgra`."""
        return float(np.count_nonzero(self.bgra[..., 3])) ** 0.5


def fully_labelled(photo: Photo) -> bool:
    """Whether everything in the photo is labelled, by outlines that people drew."""
    drawn = all(instance.has_mask and instance.weight == 1.0 for instance in photo.instances)
    return drawn and not photo.person_only


def cut_out(photo: Photo) -> tuple[list[Cutout], dict[int, str]]:
    """What can be cut out of a photo, and the clear colours of its instances by their ids.

    Instances are left out that are tiny, that fill the photo, that its border cuts, that others
    hide or lie on, and those that are thin or in pieces. Persons have no colour.

    Raises:
        DataError: the photo cannot be decoded.
    """
    picture = photo.read()
    names = smooth_colours(picture)
    framed = _framed(picture)
    cutouts: list[Cutout] = []
    colours: dict[int, str] = {}
    for instance, mask in _outlined(photo):
        colour = None if instance.category == "person" else dominant(names[mask])
        if colour is not None:
            colours[instance.id] = colour
        bgra = _cut(framed, mask) if _is_in_sight(photo, instance, mask) else None
        if bgra is not None:
            cutouts.append(Cutout(instance.category, bgra, float(mask.mean()), colour))
    return cutouts, colours


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with `MARGIN` more on each side."""
    framed = cv2.copyMakeBorder(picture, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_REPLICATE)
    return np.asarray(framed, np.uint8)


def _outlined(photo: Photo) -> Iterator[tuple[Instance, NDArray[np.bool_]]]:
    for instance in photo.instances:
        if instance.has_mask and not instance.crowd:
            yield instance, instance.mask()


def _is_in_sight(photo: Photo, instance: Instance, mask: NDArray[np.bool_]) -> bool:
    """Whether the mask holds one whole thing of a fair size, and nothing else that is labelled."""
    area = int(mask.sum())
    if not LEAST_SIDE**2 <= area <= LARGEST_SHARE * mask.size:
        return False
    x1, y1, x2, y2 = instance.box
    border = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    if border > BORDER * (x2 - x1 + y2 - y1):
        return False
    others = [o.segmentation for o in photo.instances if o.has_mask and o is not instance]
    if not others:
        return True
    inside = rle_codec.iou(others, [instance.segmentation], [1])  # share of each of the others
    shared = rle_codec.merge([rle_codec.merge(others), instance.segmentation], intersect=True)
    return bool(inside.max() <= RIDER and rle_codec.area(shared) <= HIDDEN * area)


def _cut(framed: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
    """The pixels a pixel inside the outline, and some around them; None where they are no thing."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    drawn = np.pad(mask[y : y + height, x : x + width].view(np.uint8), MARGIN)
    core = cv2.erode(drawn, _CROSS)
    _, _, pieces, _ = cv2.connectedComponentsWithStats(core)
    largest = max(pieces[1:, cv2.CC_STAT_AREA], default=0)
    if core.sum() < SOLID * drawn.sum() or largest < WHOLE * core.sum():
        return None
    around = framed[y : y + core.shape[0], x : x + core.shape[1]]
    bgra = np.dstack([around, core * np.uint8(255)])
    scale = LONGEST / max(core.shape)
    if scale < 1:
        bgra = cv2.resize(bgra, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        bgra[..., 3] = np.where(bgra[..., 3] > 127, 255, 0)
    return np.asarray(bgra, np.uint8)


def look(cutout: Cutout, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The cut-out in a light of its own, and mirrored or not: uint8 (h, w, 4) BGRA."""
    pixels = np.ascontiguousarray(cutout.bgra[..., :3])
    seen = np.dstack([jittered(pixels, rng, _JITTER), cutout.bgra[..., 3]])
    return np.ascontiguousarray(seen[:, ::-1] if rng.random() < 0.5 else seen)


def scaled(seen: NDArray[np.uint8], scale: float, frame: tuple[int, ...]) -> NDArray[np.uint8]:
    """At a scale, so far as it fits into the frame and stays sharp, with a soft edge.

    Args:
        seen: uint8 (h, w, 4) BGRA.
        scale: wished for.
        frame: height and width of the photo that it is pasted onto.

    Returns:
        uint8 (h, w, 4) BGRA; an alpha of 128 and more is in its mask.
    """
    height, width = seen.shape[:2]
    scale = min(scale, ENLARGED, 0.9 * frame[0] / height, 0.9 * frame[1] / width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    patch = cv2.resize(seen, size, interpolation=how)
    patch[..., 3] = cv2.GaussianBlur(patch[..., 3], (3, 3), SOFT, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(patch, np.uint8)


class Cutouts:
    """Cut-outs of many photos by category, and the colours of the photos' own instances."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        """Read the fully labelled ones of the photos and cut; the others are passed over."""
        self.by_category: dict[str, list[Cutout]] = {}
        self.colours: dict[Photo, dict[int, str]] = {}
        for photo in photos:
            if fully_labelled(photo):
                found, self.colours[photo] = cut_out(photo)
                for cutout in found:
                    self.by_category.setdefault(cutout.category, []).append(cutout)
