"""What each layer does to the masks when it alone is INT8, as numbers and as a chart."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.engines.base import Graph
from cris_edge.files import write_image
from quantize.candidate import Candidates
from quantize.graphs import Layer
from quantize.samples import Feed, Feeds, run
from quantize.written import WrittenGraph, open_written

Damage = dict[Layer, float]
"""Mean absolute change of the probability of a pixel, the most sensitive layer first."""


def sweep(candidates: Candidates, feeds: Feeds, threads: int | None) -> Damage:
    """Quantise each layer alone and compare with the float model, in ONNX Runtime, as written.

    That is quick to load a graph, and rounding does the same whatever computes.

    Args:
        candidates: the layers.
        feeds: photos and phrases that nothing is judged by.
        threads: for one run of a graph; None lets the engine choose.
    """
    plain = open_written(candidates.source, threads)
    names = dict.fromkeys([*(layer.graph for layer in candidates.layers), "pair"])
    inputs = {name: list(feeds.of(name)) for name in names}
    expected = [_probability(plain.graphs["pair"], feed) for feed in inputs["pair"]]
    damage: Damage = {}
    for layer in tqdm(candidates.layers, "sensitivity", unit="layer", mininterval=1):
        with tempfile.TemporaryDirectory(prefix="cris-edge-") as folder:
            path = candidates.write_onnx(layer.graph, [layer], Path(folder))
            graph = WrittenGraph(path, candidates.source.graphs[layer.graph], threads)
        pair = graph if layer.graph == "pair" else plain.graphs["pair"]
        changes = [
            np.abs(_probability(pair, _pair_feed(graph, layer, kept, own)) - wanted).mean()
            for kept, own, wanted in zip(inputs["pair"], inputs[layer.graph], expected, strict=True)
        ]
        damage[layer] = float(np.mean(changes))
    return dict(sorted(damage.items(), key=lambda item: -item[1]))


def _pair_feed(graph: Graph, layer: Layer, kept: Feed, own: Feed) -> Feed:
    """The pair's inputs, of which the layer's graph gives its share anew."""
    return kept if layer.graph == "pair" else kept | run(graph, own)


def _probability(pair: Graph, feed: Feed) -> NDArray[np.float64]:
    logits = np.asarray(run(pair, feed)["logits"], np.float64)
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -50, 50))))


SHOWN = 40
"""Bars of the chart."""
_ROW, _LABEL, _WIDTH, _TOP = 20, 430, 1100, 70
# BGR.
_COLOURS = {"photo": (190, 120, 40), "phrase": (60, 150, 60), "pair": (40, 110, 230)}
_PAPER, _INK, _FAINT = (250, 250, 250), (40, 40, 40), (150, 150, 150)


def draw_chart(path: Path, damage: Mapping[Layer, float], kept: Sequence[Layer]) -> None:
    """Write a picture of bars, one a layer, the most sensitive first; whole or not at all.

    Args:
        path: the picture.
        damage: from `sweep`.
        kept: layers in INT8; the bars of the others are hollow.

    Raises:
        InputError: the suffix is no image format, or the file cannot be written.
    """
    shown = list(damage.items())[:SHOWN]
    canvas = np.full((_TOP + _ROW * len(shown) + 20, _WIDTH, 3), _PAPER, np.uint8)
    heading = f"Mean change of probability, that layer alone in INT8: {len(shown)} of {len(damage)}"
    _write(canvas, heading, (12, 26), 0.6)
    for place, (name, colour) in enumerate(_COLOURS.items()):
        cv2.rectangle(canvas, (12 + 110 * place, 40), (28 + 110 * place, 54), colour, -1)
        _write(canvas, name, (34 + 110 * place, 53), 0.5)
    _write(canvas, "hollow: stays in float", (360, 53), 0.5)
    longest = max((value for _, value in shown), default=0) or 1
    for place, (layer, value) in enumerate(shown):
        bottom = _TOP + _ROW * (place + 1) - 6
        end = _LABEL + max(1, round((_WIDTH - _LABEL - 100) * value / longest))
        thickness = -1 if layer in kept else 1
        _write(canvas, layer.title[-52:], (12, bottom), 0.42)
        corners = (_LABEL, bottom - 11), (end, bottom + 2)
        cv2.rectangle(canvas, *corners, _COLOURS[layer.graph], thickness)
        _write(canvas, f"{value:.2e}", (end + 6, bottom), 0.4, _FAINT)
    write_image(path, canvas)


def _write(
    canvas: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = _INK,
) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
