"""What the runtime costs a program that starts: imports, the first mask, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from samples.bench.contender import Model
from samples.bench.process import Worker, WorkerError
from samples.bench.rounds import middles

FRESH = """
import sys, time
begun = time.perf_counter()
import cris_edge
imported = time.perf_counter() - begun
import json, numpy
segmenter = cris_edge.Segmenter(sys.argv[1] or None, engine=sys.argv[2], threads=int(sys.argv[3]))
frame = numpy.full((480, 640, 3), 128, numpy.uint8)
segmenter.predict(frame, "the man in red").mask
print(json.dumps({"import": 1000 * imported}), flush=True)
from samples.bench.process import peak_memory
print(json.dumps({"peak_bytes": peak_memory()}), flush=True)
"""
"""A program that uses the runtime and one engine, and nothing else."""


def start_once(model: Model, engine: str, threads: int) -> dict[str, float]:
    """One fresh process: milliseconds of its import and until its first mask, bytes at most.

    Raises:
        WorkerError: it failed.
    """
    begun = time.perf_counter()
    worker = Worker(["-c", FRESH, model.bundle or "", engine, str(threads)], threads)
    try:
        found = worker.ask()
        first = 1000 * (time.perf_counter() - begun)
        return found | {"first_mask": first} | worker.ask()
    finally:
        worker.close()


def startups(
    model: Model, engines: Sequence[str], threads: int, repetitions: int
) -> list[dict[str, Any]]:
    """Medians for each engine, which take turns here too."""
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    errors: dict[str, str] = {}
    for _ in range(repetitions):
        for engine in engines:
            if engine in errors:
                continue
            try:
                runs[engine].append(start_once(model, engine, threads))
            except WorkerError as error:
                errors[engine] = str(error)
    return [
        {"model": model.name, "engine": engine, "threads": threads}
        | ({"error": errors[engine]} if engine in errors else middles(runs[engine]))
        for engine in engines
    ]
