"""What a quantised bundle is worth and why: for people, and for `quantization` in bundle.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cris_edge.bundle import GRAPHS
from quantize.figures import Figures, agreement, table
from quantize.graphs import Layer
from quantize.sensitivity import Damage


@dataclass(frozen=True)
class Account:
    """A bundle beside the float one that it was made of, judged alike."""

    before: Figures
    """Of the float bundle."""
    after: Figures
    timed: str
    """What the milliseconds of both are of, by what engine; or why there are none."""
    lost: float
    """Points of mIoU."""
    budget: float
    """Points that may be lost."""
    kept: Sequence[Layer]
    """In INT8."""
    given_back: Sequence[Layer]
    always_float: Sequence[str]
    """Kinds of nodes."""
    damage: Damage
    """Empty where no layer was swept."""

    @property
    def times_faster(self) -> float | None:
        """Float milliseconds / INT8 milliseconds; None where they were not measured."""
        before, after = self.before.milliseconds, self.after.milliseconds
        return before["total"] / after["total"] if before and after else None

    def lines(self) -> list[str]:
        """For people."""
        same = agreement(self.before.parts, self.after.parts)
        return [
            table({"float": self.before, "INT8": self.after}),
            f"{'timed' if self.times_faster is not None else 'not timed'}: {self.timed}",
            f"masks of float and INT8 agree on {same:.2%} of pixels",
            f"{len(self.kept)} layers in INT8; {len(self.given_back)} in float, and "
            f"{', '.join(self.always_float)}:",
            "  " + (", ".join(map(str, self.given_back)) or "none"),
        ]

    def slower(self) -> list[str]:
        """Why it is not worth having on this machine; nothing where it is, or was not timed."""
        if self.times_faster is None or self.times_faster > 1:
            return []
        before, after = self.before.milliseconds, self.after.milliseconds
        slower = (
            f"INT8 is not faster than float on this machine: {after['total']:.2f} ms a photo and "
            f"phrase instead of {before['total']:.2f} ({self.timed})"
        )
        faster = " ".join(name for name in GRAPHS if after[name] < before[name])
        return [f"{slower}; by graph it is with --graphs {faster}" if faster else slower]

    def as_dict(self, reasons: Sequence[str]) -> dict[str, Any]:
        """For the bundle's description; docs/quantize.md tells what the fields mean.

        Args:
            reasons: why it would have been refused.
        """
        ratio = self.times_faster
        swept = {str(layer): round(value, 8) for layer, value in self.damage.items()}
        return {
            "budget": self.budget,
            "lost": round(self.lost, 4),
            "within_budget": self.lost <= self.budget,
            "times_faster": None if ratio is None else round(ratio, 3),
            "not_timed" if ratio is None else "timed": self.timed,
            "forced_in_spite_of": list(reasons),
            "float": self.before.as_dict(),
            "int8": self.after.as_dict(),
            "mask_agreement": agreement(self.before.parts, self.after.parts),
            "layers": {
                "int8": len(self.kept),
                "float": [str(layer) for layer in self.given_back],
                "always_float": list(self.always_float),
                "sensitivity": swept or "not swept: the budget was kept at once",
            },
        }
