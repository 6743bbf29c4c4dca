"""Photos with cut-outs of others pasted on, so that a class has rivals to be told apart.

Copy-paste as in arXiv 2012.07177, but with phrases: what the rules say of the picture that comes
out. Place, order, size and relations are then other ones each time a photo is seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.clothes import said_of_clothes
from training.data.coco import Instance, Photo
from training.data.cutouts import Cutout, Cutouts, look, scaled
from training.data.expressions import derive
from training.data.layout import Box
from training.data.painting import PAINTABLE, in_colours
from training.data.samples import Sample
from training.errors import DataError

Picture = NDArray[np.uint8]

COVERED = 0.3
"""Share of an instance that may be covered in all: the rest must still be plain to see."""
SIDES = (0.1, 0.45)
"""Roots of the areas that cut-outs are given, as shares of the photo's."""
RATIO = 2.0
"""How far a rival's side may be from that of what is there, either way."""
BIGGER = (1.4, 1.8)
"""Sides of two that differ in size: their areas are then apart as `expressions.SIZE_RATIO` asks."""
TRIES = 10
"""Places that are tried for a cut-out."""
LEVEL = 0.6
"""Chance that what has rivals stands on a line with them."""
COLOURED = 0.35
"""Chance that what is pasted differs in colour."""
OTHER = 0.5
"""Chance of a cut-out of another class beside the rivals."""


@dataclass(frozen=True, eq=False)
class PastedPhoto(Photo):
    """A photo as it looks with cut-outs on it, which are instances like its own."""

    picture: Picture

    def read(self) -> Picture:
        """The composed picture: (height, width, 3) uint8 BGR, a copy."""
        return self.picture.copy()


