"""Predict samples with the runtime and keep, for each, how well the mask agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec
from tqdm import tqdm

from cris_edge import InputError, Segmentation, Segmenter
from training.data.samples import Sample
from training.distributed import agree, gather_objects, world
from training.errors import DataError
from training.gres import Answer, GresScores
from training.groups import category_name, group_names, place
from training.metrics import Overlap, Scores, overlap


@dataclass(frozen=True, eq=False)
class Measured:
    """What was predicted, and how well it agrees with the truth.

    `score` and `coverage` (share of the photo predicted) are the runtime's, `truth_share` is the
    share of the photo that the true mask covers; all are in [0, 1].
    """

    overlap: Overlap
    score: float
    coverage: float
    truth_share: float
    prediction: Mapping[str, Any]
    """The predicted mask as a compressed COCO RLE, at the photo's resolution."""

    @property
    def iou(self) -> float:
        """Intersection over union at the photo's resolution."""
        return self.overlap.iou

    @property
    def inter(self) -> int:
        """Pixels that prediction and truth share."""
        return self.overlap.intersection

    @property
    def union(self) -> int:
        """Pixels that prediction or truth has."""
        return self.overlap.union

    @property
    def predicted(self) -> int:
        """Pixels that the prediction has."""
        return int(rle_codec.area(self.prediction))

    def mask(self) -> NDArray[np.bool_]:
        """Draw the prediction: bool (H, W) of the photo."""
        return np.asarray(rle_codec.decode(self.prediction), bool)


@dataclass(frozen=True, eq=False)
class Record(Measured):
    """One sample with what was predicted for a phrase.

    `phrase` is the sample's own, or another one in the blind test with shuffled phrases.
    """

    sample: Sample
    phrase: str

    @property
    def answer(self) -> Answer:
        """What counts where an expression may fit nothing."""
        return Answer(self.overlap, self.predicted, fits=self.sample.instance.objects > 0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The records of a set of samples, at least one."""

    records: tuple[Record, ...]

    @cached_property
    def scores(self) -> Scores:
        """Of all samples."""
        return Scores.of(record.overlap for record in self.records)

    @cached_property
    def groups(self) -> dict[str, Scores]:
        """Of every group that has samples, `all` first. Groups overlap."""
        members: dict[str, list[Overlap]] = {}
        for record in self.records:
            for name in group_names(record.sample, record.truth_share):
                members.setdefault(name, []).append(record.overlap)
        if len(members.get("objects: one", ())) == len(self.records):
            del members["objects: one"]
        return {name: Scores.of(members[name]) for name in sorted(members, key=place)}

    @cached_property
    def categories(self) -> dict[str, Scores]:
        """Of every category that is meant, those with the most samples first."""
        members: dict[str, list[Overlap]] = {}
        for record in self.records:
            members.setdefault(category_name(record.sample.instance), []).append(record.overlap)
        counted = sorted(members, key=lambda name: (-len(members[name]), name))
        return {name: Scores.of(members[name]) for name in counted}

    @cached_property
    def gres(self) -> GresScores | None:
        """What counts where expressions may fit nothing; None where every one fits something."""
        if all(record.sample.instance.objects for record in self.records):
            return None
        return GresScores.of(record.answer for record in self.records)


Pair = tuple[Sample, str]
"""A sample, and the phrase to predict it by."""


def evaluate_samples(
    segmenter: Segmenter, samples: Sequence[Sample], progress: bool = True
) -> Evaluation:
    """Predict every sample by its own phrase, at the photo's resolution.

    Args:
        segmenter: a bundle's, or `training.predictor.torch_segmenter`'s.
        samples: at least one; samples of one photo may stand apart, it is read once all the same.
            With several processes each gives the same samples and gets the whole evaluation.
        progress: show a bar of photos on stderr, of the first process only.

    Raises:
        DataError: there are no samples, or a photo cannot be read or has not its labels' size.
    """
    return Evaluation(evaluate_pairs(segmenter, [(s, s.text) for s in samples], progress))


def evaluate_pairs(
    segmenter: Segmenter, pairs: Sequence[Pair], progress: bool = True
) -> tuple[Record, ...]:
    """Predict samples by given phrases; the records are in the order of the pairs.

    Each photo is read and encoded once, each distinct phrase of a photo predicted once. Several
    processes share the photos out: every pair is predicted by exactly one of them, and all of them
    return all records.

    Raises:
        DataError: there are no pairs, or a photo cannot be read or has not its labels' size.
    """
    if not pairs:
        raise DataError("expected at least one sample to evaluate, got none: is the split empty?")
    photos: dict[str, list[int]] = {}
    for index, (sample, _) in enumerate(pairs):
        photos.setdefault(str(sample.photo.path), []).append(index)
    rank, size = world()
    own = list(photos.values())[rank::size]
    measured = agree(lambda: _measure(segmenter, pairs, own, progress and rank == 0))
    # Samples stay where they are: every process has them, with the labels of their whole photos.
    for others in gather_objects(measured):
        measured |= others
    return tuple(
        Record(**vars(measured[index]), sample=sample, phrase=phrase)
        for index, (sample, phrase) in enumerate(pairs)
    )


def _measure(
    segmenter: Segmenter, pairs: Sequence[Pair], photos: Sequence[Sequence[int]], progress: bool
) -> dict[int, Measured]:
    """What is predicted for some pairs, given by their places photo by photo, by these places."""
    measured: dict[int, Measured] = {}
    for places in tqdm(photos, "evaluating", unit="photo", mininterval=1, disable=not progress):
        of_photo = _measure_photo(segmenter, [pairs[place] for place in places])
        measured.update(zip(places, of_photo, strict=True))
    return measured


def _measure_photo(segmenter: Segmenter, pairs: Sequence[Pair]) -> Iterator[Measured]:
    phrases = list(dict.fromkeys(phrase for _, phrase in pairs))
    photo = pairs[0][0].photo.read()
    try:
        results = dict(zip(phrases, segmenter.predict(photo, phrases), strict=True))
    except InputError as error:
        raise DataError(f"{pairs[0][0].photo.path.name}: {error}") from error
    encoded = {phrase: _encode(result) for phrase, result in results.items()}
    for sample, phrase in pairs:
        result, truth = results[phrase], sample.instance.mask()
        yield Measured(
            overlap=overlap(result.mask, truth),
            score=float(result.score),
            coverage=float(result.coverage),
            truth_share=float(np.mean(truth)),
            prediction=encoded[phrase],
        )


def _encode(result: Segmentation) -> Mapping[str, Any]:
    """Hold the mask of a whole validation split in megabytes, not gigabytes."""
    run_lengths: dict[str, Any] = rle_codec.encode(np.asfortranarray(result.mask, np.uint8))
    return run_lengths
