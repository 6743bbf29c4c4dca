"""Phrases that mean all things of a kind, where a photo has several of it.

"dogs" and "all dogs" are all of them, and so is "dog" by itself: it does not say which. What the
rest of a phrase is worth shows beside such a one: "the left dog" is one of them.
"""

from __future__ import annotations

import numpy as np

from training.data.coco import Instance, Photo, join
from training.data.expressions import MIN_SHARE
from training.data.nouns import CATEGORIES, MEANINGS, plural
from training.data.samples import Sample

SEVERAL = "several"
"""Kind of a sample that means all things of a kind."""

_TEMPLATES = ("{n}", "{many}", "the {many}", "all {many}", "all the {many}", "every {n}")


def sayings() -> list[str]:
    """All that `draw_several` may say."""
    return [one.format(n=noun, many=plural(noun)) for noun in MEANINGS for one in _TEMPLATES]


def kinds(photo: Photo) -> dict[str, list[Instance]]:
    """Noun to all that it fits in the photo: two or more, with an outline each.

    Nouns are left out where the labels do not promise that this is all.
    """
    found = {}
    for noun, covered in MEANINGS.items():
        members = [one for one in photo.instances if one.category in covered]
        outlined = all(one.has_mask for one in members)
        if len(members) > 1 and outlined and photo.tells_all(covered):
            found[noun] = members
    return found


def draw_several(photo: Photo, rng: np.random.Generator) -> tuple[str, Instance] | None:
    """A phrase and all that it means, as one; None where nothing to be seen is there twice."""
    least = MIN_SHARE * photo.width * photo.height
    # Fewer pixels are no targets of other phrases either: what is taught of them is empty.
    there = {n: them for n, them in kinds(photo).items() if sum(i.area for i in them) >= least}
    if not there:
        return None
    noun = str(rng.choice(sorted(there)))
    text = str(rng.choice(_TEMPLATES)).format(n=noun, many=plural(noun))
    return text, join(there[noun], photo.height, photo.width)


def all_of_each(photo: Photo) -> list[Sample]:
    """What a model is judged by: all of each category, by its plural."""
    return [
        Sample(photo, join(members, photo.height, photo.width), plural(noun), SEVERAL, "derived")
        for noun, members in kinds(photo).items()
        if noun in CATEGORIES
    ]