class Paster:
    """Pastes cut-outs of fully labelled photos onto fully labelled photos."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        """Cut out what the photos offer; it is kept in memory, about 50 kB a cut-out.

        Args:
            photos: those without complete, drawn labels are neither cut up nor pasted onto.

        Raises:
            DataError: a photo cannot be decoded, or none has anything that can be cut out.
        """
        self._cutouts = Cutouts(photos)
        if not self._cutouts.by_category:
            raise DataError(
                "pasting needs fully labelled photos with an instance that can be cut out, "
                f"but none of these {len(photos)} is one"
            )

    def samples(self, photo: Photo, rng: np.random.Generator) -> list[Sample]:
        """Samples of the photo with something pasted on it, all said by rule.

        What people wrote of the photo is not among them, since it may have become untrue.

        Args:
            photo: one of those that the paster was made with.
            rng: draws what is pasted, where, and how what can be said is worded.

        Returns:
            Samples of one `PastedPhoto`; none where the photo is not fully labelled, nothing found
            a place, or nothing can be said.
        """
        colours = self._cutouts.colours.get(photo)
        if colours is None:
            return []
        composition = _Composition(photo, dict(colours))
        for group in _Plan(self._cutouts, photo, rng).groups():
            composition.add(group, rng)
        if len(composition.instances) == len(photo.instances):
            return []
        pasted = composition.photo()
        instances = pasted.by_id
        seed = int(rng.integers(1 << 31))
        made = derive(pasted, composition.colours, seed) + said_of_clothes(pasted, seed)
        return [Sample(pasted, instances[e.instance_id], e.text, e.kind, "derived") for e in made]


@dataclass(frozen=True, eq=False)
class _Group:
    """Cut-outs of one class and their sides in pixels; `beside`: boxes that they may line up with.

    The same cut-out twice is pasted in the same look.
    """

    cutouts: Sequence[Cutout]
    sides: Sequence[float]
    beside: Sequence[Box] = ()


class _Plan:
    """What to paste on a photo: most often what becomes a rival."""

    def __init__(self, cutouts: Cutouts, photo: Photo, rng: np.random.Generator) -> None:
        self._by_category, self._photo, self._rng = cutouts.by_category, photo, rng
        self._root = float(photo.width * photo.height) ** 0.5
        crowds = {instance.category for instance in photo.instances if instance.crowd}
        # Nothing is said of a class of which there is a crowd.
        self._free = sorted(self._by_category.keys() - crowds)
        here = {instance.category for instance in photo.instances}
        self._shared = [category for category in self._free if category in here]
        # A thing's colour is said where those of all its kind are clear, as they are here alone.
        self._paintable = [
            c for c in self._free if c in PAINTABLE and (c == "person" or c not in here)
        ]

    def groups(self) -> list[_Group]:
        """Draw the groups: one to four cut-outs in all."""
        if not self._free:
            return []
        groups = [self._first()]
        taken = groups[0].cutouts[0].category
        others = [category for category in self._free if category != taken]
        if others and self._rng.random() < OTHER:
            one = self._one(self._pick(others))
            groups.append(_Group([one], [self._own_side(one)]))
        return groups

    def _first(self) -> _Group:
        if self._paintable and self._rng.random() < COLOURED:
            coloured = self._coloured(self._pick(self._paintable))
            if coloured.cutouts:
                return coloured
        if self._shared and self._rng.random() < 0.4:
            return self._rivals(self._pick(self._shared))
        if self._rng.random() < 0.6:
            return self._twins(self._pick(self._free))
        return self._kin(self._pick(self._free))

    def _coloured(self, category: str) -> _Group:
        """The same one in two or three colours; an empty group where they would not be clear."""
        one = self._one(category)
        cutouts = in_colours(one, int(self._rng.integers(2, 4)), self._rng)
        return _Group(cutouts, [self._own_side(one) for _ in cutouts])

    def _rivals(self, category: str) -> _Group:
        """One or two, about as large as one of the class that is in the photo."""
        own = [i for i in self._photo.instances if i.category == category]
        model = own[int(self._rng.integers(len(own)))]
        cutouts = [self._one(category) for _ in range(int(self._rng.integers(1, 3)))]
        ratios = RATIO ** self._rng.uniform(-1, 1, len(cutouts))
        sides = [self._within(model.area**0.5 * ratio) for ratio in ratios]
        return _Group(cutouts, sides, [model.box])

    def _twins(self, category: str) -> _Group:
        """The same one two or three times, differing in place alone, or two in size too."""
        one = self._one(category)
        side = self._own_side(one)
        if self._rng.random() < 0.4:
            ratio = self._rng.uniform(*BIGGER)
            small = self._within(side / ratio**0.5)
            return _Group([one] * 2, [small, small * ratio])
        count = int(self._rng.integers(2, 4))
        return _Group([one] * count, [self._within(side * (0.8 if count > 2 else 1.0))] * count)

    def _kin(self, category: str) -> _Group:
        """Two or three of a class."""
        cutouts = [self._one(category) for _ in range(int(self._rng.integers(2, 4)))]
        return _Group(cutouts, [self._own_side(one) for one in cutouts])

    def _pick(self, categories: Sequence[str]) -> str:
        """A class: neither people nearly always nor scissors as often as people."""
        weights = np.sqrt([len(self._by_category[category]) for category in categories])
        return str(self._rng.choice(categories, p=weights / weights.sum()))

    def _one(self, category: str) -> Cutout:
        cutouts = self._by_category[category]
        return cutouts[int(self._rng.integers(len(cutouts)))]

    def _own_side(self, cutout: Cutout) -> float:
        """About the part of a photo that it covered in its own."""
        return self._within(self._root * cutout.share**0.5 * self._rng.uniform(0.6, 1.4))

    def _within(self, side: float) -> float:
        return min(max(side, SIDES[0] * self._root), SIDES[1] * self._root)


class _Composition:
    """A photo while things are pasted onto it."""

    def __init__(self, photo: Photo, colours: dict[int, str]) -> None:
        self._photo, self._picture = photo, photo.read()
        self.instances, self.colours = list(photo.instances), colours
        self._whole = [instance.area for instance in self.instances]
        if self.instances:
            masks = [instance.segmentation for instance in self.instances]
            self._whole = [float(area) for area in rle_codec.area(masks)]

    def photo(self) -> PastedPhoto:
        """The photo as it has become."""
        fields = {f.name: getattr(self._photo, f.name) for f in dataclasses.fields(Photo)}
        fields["instances"] = tuple(self.instances)
        return PastedPhoto(**fields, picture=self._picture)

    def add(self, group: _Group, rng: np.random.Generator) -> None:
        """Paste a group as far as there are places for it."""
        looks: dict[Cutout, Picture] = {}
        beside = list(group.beside)
        for cutout, side in zip(group.cutouts, group.sides, strict=True):
            if cutout not in looks:
                looks[cutout] = look(cutout, rng)
            patch = scaled(looks[cutout], side / cutout.side, self._picture.shape[:2])
            box = self._paste(patch, cutout, beside, rng)
            if box is not None:
                beside.append(box)

    def _paste(
        self, patch: Picture, cutout: Cutout, beside: Sequence[Box],
        rng: np.random.Generator,
    ) -> Box | None:  # fmt: skip
        """Paste where little is covered; its box, or None where there is no such place."""
        for attempt in range(TRIES):
            x, y = self._place(patch, beside if attempt < TRIES // 2 else (), rng)
            part = slice(y, y + patch.shape[0]), slice(x, x + patch.shape[1])
            drawn = np.zeros((self._photo.height, self._photo.width), np.uint8, order="F")
            drawn[part] = patch[..., 3] > 127
            mask = dict(rle_codec.encode(drawn))
            if self._covers_little(mask):
                self._blend(patch, part)
                return self._insert(mask, 1 - drawn, cutout)
        return None

    def _place(
        self, patch: Picture, beside: Sequence[Box],
        rng: np.random.Generator,
    ) -> tuple[int, int]:  # fmt: skip
        """Any place inside the photo, or one on a line with something that is there."""
        room = (self._photo.width - patch.shape[1], self._photo.height - patch.shape[0])
        place = [int(rng.integers(extent + 1)) for extent in room]
        if beside and rng.random() < LEVEL:
            x1, y1, x2, y2 = beside[int(rng.integers(len(beside)))]
            axis = int(rng.random() < 0.75)  # most often side by side
            middle = (y1 + y2) / 2 if axis else (x1 + x2) / 2
            start = round(middle - patch.shape[1 - axis] / 2 + rng.normal(0, 0.02 * room[axis]))
            place[axis] = min(max(start, 0), room[axis])
        return place[0], place[1]

    def _covers_little(self, mask: dict[str, object]) -> bool:
        if not self.instances:
            return True
        masks = [instance.segmentation for instance in self.instances]
        areas = rle_codec.area(masks).astype(float)
        left = areas * (1 - rle_codec.iou(masks, [mask], [1])[:, 0])
        kept = np.array(self._whole) * (1 - COVERED)
        crowds = np.array([instance.crowd for instance in self.instances])
        return bool((crowds | (left >= kept)).all())

    def _blend(self, patch: Picture, part: tuple[slice, slice]) -> None:
        alpha = patch[..., 3:].astype(np.float32) / np.float32(255)
        under = self._picture[part].astype(np.float32)
        mixed = under + alpha * (patch[..., :3] - under)
        self._picture[part] = np.round(mixed).astype(np.uint8)

    def _insert(self, mask: dict[str, object], outside: NDArray[np.uint8], cutout: Cutout) -> Box:
        """Take the covered pixels from the others and join them."""
        kept = rle_codec.encode(outside)
        for place, instance in enumerate(self.instances):
            if rle_codec.iou([instance.segmentation], [mask], [1])[0, 0]:
                rest = dict(rle_codec.merge([instance.segmentation, kept], intersect=True))
                self.instances[place] = _shown(instance, rest)
        key = max((instance.id for instance in self.instances), default=0) + 1
        blank = Instance(key, cutout.category, (0, 0, 0, 0), 0)
        pasted = _shown(blank, mask)
        self.instances.append(pasted)
        self._whole.append(pasted.area)
        if cutout.colour is not None:
            self.colours[key] = cutout.colour
        return pasted.box


def _shown(instance: Instance, mask: dict[str, object]) -> Instance:
    """The instance with another mask."""
    x, y, width, height = (float(value) for value in rle_codec.toBbox(mask))
    box, area = (x, y, x + width, y + height), float(rle_codec.area(mask))
    return dataclasses.replace(instance, segmentation=mask, box=box, area=area)
