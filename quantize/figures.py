"""What a quantised bundle is worth: accuracy, agreement with float, size and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.speed import Milliseconds
from training.report import Part


@dataclass(frozen=True)
class Figures:
    """Of one bundle on one engine of this machine."""

    size: int
    """Bytes of all files."""
    milliseconds: Milliseconds
    """Empty where there is nothing to time with: graphs for TensorRT, and no GPU."""
    parts: Sequence[Part]
    """Its evaluation, a part for each source of samples."""
    engine: str
    """What computed it, with its version and threads."""

    def as_dict(self) -> dict[str, Any]:
        """For a bundle's description; scores in [0, 1]."""
        return {
            "bytes": self.size,
            "engine": self.engine,
            "milliseconds": self.milliseconds or None,
            "scores": {part.source: part.evaluation.scores.as_dict() for part in self.parts},
        }


def loss(before: Sequence[Part], after: Sequence[Part]) -> float:
    """Points of mIoU that are lost, of the part that loses most."""
    return max(
        100 * (one.evaluation.scores.miou - two.evaluation.scores.miou)
        for one, two in zip(before, after, strict=True)
    )


def agreement(before: Sequence[Part], after: Sequence[Part]) -> float:
    """Mean share of a photo's pixels on which two evaluations have the same mask, in [0, 1]."""
    return float(np.mean([
        (one.mask() == two.mask()).mean()
        for old, new in zip(before, after, strict=True)
        for one, two in zip(old.evaluation.records, new.evaluation.records, strict=True)
    ]))  # fmt: skip


def table(named: Mapping[str, Figures]) -> str:
    """Figures of several bundles for people; scores in per cent, a line for each part."""
    names = max(22, *(len(name) + 1 for name in named))
    lines = [
        f"{'':{names}}{'MB':>8}{'photo':>9}{'phrase':>9}{'pair':>9}{'total ms':>10}"
        f"{'n':>6}{'mIoU':>7}{'Pr@50':>7}{'Pr@70':>7}{'Pr@90':>7}"
    ]
    for name, figures in named.items():
        columns = zip(("photo", "phrase", "pair", "total"), (9, 9, 9, 10), strict=True)
        times = figures.milliseconds
        taken = "".join(
            f"{times[column]:>{width}.2f}" if times else f"{'-':>{width}}"
            for column, width in columns
        )
        for part in figures.parts:
            scores = part.evaluation.scores.as_dict()
            lines.append(
                f"{name:{names}}{figures.size / 1e6:>8.2f}{taken}{int(scores['count']):>6}"
                + "".join(f"{100 * scores[k]:>7.1f}" for k in ("mIoU", "Pr@50", "Pr@70", "Pr@90"))
                + f"  {part.source}"
            )
    return "\n".join(lines)
