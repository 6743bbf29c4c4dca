"""Fields of a JSON object, read with their types checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from cris_edge.errors import BundleError


@dataclass(frozen=True)
class Fields:
    """An object of JSON; each reading raises BundleError where the field is not as it should be."""

    values: Any
    where: str
    """What errors call it."""

    def __post_init__(self) -> None:
        """Refuse what is no object."""
        if not isinstance(self.values, dict):
            raise BundleError(f"{self.where}: expected an object, got {type(self.values).__name__}")

    def typed(self, name: str, kind: type) -> Any:
        """A field of just this type; a bool is no int here."""
        if name not in self.values:
            raise BundleError(f"{self.where}: the field {name!r} is missing")
        value = self.values[name]
        if type(value) is not kind:
            raise BundleError(
                f"{self.where}.{name}: expected {kind.__name__}, got {type(value).__name__}"
            )
        return value

    def text(self, name: str) -> str:
        """A string."""
        return str(self.typed(name, str))

    def integer(self, name: str) -> int:
        """An integer."""
        return int(self.typed(name, int))

    def number(self, name: str) -> float:
        """A finite number, with a decimal point or not."""
        if isinstance(self.values.get(name), int):
            return self.finite(name, self.integer(name))
        return self.finite(name, self.typed(name, float))

    def finite(self, name: str, value: float) -> float:
        """Refuse infinities, what is no number, and integers beyond all floats."""
        if not abs(value) <= sys.float_info.max:
            raise BundleError(f"{self.where}.{name}: expected a finite number, got {value!r}")
        return float(value)

    def mapping(self, name: str) -> Fields:
        """An object within this one."""
        return Fields(self.typed(name, dict), f"{self.where}.{name}")

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of some strings."""
        value = self.text(name)
        if value not in allowed:
            raise BundleError(f"{self.where}.{name}: {value!r} is none of {', '.join(allowed)}")
        return value

    def only(self, name: str, value: object) -> None:
        """Refuse any value but the one that this runtime knows."""
        if self.typed(name, type(value)) != value:
            raise BundleError(
                f"{self.where}.{name}: this runtime knows {value!r} alone, "
                f"not {self.values[name]!r}"
            )

    def triple(self, name: str) -> tuple[float, float, float]:
        """Three finite numbers, one a channel."""
        values = self.typed(name, list)
        if len(values) != 3 or not all(type(v) in (int, float) for v in values):
            raise BundleError(f"{self.where}.{name}: expected three numbers, got {values!r}")
        a, b, c = (self.finite(name, v) for v in values)
        return a, b, c
