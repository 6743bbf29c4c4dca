"""An evaluation for people (a table) and for machines (JSON), each saying what was measured how."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import cris_edge
from cris_edge.engines.base import OFFERED
from cris_edge.segmenter import Info
from training.baselines import Ellipse
from training.evaluation import Evaluation, Record
from training.gres import EMPTY_UP_TO, GresScores
from training.metrics import Scores
from training.selection import Selection

REQUIRED_RATIO = 1.5
"""How many times the better blind baseline a model must reach, in mIoU, to count as working."""

METRICS = {
    "IoU": "pixels shared / pixels of either, at the photo's resolution; 1 if both masks are empty",
    "mIoU": "mean of IoU over samples",
    "oIoU": "sum of shared pixels / sum of pixels of either, over all samples",
    "Pr@X": "share of samples with IoU > X / 100",
}
GRES_METRICS = {
    "N-acc": f"share of samples that fit nothing with a mask of at most {EMPTY_UP_TO} pixels",
    "T-acc": f"share of samples that fit something with a mask of more than {EMPTY_UP_TO} pixels",
    "gIoU": "mean of IoU, where a sample that fits nothing counts 1 or 0, as N-acc has it",
    "cIoU": f"oIoU once masks of at most {EMPTY_UP_TO} pixels are emptied",
}
"""For sets with expressions that fit nothing; see `training.gres`."""
VERSIONS = {
    "cris_edge": cris_edge.__version__,
    "python": platform.python_version(),
    "numpy": np.__version__,
    "opencv": cv2.__version__,
}


@dataclass(frozen=True)
class Baselines:
    """What blind guesses score on the samples that a model was evaluated on."""

    training_ellipse: Ellipse | None
    training: Scores | None
    """Of the fixed ellipse that is best on the training split; None where there is no such."""
    fitted_ellipse: Ellipse
    fitted: Scores
    """Of the fixed ellipse that is best on these very samples: an upper bound."""
    shuffled: Scores
    """Of the same model, told the phrases of other photos."""
    whole_photo: Scores
    nothing: Scores | None
    """Of empty masks; None where every phrase fits something."""

    @property
    def better(self) -> float:
        """The highest mIoU of an ellipse, of shuffled phrases, or of empty masks."""
        scored = (self.training, self.fitted, self.shuffled, self.nothing)
        return max(scores.miou for scores in scored if scores)

    def rows(self) -> dict[str, Scores]:
        """The scores by name."""
        scored = {
            "ellipse, best on training split": self.training,
            "ellipse, best on these samples": self.fitted,
            "model, shuffled phrases": self.shuffled,
            "whole photo": self.whole_photo,
            "empty mask": self.nothing,
        }
        return {name: scores for name, scores in scored.items() if scores}


@dataclass(frozen=True)
class Part:
    """One selection of samples; those of different selections never share a column."""

    selection: Selection
    evaluation: Evaluation
    baselines: Baselines | None

    @property
    def source(self) -> str:
        """The selection's name."""
        return self.selection.name

    @property
    def categories(self) -> dict[str, Scores]:
        """The scores by category, for reference sets alone: they have enough of each."""
        return self.evaluation.categories if self.selection.sentences else {}

    @property
    def ratio(self) -> float | None:
        """mIoU of the model / of the better blind baseline; None if that was not asked for or 0."""
        if self.baselines is None or not self.baselines.better:
            return None
        return self.evaluation.scores.miou / self.baselines.better


def measured_by(**more: str) -> list[str]:
    """Machine, versions and date of figures, a line each; `more` are versions beside the usual."""
    return [
        "machine    {processor}, {cores} cores, {system}".format(**describe_machine()),
        f"versions   {', '.join(map(' '.join, (VERSIONS | more).items()))}",
        f"date       {today()}",
    ]


def engine_in_words(info: Info) -> str:
    """What computed figures, and with how many threads."""
    threads = "its own choice" if info.threads is None else str(info.threads)
    computed = f" in {info.computed}" if info.computed in OFFERED else ""
    return f"{info.engine} {info.engine_version}{computed}, threads: {threads}"


def provenance(info: Info, data: str, splits: Sequence[str], threshold: float) -> list[str]:
    """What figures were measured with and on, a line each."""
    return [
        f"engine     {engine_in_words(info)}",
        f"data       {data}, split {', '.join(splits)}",
        f"threshold  probability > {threshold:g}",
        *measured_by(),
    ]


