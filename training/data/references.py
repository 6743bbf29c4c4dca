"""References: a photo, what is meant in it, and the sentences that people said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from training.data.coco import Instance, Photo
from training.data.samples import Sample

Sentences = Literal["first", "all"]
"""Which sentences of a reference are judged: the field reads the first of the validation split's,
all of the test splits'."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What was said of one target.

    The target is one instance of the photo, or several joined, or nothing (an empty mask): see
    `training.data.coco.join`.
    """

    id: int
    photo: Photo
    target: Instance
    sentences: tuple[str, ...]


def samples_of(references: Iterable[Reference], source: str, sentences: Sentences) -> list[Sample]:
    """Samples to judge by, in the references' order; `source` names the data set and the split."""
    return [
        Sample(reference.photo, reference.target, sentence, "reference", source)
        for reference in references
        for sentence in reference.sentences[: 1 if sentences == "first" else None]
    ]
