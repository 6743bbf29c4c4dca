"""Predict samples with the runtime and keep, for each, how well the mask agrees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec
from tqdm import tqdm

from cris_edge import Segmentation, Segmenter
from training.data.samples import Sample
from training.errors import DataError
from training.metrics import Overlap, Scores, overlap

SMALL, LARGE = 0.03, 0.10
"""Shares of the photo between which an object is neither small nor large."""


@dataclass(frozen=True, eq=False)
class Record:
    """One sample with what was predicted for a phrase.

    `phrase` is the sample's own, or another one in the blind test with shuffled phrases. `score`
    and `coverage` (share of the photo predicted) are the runtime's, `truth_share` is the share of
    the photo that the true mask covers; all are in [0, 1].
    """

    sample: Sample
    phrase: str
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

    def mask(self) -> NDArray[np.bool_]:
        """Draw the prediction: bool (H, W) of the photo."""
        return np.asarray(rle_codec.decode(self.prediction), bool)


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
        return {name: Scores.of(members[name]) for name in sorted(members, key=_place)}


_ORDER = (
    "all",
    "kind: ",
    "area < 3 %",
    "area 3 to 10 %",
    "area > 10 %",
    "area >= 3 %",
    "person",
    "not a person",
    "rival present",
    "no rival",
    "says left or right",
)


def _place(group: str) -> tuple[int, str]:
    known = group if group in _ORDER else "kind: "
    return _ORDER.index(known), group


def group_names(sample: Sample, truth_share: float) -> list[str]:
    """The groups that a sample is reported under.

    Args:
        sample: its rule names the kind of a derived phrase; a rival is another instance of the
            same category in the photo, crowds included.
        truth_share: share of the photo that the true mask covers.
    """
    instance = sample.instance
    rivals = [i for i in sample.photo.instances if i.category == instance.category]
    names = ["all"]
    if sample.source == "derived":
        names.append(f"kind: {sample.kind}")
    if truth_share < SMALL:
        names.append("area < 3 %")
    else:
        names += ["area >= 3 %", "area > 10 %" if truth_share > LARGE else "area 3 to 10 %"]
    names.append("person" if instance.category == "person" else "not a person")
    names.append("rival present" if len(rivals) > 1 else "no rival")
    if {"left", "right", "leftmost", "rightmost"} & set(sample.text.lower().split()):
        names.append("says left or right")
    return names


Pair = tuple[Sample, str]
"""A sample, and the phrase to predict it by."""


def evaluate_samples(
    segmenter: Segmenter, samples: Sequence[Sample], progress: bool = True
) -> Evaluation:
    """Predict every sample by its own phrase, at the photo's resolution.

    Args:
        segmenter: a bundle's, or `training.predictor.torch_segmenter`'s.
        samples: at least one; samples of one photo may stand apart, it is read once all the same.
        progress: show a bar of photos on stderr.

    Raises:
        DataError: there are no samples, or a photo cannot be read or has not its labels' size.
    """
    return Evaluation(evaluate_pairs(segmenter, [(s, s.text) for s in samples], progress))


def evaluate_pairs(
    segmenter: Segmenter, pairs: Sequence[Pair], progress: bool = True
) -> tuple[Record, ...]:
    """Predict samples by given phrases; the records are in the order of the pairs.

    Each photo is read and encoded once, each distinct phrase of a photo predicted once.

    Raises:
        DataError: there are no pairs, or a photo cannot be read or has not its labels' size.
    """
    if not pairs:
        raise DataError("expected at least one sample to evaluate, got none: is the split empty?")
    photos: dict[str, list[int]] = {}
    for index, (sample, _) in enumerate(pairs):
        photos.setdefault(str(sample.photo.path), []).append(index)
    records: dict[int, Record] = {}
    bar = tqdm(photos.values(), "evaluating", unit="photo", mininterval=1, disable=not progress)
    for indices in bar:
        of_photo = _evaluate_photo(segmenter, [pairs[index] for index in indices])
        records.update(zip(indices, of_photo, strict=True))
    return tuple(records[index] for index in range(len(pairs)))


def _evaluate_photo(segmenter: Segmenter, pairs: Sequence[Pair]) -> Iterable[Record]:
    phrases = list(dict.fromkeys(phrase for _, phrase in pairs))
    photo = pairs[0][0].photo.read()
    results = dict(zip(phrases, segmenter.predict(photo, phrases), strict=True))
    encoded = {phrase: _encode(result) for phrase, result in results.items()}
    for sample, phrase in pairs:
        result, truth = results[phrase], sample.instance.mask()
        yield Record(
            sample=sample,
            phrase=phrase,
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
