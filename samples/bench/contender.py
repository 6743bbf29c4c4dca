"""What is measured against what: a model, what runs it, and with how many threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cris_edge.bundle import Bundle
from cris_edge.engines import open_engine, unfit
from cris_edge.engines.base import OFFERED
from cris_edge.errors import CrisEdgeError, EngineError
from cris_edge.segmenter import SHIPPED

REFERENCE = "cris"
"""The kind of the contender that all others are compared with, where it takes part."""
CLIPSEG = "clipseg"


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
    """What the engine shall compute in; None: what the bundle says."""
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


def contenders(pairs: Sequence[tuple[Model, str]], threads: Sequence[int]) -> list[Contender]:
    """Pairs of model and engine with every number of threads, in every precision there is here."""
    precisions = {engine: (None, *offered(engine)) for engine in {engine for _, engine in pairs}}
    return [
        Contender(model.name, count, "bundle", engine, model.bundle, precision, model.note)
        for count in threads
        for model, engine in pairs
        for precision in precisions[engine]
    ]


def unreadable(model: Model, engine: str) -> str | None:
    """Why an engine is none for a model's files, as ONNX Runtime is for OpenVINO's.

    None where it reads them, and where model or engine are broken: their own line will tell.
    """
    try:
        return unfit(engine, Bundle.open(model.bundle or SHIPPED))
    except CrisEdgeError:
        return None


def offered(engine: str) -> list[str]:
    """Precisions that an engine can be asked to compute in on this machine."""
    try:
        opened = open_engine(engine)
    except EngineError:  # its own line will tell
        return []
    return [precision for precision in OFFERED if opened.refuses(precision) is None]


def references(threads: Sequence[int], clipseg: bool) -> list[Contender]:
    """CRIS the plain way, and CLIPSeg for scale where it is installed."""
    found = []
    for count in threads:
        found.append(Contender("CRIS R50 plain", count, REFERENCE, note="random weights"))
        if clipseg:
            found.append(Contender("CLIPSeg", count, CLIPSEG, note="random weights"))
    return found
