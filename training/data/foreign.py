"""Phrases that fit nothing in a photo, so that a model learns to find nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from training.data.coco import Photo
from training.data.nouns import CATEGORIES, MEANINGS
from training.data.samples import Sample
from training.wording import named

WRITTEN = 0.5
"""How often a phrase that somebody wrote of another photo is taken, where there are any."""
RARE = 0.04
"""Share of photos below which a category is taken to be absent where nobody labelled it."""
TRIES = 10
"""Written phrases that are drawn until one is foreign to the photo."""

_TEMPLATES = (
    "{n}", "the {n}", "left {n}", "right {n}", "{n} on the left", "{n} on the right",
    "the {n} on the left", "the {n} on the right", "biggest {n}", "smallest {n}", "bottom {n}",
    "top {n}", "middle {n}", "second {n} from the left", "second {n} from the right",
    "white {n}", "red {n}", "black {n}", "blue {n}",
)  # fmt: skip


def sayings() -> list[str]:
    """All that `by_rule` may say."""
    return [template.format(n=noun) for noun in MEANINGS for template in _TEMPLATES]


class ForeignPhrases:
    """Draws phrases that fit nothing in a photo: made by rule, or written of other photos.

    What is not labelled in a fully labelled photo is not in it. In photos with labels of people
    alone, that is said of categories which nobody named in what was written of the photo, and which
    few of the fully labelled ones have (`RARE`); it is then wrong as seldom as they are there.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Look at what all photos of a training split show, and what was written of them."""
        samples = list(samples)
        photos = {sample.photo for sample in samples if not sample.photo.person_only}
        shown = Counter(c for photo in photos for c in {i.category for i in photo.instances})
        most = RARE * len(photos)
        self._common = {name for name in CATEGORIES if not photos or shown[name] >= most}
        written = {s.text: s.instance.category for s in samples if s.source == "written"}
        meant = {text: named(text) for text in written}
        self._said: dict[Photo, set[str]] = {}
        for sample in samples:
            if sample.text in meant:
                self._said.setdefault(sample.photo, set()).update(meant[sample.text])
        # What names no category, as "the one on the left", fits anything.
        self._written = [(text, names | {written[text]}) for text, names in meant.items() if names]

    def draw(self, photo: Photo, rng: np.random.Generator) -> str | None:
        """A phrase of no category that the photo shows; None where the labels promise nothing."""
        shown = {instance.category for instance in photo.instances}
        if photo.person_only:
            shown |= self._common | self._said.get(photo, set()) | {"person"}
        if self._written and rng.random() < WRITTEN:
            for place in rng.integers(len(self._written), size=TRIES):
                text, names = self._written[place]
                if not names & shown:
                    return text
        return by_rule(shown, rng)


def by_rule(shown: Collection[str], rng: np.random.Generator) -> str | None:
    """A phrase that names none of these categories; None where there is no other."""
    nouns = sorted(noun for noun, covered in MEANINGS.items() if covered.isdisjoint(shown))
    template = str(rng.choice(_TEMPLATES))
    return template.format(n=rng.choice(nouns)) if nouns else None
