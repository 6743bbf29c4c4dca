"""Whether a model listens to its phrases: each probe is a function of what was heard.

A rival is another instance of the target's category in the photo, crowds included, as in
`training.groups`. docs/evaluation.md tells what the figures mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask as rle_codec

from training.baselines import fit_ellipse, score_ellipse, score_whole_photo
from training.data.coco import Instance
from training.data.samples import Sample
from training.evaluation import Record
from training.hearing import CATEGORY, FOREIGN, FULL, SIDE, SWAPPED, WRONG, Heard, Hearing
from training.metrics import Scores
from training.report import Baselines
from training.wording import COLOUR, SIDES, SUBJECTS, named, spoken_of


@dataclass(frozen=True)
class Figure:
    """One figure: a mean or share in [0, 1], a difference of such, a plain number, or a count.

    `value` is None where there is nothing to measure it on, `count` where it is of no samples.
    """

    name: str
    count: int | None
    value: float | None
    chance: float | None = None
    """What comes of guessing, where that is known."""
    unit: Literal["share", "difference", "number", "count"] = "share"


# --- the probes ---


def written_expressions(hearing: Hearing) -> list[Figure]:
    """What a user gets."""
    overlaps = [heard.records[FULL].overlap for heard in hearing.written]
    precise = Scores.of(overlaps).precision[0] if overlaps else None
    return [
        _miou("mIoU", hearing.written),
        Figure("Pr@50", len(overlaps), precise),
        _miou("mIoU, not a person", _in_group(hearing.written, "not a person")),
    ]


def derived_expressions(hearing: Hearing) -> list[Figure]:
    """The same of expressions that rules made."""
    return [
        _miou("mIoU", hearing.derived),
        _miou("mIoU, 3 % of the photo or more", _in_group(hearing.derived, "area >= 3 %")),
        _miou("mIoU, rival present", _in_group(hearing.derived, "rival present")),
    ]


def more_than_the_category(hearing: Hearing) -> list[Figure]:
    """What the rest of the expression adds to the category, where that alone cannot do."""
    return _compared(hearing, CATEGORY, "points that the rest adds")


def all_of_a_category(hearing: Hearing) -> list[Figure]:
    """Whether phrases that do not say which get all that there are of a category."""
    return [
        _miou("mIoU, plural", hearing.several),
        _miou(f"mIoU, {CATEGORY}", hearing.several, CATEGORY),
    ]


def right_instance(hearing: Hearing) -> list[Figure]:
    """Whether the mask has a higher IoU with the target than with any rival.

    Guessing is right once in as many times as there are instances of the category. Rivals without
    a mask are not counted, and photos with a crowd of the category, of whose number nobody knows,
    are left out.
    """
    among = [heard for heard in hearing.written if len(_alike(heard.sample)) > 1]
    said = {one: spoken_of(one.sample.text) for one in among}
    rows = {f"says {it}": [one for one in among if it in said[one]] for it in SUBJECTS}
    rows["says neither side nor colour"] = [
        one for one in among if not {SIDES, COLOUR} & set(said[one])
    ]
    return [
        _hits(FULL, among),
        *(_hits(name, samples) for name, samples in rows.items()),
        _hits(CATEGORY, among, CATEGORY),
        Figure("blind: the largest of the category", len(among), _largest_meant(among)),
    ]


def sides_swapped(hearing: Hearing) -> list[Figure]:
    """How much of the ORIGINAL target is left once left and right are swapped: best is little."""
    return _compared(hearing, SWAPPED, "points lost")


def side_without_the_class(hearing: Hearing) -> list[Figure]:
    """Whether the side does all of the work: little should be left without the class.

    Of targets that lie in the half of the photo that their phrase names, whatever it counts from.
    """
    figures: list[Figure] = []
    for source, samples in _sources(hearing):
        figures += [_miou(f"{source}: mIoU, {FULL}", _tried(samples, SIDE))]
        for phrasing in (SIDE, WRONG):
            among = _tried(samples, phrasing)
            figures += [
                _miou(f"{source}: mIoU, {phrasing}", among, phrasing),
                _lead(f"{source}: points lost, {phrasing}", among, phrasing),
            ]
    return figures


def blind_baselines(hearing: Hearing) -> list[Figure]:
    """What written expressions score without looking or without listening."""
    if not hearing.written:
        return []
    samples = [heard.sample for heard in hearing.written]
    fitted, best = fit_ellipse(samples)
    blind = Baselines(
        training_ellipse=hearing.learned,
        training=score_ellipse(samples, hearing.learned) if hearing.learned else None,
        fitted_ellipse=fitted,
        fitted=best,
        shuffled=Scores.of(heard.records[FOREIGN].overlap for heard in hearing.written),
        whole_photo=score_whole_photo(samples),
        nothing=None,
    )
    rows = [Figure(f"mIoU, {name}", s.count, s.miou) for name, s in blind.rows().items()]
    model = Scores.of(heard.records[FULL].overlap for heard in hearing.written)
    # The whole photo may be the best of all where objects are large.
    over = model.miou - max(blind.better, blind.whole_photo.miou)
    return [*rows, Figure("points above the best", model.count, over, unit="difference")]


def score_of_foreign_phrases(hearing: Hearing) -> list[Figure]:
    """Whether the result's score tells phrases that fit from such as mean nothing in the photo.

    Foreign are the shuffled phrases that name nothing, and mean nothing where they come from, of a
    category that is labelled in this photo: others may fit it.
    """
    fitting = [heard.records[FULL].score for heard in hearing.written]
    foreign = _foreign_scores(hearing.written)
    counts = len(fitting), len(foreign)
    if not all(counts):
        return [Figure("area under the ROC curve", sum(counts), None, 0.5, "number")]
    threshold = best_threshold(fitting, foreign)
    kept = float(np.mean(np.array(fitting) >= threshold))
    refused = float(np.mean(np.array(foreign) < threshold))
    return [
        Figure("mean score, fitting", counts[0], float(np.mean(fitting)), unit="number"),
        Figure("mean score, foreign", counts[1], float(np.mean(foreign)), unit="number"),
        Figure("area under the ROC curve", sum(counts), roc_area(fitting, foreign), 0.5, "number"),
        Figure("best threshold of the score", sum(counts), threshold, unit="number"),
        Figure("fitting phrases at or above it", counts[0], kept),
        Figure("foreign phrases below it", counts[1], refused),
    ]


PROBES: dict[str, Callable[[Hearing], list[Figure]]] = {
    "Written expressions": written_expressions,
    "Derived expressions": derived_expressions,
    "More than the category, rival present": more_than_the_category,
    "All of a category, several present": all_of_a_category,
    "Mask on the right instance, written": right_instance,
    "Left and right swapped, rival present": sides_swapped,
    "Side without the class, rival present": side_without_the_class,
    "Blind baselines, written": blind_baselines,
    "Score of phrases that do not fit, written": score_of_foreign_phrases,
}
"""By the heading of each."""


# --- what they share ---


def _sources(hearing: Hearing) -> tuple[tuple[str, Sequence[Heard]], ...]:
    return ("written", hearing.written), ("derived", hearing.derived)


def _compared(hearing: Hearing, phrasing: str, lead: str) -> list[Figure]:
    """The full expression and another phrasing on the samples that have it, and the difference."""
    figures: list[Figure] = []
    for source, samples in _sources(hearing):
        among = _tried(samples, phrasing)
        figures += [
            _miou(f"{source}: mIoU, {FULL}", among),
            _miou(f"{source}: mIoU, {phrasing}", among, phrasing),
            _lead(f"{source}: {lead}", among, phrasing),
        ]
    return figures


def _in_group(samples: Iterable[Heard], group: str) -> list[Heard]:
    return [heard for heard in samples if group in heard.groups]


def _tried(samples: Iterable[Heard], phrasing: str) -> list[Heard]:
    return [heard for heard in samples if phrasing in heard.records]


def _mean_iou(samples: Sequence[Heard], phrasing: str) -> float:
    return Scores.of(heard.records[phrasing].overlap for heard in samples).miou


def _miou(name: str, samples: Sequence[Heard], phrasing: str = FULL) -> Figure:
    return Figure(name, len(samples), _mean_iou(samples, phrasing) if samples else None)


def _lead(name: str, samples: Sequence[Heard], phrasing: str) -> Figure:
    """By how much the full expression is better than another phrasing, on the same samples."""
    lead = _mean_iou(samples, FULL) - _mean_iou(samples, phrasing) if samples else None
    return Figure(name, len(samples), lead, unit="difference")


def _alike(sample: Sample) -> list[Instance]:
    """The target and then its rivals that have masks; none where some are a crowd."""
    target = sample.instance
    others = [i for i in sample.photo.instances if i.category == target.category and i != target]
    if any(instance.crowd for instance in others):
        return []
    return [target, *(instance for instance in others if instance.has_mask)]


def _hits(name: str, samples: Sequence[Heard], phrasing: str = FULL) -> Figure:
    if not samples:
        return Figure(name, 0, None)
    hits = [_is_hit(heard.records[phrasing]) for heard in samples]
    chance = [1 / len(_alike(heard.sample)) for heard in samples]
    return Figure(name, len(samples), float(np.mean(hits)), float(np.mean(chance)))


def _is_hit(record: Record) -> bool:
    """Whether the target has the highest IoU, alone; an empty mask has none with anything."""
    masks = [instance.segmentation for instance in _alike(record.sample)]
    own, *others = rle_codec.iou([record.prediction], masks, [0] * len(masks))[0]
    return bool(own > max(others))


def _largest_meant(samples: Sequence[Heard]) -> float | None:
    """Share of the samples that mean the one largest instance of their category."""
    meant = []
    for heard in samples:
        own, *others = (instance.area for instance in _alike(heard.sample))
        meant.append(own > max(others))
    return float(np.mean(meant)) if meant else None


def _foreign_scores(samples: Sequence[Heard]) -> list[float]:
    meant: dict[str, set[str]] = {}
    for heard in samples:
        meant.setdefault(heard.sample.text, set()).add(heard.sample.instance.category)
    scores: list[float] = []
    for heard in samples:
        record, photo = heard.records[FOREIGN], heard.sample.photo
        present = {instance.category for instance in photo.instances}
        may_fit = (named(record.phrase) | meant[record.phrase]) & present
        if not may_fit and not photo.person_only:
            scores.append(record.score)
    return scores


def roc_area(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Area under the ROC curve: how often a positive is above a negative, ties counting half.

    That is the statistic of Mann and Whitney over the number of pairs, and in [0, 1].

    Args:
        positives, negatives: scores, at least one of each.
    """
    rest = np.sort(negatives)
    below, upto = (np.searchsorted(rest, positives, side) for side in ("left", "right"))
    return float(np.mean(below + upto) / 2 / len(rest))


def best_threshold(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The score from which on to accept, so that most positives and fewest negatives are.

    That is where Youden's J, the share of positives accepted less that of negatives, is highest;
    of equals, the highest threshold.

    Args:
        positives, negatives: scores, at least one of each.
    """
    tried = np.unique([*positives, *negatives])[::-1]
    accepted = [
        np.mean(np.asarray(scores)[:, None] >= tried, axis=0) for scores in (positives, negatives)
    ]
    return float(tried[np.argmax(accepted[0] - accepted[1])])