@dataclass(frozen=True)
class Report:
    """Everything that one run of `training.evaluate` found."""

    model: str
    info: Info
    """What the runtime says about itself."""
    data: str
    threshold: float
    parts: Sequence[Part]

    @property
    def splits(self) -> list[str]:
        """The splits that the samples are of."""
        return list(dict.fromkeys(part.selection.split for part in self.parts))

    @property
    def metrics(self) -> dict[str, str]:
        """What each figure means."""
        fits_nothing = any(part.evaluation.gres for part in self.parts)
        return METRICS | (GRES_METRICS if fits_nothing else {})

    def text(self) -> str:
        """Tables for a terminal, figures in per cent."""
        info = self.info
        head = [
            f"model      {self.model}",
            f"           {info.model}, {info.precision}, {info.input_size} px",
            *provenance(info, self.data, self.splits, self.threshold),
            *(f"{name:<9}  {meaning}" for name, meaning in self.metrics.items()),
            "Figures in per cent.",
        ]
        return "\n".join(head) + "\n\n" + "\n\n".join(_table(part) for part in self.parts)

    def json(self) -> str:
        """The same, with every sample, versions, date and machine; figures in [0, 1]."""
        content = {
            "model": self.model,
            "runtime": dataclasses.asdict(self.info),
            "data": self.data,
            "splits": self.splits,
            "threshold": self.threshold,
            "metrics": self.metrics,
            "date": today(),
            "machine": describe_machine(),
            "versions": VERSIONS,
            "expressions": {part.source: _part_dict(part) for part in self.parts},
        }
        return json.dumps(content, indent=1) + "\n"


def _table(part: Part) -> str:
    records = part.evaluation.records
    photos = len({record.sample.photo.path for record in records})
    lines = [
        f"{part.selection.title}: {len(records)} samples on {photos} photos",
        *_rows("", part.evaluation.groups),
    ]
    if part.categories:
        lines += _rows("By category", part.categories)
    if part.evaluation.gres:
        lines += _gres_rows(part.evaluation.gres)
    if part.baselines:
        lines += _rows("Blind baselines on the same samples", part.baselines.rows(), heads=False)
        lines += [_verdict(part, part.baselines)]
    return "\n".join(lines)


_COLUMNS = ("n", "mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")


def _rows(heading: str, scored: Mapping[str, Scores], heads: bool = True) -> list[str]:
    columns = "".join(f"{name:>7}" for name in _COLUMNS) if heads else ""
    return [f"{heading:<32}{columns}".rstrip()] + [
        f"{name:<32}{scores.count:>7}" + _per_cent(scores.miou, scores.oiou, *scores.precision)
        for name, scores in scored.items()
    ]


def _gres_rows(scores: GresScores) -> list[str]:
    """A table of its own, since its columns are other quantities than those above."""
    figures = {name: value for name, value in scores.as_dict().items() if name in GRES_METRICS}
    return [
        f"{'GRES: phrases may fit nothing':<32}{'n':>7}{'none':>7}"
        + "".join(f"{name:>7}" for name in figures),
        f"{'all':<32}{scores.count:>7}{scores.targetless:>7}" + _per_cent(*figures.values()),
    ]


def _per_cent(*values: float | None) -> str:
    return "".join(f"{'-':>7}" if value is None else f"{100 * value:>7.1f}" for value in values)


def _verdict(part: Part, baselines: Baselines) -> str:
    ratio = part.ratio
    if ratio is None:
        return "The baselines score 0: no ratio."
    miou = part.evaluation.scores.miou
    return (
        f"mIoU of the model / of the better blind baseline: {100 * miou:.1f} / "
        f"{100 * baselines.better:.1f} = {ratio:.2f}; "
        f"at least {REQUIRED_RATIO}: {'yes' if ratio >= REQUIRED_RATIO else 'NO'}"
    )


def _part_dict(part: Part) -> dict[str, Any]:
    evaluation, baselines = part.evaluation, part.baselines
    content: dict[str, Any] = {
        "title": part.selection.title,
        "split": part.selection.split,
        "sentences": part.selection.sentences,
        "groups": _named(evaluation.groups),
    }
    if part.categories:
        content["categories"] = _named(part.categories)
    if evaluation.gres:
        content["gres"] = evaluation.gres.as_dict()
    if baselines:
        learned = baselines.training_ellipse
        content["baselines"] = _named(baselines.rows())
        content["ellipses"] = {
            "training": dataclasses.asdict(learned) if learned else None,
            "fitted": dataclasses.asdict(baselines.fitted_ellipse),
        }
        content["ratio"] = part.ratio
        content["required_ratio"] = REQUIRED_RATIO
    content["samples"] = [_record_dict(record) for record in evaluation.records]
    return content


def _named(scored: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    return {name: scores.as_dict() for name, scores in scored.items()}


def _record_dict(record: Record) -> dict[str, Any]:
    sample = record.sample
    return {
        "photo": sample.photo.path.name,
        "instance": sample.instance.id,
        "category": sample.instance.category,
        "objects": sample.instance.objects,
        "kind": sample.kind,
        "phrase": record.phrase,
        "iou": round(record.iou, 4),
        "intersection": record.inter,
        "union": record.union,
        "predicted": record.predicted,
        "score": round(record.score, 4),
        "coverage": round(record.coverage, 4),
    }


def today() -> str:
    """The date in UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def describe_machine() -> dict[str, Any]:
    """Processor, its number of cores, and the operating system."""
    processor = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        named = [line for line in listing.read_text().splitlines() if line.startswith("model name")]
        processor = named[0].partition(":")[2].strip() if named else processor
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.system()}
