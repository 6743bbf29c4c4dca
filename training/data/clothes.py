"""The colour of people's clothes, where it tells one of them from all others.

People write of people more than of anything else, and of their clothes more than of where they
stand. The labels know nothing of clothes, so the picture is asked: an expression is made where a
colour covers most of somebody's upper body and hardly anything of anybody else. Few photos have
such people; those that cut-outs in other colours are pasted on have many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.coco import Instance, Photo
from training.data.colours import COLOURS, alike, dominant, smooth_colours
from training.data.expressions import MIN_SHARE, Expression

WORN = frozenset(COLOURS) - {"brown", "pink", "grey"}
"""Colours that are said of clothes: skin and hair are named brown and pink too."""
UPRIGHT = 1.1
"""Height of a box by its width, from which on its upper part is somebody's upper body."""
STANDING = 2.2
"""The same, from which on the whole body is likely to be in sight."""
UPPER_BODY = {True: (0.2, 0.48), False: (0.42, 0.8)}
"""Between which shares of the box's height it lies: of who stands, and of who is seen in part."""
OTHERS = 0.12
"""Share of anybody else that a colour, or one like it, may cover."""

_NOUNS = ("person", "person", "one")
_WAYS = (
    "{n} in {c}", "the {n} in {c}", "{n} wearing {c}", "{n} in the {c} shirt", "{n} with {c} shirt",
    "{n} in {c} top", "{n} in a {c} jacket", "{c} shirt",
)  # fmt: skip


def upper_body(height: int, width: int) -> slice | None:
    """The rows of an upper body in somebody's box; None where the box does not stand upright."""
    if height < UPRIGHT * width:
        return None
    top, bottom = UPPER_BODY[height >= STANDING * width]
    return slice(round(top * height), round(bottom * height))


def said_of_clothes(photo: Photo, seed: int = 0) -> list[Expression]:
    """Expressions of the kind "colour", each of exactly one person of a photo.

    Args:
        photo: one whose people all have masks; of others nothing is said.
        seed: chooses the wordings; the same seed gives the same list.

    Raises:
        DataError: the photo cannot be decoded.
    """
    people = [instance for instance in photo.instances if instance.category == "person"]
    if not people or any(person.crowd or not person.has_mask for person in people):
        return []
    names = smooth_colours(photo.read())
    masks = [person.mask() for person in people]
    worn = [_worn(person, mask, names) for person, mask in zip(people, masks, strict=True)]
    shown = [_shares(names[mask]) for mask in masks]
    rng = np.random.default_rng((seed, photo.id, 1))
    made: list[Expression] = []
    for index, (person, colour) in enumerate(zip(people, worn, strict=True)):
        if colour is not None and not _shows(colour, shown[:index] + shown[index + 1 :]):
            text = str(rng.choice(_WAYS)).format(n=rng.choice(_NOUNS), c=colour)
            made.append(Expression(text, person.id, "colour"))
    return made


def _worn(person: Instance, mask: NDArray[np.bool_], names: NDArray[np.uint8]) -> str | None:
    """The colour of somebody's upper body, if it is clear and one would point at the person."""
    x1, y1, x2, y2 = (round(value) for value in person.box)
    rows = upper_body(y2 - y1, x2 - x1)
    if rows is None or person.area < MIN_SHARE * mask.size:
        return None
    part = slice(y1 + rows.start, y1 + rows.stop)
    colour = dominant(names[part][mask[part]])
    return colour if colour in WORN else None


def _shares(names: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The part of some pixels that each of `COLOURS` has, by their names: (colours,)."""
    counts = np.bincount(names.ravel(), minlength=256)[: len(COLOURS)]
    return np.asarray(counts / max(names.size, 1), np.float64)


def _shows(colour: str, people: Sequence[NDArray[np.float64]]) -> bool:
    """Whether any of these people could be meant by the colour as well."""
    similar = [index for index, other in enumerate(COLOURS) if alike(colour, other)]
    return any(shares[similar].sum() > OTHERS for shares in people)
