"""References: a photo, what is meant in it, and the sentences that people said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data.coco import Instance, Photo, join
from training.data.samples import Sample
from training.errors import DataError

Sentences = Literal["first", "all"]
"""Which sentences of a reference are judged: the field reads the first of the validation split's,
all of the test splits'."""

_USUAL_SPLITS = ("train", "val", "test", "testA", "testB")


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


@dataclass(frozen=True)
class Entry:
    """A reference as its file tells it, with numbers in place of its photo and its instances.

    `photo` is a row of the set's photos, None where the labels have no such image; without
    `annotation_ids` nothing in the photo fits.
    """

    id: int
    split: str
    image_id: int
    photo: int | None
    annotation_ids: tuple[int, ...]
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"ref {self.id} ({self.split})"


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """A data set as its files tell it, sound or not: `training.data.problems` tells.

    `folder` is where the photos lie, and `sources` the files that were read. Two photos may have
    the same id where splits have label files of their own.
    """

    name: str
    folder: Path
    sources: tuple[Path, ...]
    photos: tuple[Photo, ...]
    entries: tuple[Entry, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits' names, in the usual order."""
        return in_order({entry.split for entry in self.entries})

    def split(self, name: str) -> list[Reference]:
        """The references of a split, in their file's order.

        Raises:
            DataError: there is no such split, or a reference has no photo, no annotation of its
                photo, or one without a mask.
        """
        refuse_unknown(name, self.splits, self.name)
        references = []
        for entry in self.entries:
            if entry.split == name:
                if entry.photo is None:
                    raise DataError(f"{entry.name}: the labels have no image {entry.image_id}")
                references.append(look_up(entry, self.photos[entry.photo]))
        return references


def look_up(entry: Entry, photo: Photo) -> Reference:
    """The reference that an entry tells of, which lies in this photo.

    Raises:
        DataError: the photo has no such annotation, or one without a mask.
    """
    known = photo.by_id
    for key in entry.annotation_ids:
        if key not in known or not known[key].has_mask:
            raise DataError(f"{entry.name}: {photo.path.name} has no annotation {key} with a mask")
    instances = [known[key] for key in entry.annotation_ids]
    target = join(instances, photo.height, photo.width)
    return Reference(entry.id, photo, target, entry.sentences)


def refuse_unknown(split: str, splits: Iterable[str], dataset: str) -> None:
    """Raise `DataError` unless the data set has that split."""
    if split not in splits:
        raise DataError(f"{dataset}: split should be one of {', '.join(splits)}, but is {split!r}")


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Names of splits: train, val and test before others."""
    ranks = {name: rank for rank, name in enumerate(_USUAL_SPLITS)}
    return tuple(sorted(splits, key=lambda name: (ranks.get(name, len(ranks)), name)))


def samples_of(references: Iterable[Reference], source: str, sentences: Sentences) -> list[Sample]:
    """Samples to judge by, in the references' order; `source` names the data set and the split."""
    return [
        Sample(reference.photo, reference.target, sentence, "reference", source)
        for reference in references
        for sentence in reference.sentences[: 1 if sentences == "first" else None]
    ]
