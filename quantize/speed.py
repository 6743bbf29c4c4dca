"""How long a photo and a phrase take, of two bundles in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cris_edge import Segmenter
from cris_edge.bundle import GRAPHS
from quantize.samples import Feed, Feeds
from training.data.samples import Sample

ROUNDS, WARM = 30, 3
"""Times that each graph is run and timed, and before that."""

Milliseconds = dict[str, float]
"""Medians of `photo`, `phrase` and `pair`, and `total`, their sum: a new photo with a phrase."""
UNTIMED = "graphs for TensorRT are timed on an NVIDIA GPU alone, by a TensorRT that runs them"


class Timing(NamedTuple):
    """Of a float bundle and of the one that is quantised; empty where nothing can time them."""

    said: str
    """What was timed, by what; or why nothing was."""
    before: Milliseconds
    after: Milliseconds


def race(segmenters: Sequence[Segmenter], sample: Sample) -> list[Milliseconds]:
    """Time the graphs of segmenters on a photo and a phrase, which each prepares its own way.

    They take turns run by run, so that what disturbs the machine for a while disturbs all.
    """
    inputs = [_inputs(segmenter, sample) for segmenter in segmenters]
    found: list[Milliseconds] = [{} for _ in segmenters]
    for graph in GRAPHS:
        times: list[list[float]] = [[] for _ in segmenters]
        for _ in range(WARM + ROUNDS):
            for segmenter, feed, taken in zip(segmenters, inputs, times, strict=True):
                start = time.perf_counter()
                segmenter.graphs[graph](feed[graph])
                taken.append(time.perf_counter() - start)
        for entry, taken in zip(found, times, strict=True):
            entry[graph] = round(1e3 * float(np.median(taken[WARM:])), 3)
    return [entry | {"total": round(sum(entry.values()), 3)} for entry in found]


def _inputs(segmenter: Segmenter, sample: Sample) -> dict[str, Feed]:
    feeds = Feeds(segmenter, [sample])
    return {graph: next(iter(feeds.of(graph))) for graph in GRAPHS}
