"""How well masks agree: IoU, mIoU, oIoU and Pr@X, as the field reports them.

With I the pixels that prediction and truth share and U those that either has (CRIS, arXiv
2111.15174, section 4):

- IoU = I / U of one sample; 1 where both masks are empty.
- mIoU = mean of IoU over samples: every sample counts the same.
- oIoU = sum of I / sum of U over samples: every pixel counts the same, so large objects rule.
- Pr@X = share of samples with IoU > X / 100, strictly, as the authors compute it.

mIoU and oIoU are different quantities and belong in different columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoUs above which a sample counts for Pr@50 … Pr@90."""


@dataclass(frozen=True)
class Overlap:
    """Pixels that two masks share, and that either has."""

    intersection: int
    union: int

    def __post_init__(self) -> None:
        """Refuse counts that no two masks have."""
        if not 0 <= self.intersection <= self.union:
            raise ValueError(
                "expected 0 <= intersection <= union, "
                f"got intersection {self.intersection} and union {self.union}"
            )

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Count what two masks share.

    Args:
        prediction: bool (H, W), at the photo's resolution.
        truth: bool (H, W).

    Raises:
        ValueError: the masks are not bool, or of different shapes.
    """
    if prediction.dtype != bool or truth.dtype != bool or prediction.shape != truth.shape:
        raise ValueError(
            "expected two bool masks of one shape, got "
            f"{prediction.dtype} {prediction.shape} and {truth.dtype} {truth.shape}"
        )
    shared = int(np.count_nonzero(prediction & truth))
    return Overlap(shared, int(np.count_nonzero(prediction | truth)))


def iou(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of two bool masks (H, W); 1 where both are empty."""
    return overlap(prediction, truth).iou


@dataclass(frozen=True)
class Scores:
    """What a set of samples scored; all figures are in [0, 1]."""

    count: int
    miou: float
    oiou: float
    precision: tuple[float, ...]
    """Pr@50, 60, 70, 80, 90, in the order of `PRECISION_AT`."""

    @classmethod
    def of(cls, overlaps: Iterable[Overlap]) -> Scores:
        """Score samples by the overlaps of their masks.

        Raises:
            ValueError: there are none, so that no mean exists.
        """
        each = list(overlaps)
        if not each:
            raise ValueError("expected the overlap of at least one sample, got none")
        ious = np.array([one.iou for one in each])
        total = Overlap(sum(o.intersection for o in each), sum(o.union for o in each))
        precision = tuple(float(np.mean(ious > limit)) for limit in PRECISION_AT)
        return cls(len(each), float(ious.mean()), total.iou, precision)

    def as_dict(self) -> dict[str, float]:
        """The figures by name: `count`, `mIoU`, `oIoU`, `Pr@50` … `Pr@90`."""
        named = {f"Pr@{limit:.0%}".rstrip("%"): p for limit, p in zip(
            PRECISION_AT, self.precision, strict=True
        )}  # fmt: skip
        return {"count": self.count, "mIoU": self.miou, "oIoU": self.oiou} | named
