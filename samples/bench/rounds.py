"""Contenders take turns, round after round, and what they say becomes figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samples.bench.contender import REFERENCE, Contender
from samples.bench.process import Worker, WorkerError

Say = Callable[[str], None]


@dataclass
class Entry:
    """A contender and what its process has said so far."""

    contender: Contender
    facts: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def start(self) -> Worker | None:
        """Start the process and let it load."""
        worker = Worker(["-m", "samples.bench.worker"], self.contender.threads)
        try:
            self.facts = worker.ask(self.contender.as_dict())
        except WorkerError as error:
            self.error = str(error)
            worker.close()
            return None
        return worker

    def take_turn(self, worker: Worker, repetitions: int) -> None:
        """Measure; a process that fails takes no further turn."""
        try:
            self.turns.append(worker.ask({"repetitions": repetitions}))
        except WorkerError as error:
            self.error = str(error)


def run_rounds(
    contenders: Sequence[Contender], rounds: int, repetitions: int, say: Say
) -> list[Entry]:
    """Start every contender, then measure each a little in every round (A B C A B C …).

    All processes stay alive, and only one works at a time: what disturbs the machine for a while
    disturbs all of them, and engines never share a process's thread pools.
    """
    entries, workers = [], []
    try:
        for contender in contenders:
            say(f"loading {contender.label}")
            entries.append(Entry(contender))
            workers.append(entries[-1].start())
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for entry, worker in zip(entries, workers, strict=True):
                if worker is not None and entry.error is None:
                    entry.take_turn(worker, repetitions)
    finally:
        for worker in workers:
            if worker is not None:
                worker.close()
    return entries


def figures(entry: Entry, reference: Entry | None) -> dict[str, Any]:
    """One contender's figures, in milliseconds and bytes; or its error."""
    contender = entry.contender
    found: dict[str, Any] = contender.as_dict() | {"label": contender.label}
    if entry.error is not None:
        return found | {"error": entry.error}
    calls = {
        name: spread([value for turn in entry.turns for value in turn["calls"][name]])
        for name in ("both", "photo", "phrase", "eight")
    }
    found |= entry.facts | {"calls": calls, "a_phrase_of_eight": calls["eight"]["median"] / 8}
    found["stages"] = middles([turn["stages"] for turn in entry.turns])
    found["frames"] = middles([turn["frames"] for turn in entry.turns])
    found["peak_bytes"] = max(turn["peak_bytes"] for turn in entry.turns)
    found["idle_cpu_seconds"] = sum(turn["idle_cpu_seconds"] for turn in entry.turns)
    return found | {"times_faster": ratios(entry, reference)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median": statistics.median(values), "p95": float(np.percentile(values, 95))}


def middles(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of each name over all turns."""
    found: dict[str, list[float]] = {}
    for turn in turns:
        for name, value in turn.items():
            found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return {name: statistics.median(values) for name, values in found.items()}


def ratios(entry: Entry, reference: Entry | None) -> dict[str, float] | None:
    """How many times faster than the reference: the median over rounds, pair by pair."""
    if reference is None or reference.error is not None:
        return None
    found: dict[str, list[float]] = {}
    for own, other in zip(entry.turns, reference.turns, strict=True):
        for name, values in own["calls"].items():
            pair = statistics.median(other["calls"][name]) / statistics.median(values)
            found.setdefault(name, []).append(pair)
    return {name: statistics.median(values) for name, values in found.items()}


def all_figures(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Of every contender; compared with plain CRIS, or else the first, of as many threads."""
    return [figures(entry, _reference(entry, entries)) for entry in entries]


def _reference(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    alike = [one for one in entries if one.contender.threads == entry.contender.threads]
    plain = [one for one in alike if one.contender.kind == REFERENCE]
    working = [one for one in alike if one.error is None]
    return next(iter(plain or working), None)
