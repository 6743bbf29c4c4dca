"""How well masks agree where an expression may fit nothing: N-acc, T-acc, gIoU, cIoU of GRES.

GRES (CVPR 2023, arXiv 2306.00968) judges expressions that mean one object, several, or none. A mask
of at most 50 pixels says "nothing fits" and is emptied: the paper's rule for models without a
classifier for this. Then, with I the pixels that prediction and truth share and U those that
either has, and by the counts of the authors' evaluator:

- N-acc = TP / (TP + FN): share of the samples without a target that are called so.
- T-acc = TN / (TN + FP): share of the samples with a target that are not called targetless.
- gIoU = mean over all samples of I / U; a sample without a target counts 1 where it is called so,
  else 0, and one with a target that is called targetless counts 0.
- cIoU = sum of I / sum of U over all samples. What is predicted where nothing fits adds to U; a
  sample rightly called targetless adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.metrics import Overlap

EMPTY_UP_TO = 50
"""Pixels that a mask may have and still say that nothing fits."""


@dataclass(frozen=True)
class Answer:
    """What was predicted for an expression that may fit nothing.

    `predicted` counts the pixels of the mask as the model gave it, `overlap` compares that mask
    with the truth, and `fits` says whether the expression means anything in the photo.
    """

    overlap: Overlap
    predicted: int
    fits: bool

    def __post_init__(self) -> None:
        """Refuse counts that no prediction has."""
        shared, union = self.overlap.intersection, self.overlap.union
        if not shared <= self.predicted <= union or not (self.fits or self.truth == 0):
            raise ValueError(
                "expected intersection <= predicted <= union, and no true pixels where nothing "
                f"fits; got intersection {shared}, predicted {self.predicted}, union {union}, "
                f"fits {self.fits}"
            )

    @property
    def truth(self) -> int:
        """Pixels of the true mask."""
        return self.overlap.union - self.predicted + self.overlap.intersection

    @property
    def empty(self) -> bool:
        """Whether the prediction says that nothing fits."""
        return self.predicted <= EMPTY_UP_TO

    @property
    def counted(self) -> Overlap:
        """The pixels that count for cIoU, those of an emptied mask left out."""
        return Overlap(0, self.truth) if self.empty else self.overlap

    @property
    def iou(self) -> float:
        """What the sample counts for gIoU."""
        if self.empty or not self.fits:
            return float(self.empty and not self.fits)
        return self.overlap.iou


@dataclass(frozen=True)
class GresScores:
    """What a set of samples scored; accuracies and IoUs are in [0, 1]."""

    count: int
    targetless: int
    """Samples whose expression fits nothing."""
    n_acc: float | None
    """None where no expression fits nothing."""
    t_acc: float | None
    """None where every expression fits nothing."""
    giou: float
    ciou: float
    """1 where no sample has a pixel, as IoU has it."""

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> GresScores:
        """Score samples by what was answered.

        Raises:
            ValueError: there are none, so that no mean exists.
        """
        each = list(answers)
        if not each:
            raise ValueError("expected the answer to at least one sample, got none")
        counted = [answer.counted for answer in each]
        total = Overlap(sum(o.intersection for o in counted), sum(o.union for o in counted))
        return cls(
            count=len(each),
            targetless=sum(not answer.fits for answer in each),
            n_acc=_share(answer.empty for answer in each if not answer.fits),
            t_acc=_share(not answer.empty for answer in each if answer.fits),
            giou=float(np.mean([answer.iou for answer in each])),
            ciou=total.iou,
        )

    def as_dict(self) -> dict[str, float | None]:
        """The figures by name: `count`, `targetless`, `N-acc`, `T-acc`, `gIoU`, `cIoU`."""
        return {
            "count": self.count,
            "targetless": self.targetless,
            "N-acc": self.n_acc,
            "T-acc": self.t_acc,
            "gIoU": self.giou,
            "cIoU": self.ciou,
        }


def _share(answers: Iterable[bool]) -> float | None:
    each = list(answers)
    return sum(each) / len(each) if each else None
