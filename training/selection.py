"""What is evaluated: a data folder, a prepared reference set, or made-up scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np

from training.data.prepared import DESCRIPTION, open_references
from training.data.references import Sentences, samples_of
from training.data.samples import Sample, load_sources
from training.data.scene_phrases import scene_samples
from training.data.scenes import JUDGED_WORLD
from training.errors import DataError

ALL = "all"
"""Stands for every split that there is."""
LEARNED_FROM = 10_000
"""Training samples that a blind ellipse is fitted to, spread evenly: it has but four numbers."""

TITLES = {
    "derived": "Derived expressions (made by rule from the labels)",
    "written": "Written expressions (made by looking at the photos)",
}

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Selection:
    """Samples whose figures are reported together, and never mixed with another's."""

    name: str
    """Short, of its own in a report: `derived`, `refcoco val`."""
    title: str
    split: str
    samples: list[Sample]
    sentences: Sentences | None = None
    """Which sentences of a reference; None where samples are no references."""


class FolderData:
    """A folder laid out as docs/data.md tells; derived and written expressions stand apart."""

    splits: tuple[str, ...] = ("train", "val")
    usual: tuple[str, ...] = ("val",)

    def __init__(self, folder: Path):
        self.folder, self.name = folder, str(folder)

    def select(self, splits: Sequence[str], sentences: Sentences | None) -> list[Selection]:
        """The samples of each source of each split.

        Raises:
            DataError: the data are missing or not as they should be; or `sentences` is given,
                which a data folder has no choice of.
        """
        if sentences is not None:
            raise DataError(
                f"{self.folder} is a data folder, whose expressions are all judged; "
                "only of a prepared set can the first sentence or all be chosen"
            )
        return [
            Selection(
                source if len(splits) == 1 else f"{source} {split}",
                TITLES[source] if len(splits) == 1 else f"{TITLES[source]}, split {split}",
                split,
                samples,
            )
            for split in splits
            for source, samples in self._load(split).items()
        ]

    def training(self, selection: Selection) -> list[Sample]:
        """Samples of the training split, if there is one; of the same source where it has some."""
        sources = self._training
        # Where the training split lacks this source, its other one has objects too.
        known = sources.get(selection.samples[0].source) or next(iter(sources.values()), [])
        return spread(known, LEARNED_FROM)

    @cached_property
    def _training(self) -> dict[str, list[Sample]]:
        return self._load("train") if (self.folder / "instances_train.json").is_file() else {}

    def _load(self, split: str) -> dict[str, list[Sample]]:
        return load_sources(self.folder, cast("Literal['train', 'val']", split))


class ReferenceData:
    """A folder that `python -m training.prepare` wrote."""

    def __init__(self, folder: Path, photos: Path | None = None):
        self._set = open_references(folder, photos)
        self.name = str(folder)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the set, in its own order."""
        return self._set.splits

    @property
    def usual(self) -> tuple[str, ...]:
        """All splits that are not for training."""
        return tuple(split for split in self.splits if split != "train")

    def select(self, splits: Sequence[str], sentences: Sentences | None) -> list[Selection]:
        """The samples of each split.

        Args:
            splits: of this set.
            sentences: None takes the first of each reference on `val` and all on other splits,
                as the CRIS authors do.

        Raises:
            DataError: a split has no references.
        """
        return [self._select(s, sentences or ("first" if s == "val" else "all")) for s in splits]

    def _select(self, split: str, sentences: Sentences) -> Selection:
        name = f"{self._set.name} {split}"
        samples = samples_of(self._set.split(split), name, sentences)
        if not samples:
            raise DataError(f"{name} has no references to evaluate")
        said = "the first sentence" if sentences == "first" else "all sentences"
        return Selection(name, f"{name}, {said} of each reference", split, samples, sentences)

    def training(self, selection: Selection) -> list[Sample]:
        """Samples of the training split, a sentence each; none where the set has no such split."""
        return self._training

    @cached_property
    def _training(self) -> list[Sample]:
        if "train" not in self.splits:
            return []
        chosen = spread(self._set.split("train"), LEARNED_FROM)
        return samples_of(chosen, f"{self._set.name} train", "first")


class SceneData:
    """The made-up world, scenes that no recipe trains on over photos that none of ours does."""

    splits: tuple[str, ...] = ("val",)
    usual: tuple[str, ...] = ("val",)

    def __init__(self, count: int):
        self.count, self.name = count, f"{count} made-up scenes"

    def select(self, splits: Sequence[str], sentences: Sentences | None) -> list[Selection]:
        """The samples of the world's one split.

        Raises:
            DataError: the photos under the scenes are missing, or `sentences` is given.
        """
        del splits
        if sentences is not None:
            raise DataError("--sentences is for prepared sets; each phrase of a scene is a sample")
        title = f"{self.name}, none of them trained on"
        return [Selection("scenes", title, "val", scene_samples(self.count))]

    def training(self, selection: Selection) -> list[Sample]:
        """Samples of another world."""
        del selection
        return scene_samples(self.count, JUDGED_WORLD + 1)


Data = FolderData | ReferenceData | SceneData


def open_data(folder: Path, photos: Path | None = None) -> Data:
    """Open a data folder, or a prepared reference set.

    Args:
        folder: a prepared set holds `dataset.json`; any other is a data folder.
        photos: where the photos of a prepared set lie now, if they were moved since.

    Raises:
        DataError: the prepared set is damaged or its photos are elsewhere; or `photos` is given for
            a data folder. A data folder is not read before samples of it are selected.
    """
    if (folder / DESCRIPTION).is_file():
        return ReferenceData(folder, photos)
    if photos is not None:
        raise DataError(f"{folder}: no prepared set, so its photos cannot be elsewhere")
    return FolderData(folder)


def select(
    data: Data,
    splits: Sequence[str] = (),
    sentences: Sentences | None = None,
    limit: int | None = None,
) -> list[Selection]:
    """The samples to evaluate.

    Args:
        data: from `open_data`.
        splits: of the data, or `all`; none for the usual ones: `val` of a data folder, and all but
            `train` of a prepared set.
        sentences: which of a reference's sentences; None for what is usual on each split.
        limit: at most so many samples of each selection, spread evenly; None for all.

    Raises:
        DataError: there is no such split, or nothing in it, or the data are not as they should be.
    """
    chosen = tuple(dict.fromkeys(splits)) or data.usual
    chosen = data.splits if ALL in chosen else chosen
    unknown = [split for split in chosen if split not in data.splits]
    if unknown or not chosen:
        raise DataError(
            f"there is no split {', '.join(unknown) or 'to evaluate'}; the data have "
            f"{', '.join(data.splits)}"
        )
    return [
        dataclasses.replace(found, samples=spread(found.samples, limit))
        for found in data.select(chosen, sentences)
    ]


def spread(items: Sequence[_T], limit: int | None) -> list[_T]:
    """At most `limit` of the items, evenly from first to last; None for all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
