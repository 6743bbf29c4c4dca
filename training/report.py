"""An evaluation for people (a table) and for machines (JSON), each saying what was measured how."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import cris_edge
from cris_edge.segmenter import Info
from training.baselines import Ellipse
from training.evaluation import Evaluation, Record
from training.metrics import Scores

REQUIRED_RATIO = 1.5
"""How many times the better blind baseline a model must reach, in mIoU, to count as working."""

METRICS = {
    "IoU": "pixels shared / pixels of either, at the photo's resolution; 1 if both masks are empty",
    "mIoU": "mean of IoU over samples",
    "oIoU": "sum of shared pixels / sum of pixels of either, over all samples",
    "Pr@X": "share of samples with IoU > X / 100",
}
TITLES = {
    "derived": "Derived expressions (made by rule from the labels)",
    "written": "Written expressions (made by looking at the photos)",
}
VERSIONS = {
    "cris_edge": cris_edge.__version__,
    "python": platform.python_version(),
    "numpy": np.__version__,
    "opencv": cv2.__version__,
}


@dataclass(frozen=True)
class Baselines:
    """What blind guesses score on the samples that a model was evaluated on."""

    training_ellipse: Ellipse
    training: Scores
    """Of the fixed ellipse that is best on the training split."""
    fitted_ellipse: Ellipse
    fitted: Scores
    """Of the fixed ellipse that is best on these very samples: an upper bound."""
    shuffled: Scores
    """Of the same model, told the phrases of other photos."""
    whole_photo: Scores

    @property
    def better(self) -> float:
        """The highest mIoU of an ellipse or of shuffled phrases."""
        return max(self.training.miou, self.fitted.miou, self.shuffled.miou)

    def rows(self) -> dict[str, Scores]:
        """The scores by name."""
        return {
            "ellipse, best on training split": self.training,
            "ellipse, best on these samples": self.fitted,
            "model, shuffled phrases": self.shuffled,
            "whole photo": self.whole_photo,
        }


@dataclass(frozen=True)
class Part:
    """The samples of one source; those of different sources never share a column."""

    source: str
    evaluation: Evaluation
    baselines: Baselines | None

    @property
    def ratio(self) -> float | None:
        """mIoU of the model / of the better blind baseline; None if that was not asked for or 0."""
        if self.baselines is None or not self.baselines.better:
            return None
        return self.evaluation.scores.miou / self.baselines.better


@dataclass(frozen=True)
class Report:
    """Everything that one run of `training.evaluate` found."""

    model: str
    info: Info
    """What the runtime says about itself."""
    data: str
    split: str
    threshold: float
    parts: Sequence[Part]

    def text(self) -> str:
        """Tables for a terminal, figures in per cent."""
        info = self.info
        threads = "its own choice" if info.threads is None else str(info.threads)
        head = [
            f"model      {self.model}",
            f"           {info.model}, {info.precision}, {info.input_size} px",
            f"engine     {info.engine} {info.engine_version}, threads: {threads}",
            f"data       {self.data}, split {self.split}",
            f"threshold  probability > {self.threshold:g}",
            "machine    {processor}, {cores} cores, {system}".format(**describe_machine()),
            f"versions   {', '.join(map(' '.join, VERSIONS.items()))}",
            f"date       {today()}",
            *(f"{name:<9}  {meaning}" for name, meaning in METRICS.items()),
            "Figures in per cent.",
        ]
        return "\n".join(head) + "\n\n" + "\n\n".join(_table(part) for part in self.parts)

    def json(self) -> str:
        """The same, with every sample, versions, date and machine; figures in [0, 1]."""
        content = {
            "model": self.model,
            "runtime": dataclasses.asdict(self.info),
            "data": self.data,
            "split": self.split,
            "threshold": self.threshold,
            "metrics": METRICS,
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
        f"{TITLES[part.source]}: {len(records)} samples on {photos} photos",
        f"{'':<32}" + "".join(f"{name:>7}" for name in _COLUMNS),
        *(_row(name, scores) for name, scores in part.evaluation.groups.items()),
    ]
    if part.baselines:
        lines += ["Blind baselines on the same samples"]
        lines += [_row(name, scores) for name, scores in part.baselines.rows().items()]
        lines += [_verdict(part, part.baselines)]
    return "\n".join(lines)


_COLUMNS = ("n", "mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90")


def _row(name: str, scores: Scores) -> str:
    figures = (scores.miou, scores.oiou, *scores.precision)
    return f"{name:<32}{scores.count:>7}" + "".join(f"{100 * value:>7.1f}" for value in figures)


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
    content: dict[str, Any] = {
        "groups": {name: scores.as_dict() for name, scores in part.evaluation.groups.items()},
    }
    if part.baselines:
        baselines = part.baselines
        content["baselines"] = {name: s.as_dict() for name, s in baselines.rows().items()}
        content["ellipses"] = {
            "training": dataclasses.asdict(baselines.training_ellipse),
            "fitted": dataclasses.asdict(baselines.fitted_ellipse),
        }
        content["ratio"] = part.ratio
        content["required_ratio"] = REQUIRED_RATIO
    content["samples"] = [_record_dict(record) for record in part.evaluation.records]
    return content


def _record_dict(record: Record) -> dict[str, Any]:
    sample = record.sample
    return {
        "photo": sample.photo.path.name,
        "instance": sample.instance.id,
        "category": sample.instance.category,
        "kind": sample.kind,
        "phrase": record.phrase,
        "iou": round(record.iou, 4),
        "intersection": record.inter,
        "union": record.union,
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
