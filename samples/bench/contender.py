"""What is measured against what: a model, what runs it, and with how many threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

REFERENCE = "cris"
"""The kind of the contender that all others are compared with, where it takes part."""
CLIPSEG = "clipseg"
COMPUTED: dict[str, tuple[str, ...]] = {}
"""Precisions that an engine computes in besides its own choice, for a `Segmenter` that takes
`precision`; so far none does, and a bundle alone says what it is computed in."""


@dataclass(frozen=True)
class Contender:
    """One line of the table; it runs in a process of its own."""

    name: str
    """Of the model, as the table shows it until the process says more."""
    threads: int
    kind: str = "bundle"
    """`bundle` for the runtime, `cris` for CRIS the plain way in torch, `clipseg`."""
    engine: str = "torch"
    bundle: str | None = None
    """A path; None is the bundle that ships."""
    precision: str | None = None
    """What the engine shall compute in; None leaves it the choice."""
    note: str = ""
    """What a reader of the table must know, such as that the weights are random."""

    @property
    def label(self) -> str:
        """As the table names it."""
        precision = f" {self.precision}" if self.precision else ""
        return f"{self.name}, {self.engine}{precision}, {in_words(self.threads)}"

    def as_dict(self) -> dict[str, Any]:
        """For the process that runs it."""
        return dataclasses.asdict(self)


def in_words(threads: int) -> str:
    """A number of threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


@dataclass(frozen=True)
class Model:
    """A model that every engine is tried with."""

    name: str
    bundle: str | None
    note: str = ""


def contenders(
    models: Sequence[Model], engines: Sequence[str], threads: Sequence[int]
) -> list[Contender]:
    """Every model on every engine with every number of threads."""
    return [
        Contender(model.name, count, "bundle", engine, model.bundle, precision, model.note)
        for count in threads
        for model in models
        for engine in engines
        for precision in (None, *COMPUTED.get(engine, ()))
    ]


def references(threads: Sequence[int], clipseg: bool) -> list[Contender]:
    """CRIS the plain way, and CLIPSeg for scale where it is installed."""
    found = []
    for count in threads:
        found.append(Contender("CRIS R50 plain", count, REFERENCE, note="random weights"))
        if clipseg:
            found.append(Contender("CLIPSeg", count, CLIPSEG, note="random weights"))
    return found
