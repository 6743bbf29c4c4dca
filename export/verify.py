"""Every bundle is compared with torch at once, on real photos and phrases, by every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.engines import answers, installed, open_engine, unfit
from cris_edge.engines.base import Engine
from cris_edge.errors import EngineError
from cris_edge.photo import Photo, as_photo
from cris_edge.tokenizer import Tokenizer
from export.errors import ExportError
from training.model import CRIS
from training.predictor import torch_segmenter

MAX_LOGITS = 1e-3
"""Greatest absolute difference of a logit from torch with the same weights."""
MIN_MASKS = 0.999
"""Least share of pixels on which the masks are those of the checkpoint in torch.

Of every pair's pixels for float32. For float16, whose rounded weights are another model by a hair,
of all pairs' pixels: a pale mask of one photo may move by more.
"""
MIN_MASKS_OF_BYTES = 0.995
"""The same of weights rounded to 8 bits, 16 times as coarse: what that costs, mIoU must tell."""
PHRASES = (
    "white cat",
    "the person on the left",
    "biggest animal",
    "the second one from the right, behind the others, in a dark blue coat and with a red umbrella",
    "sky",
)
"""Of one word and of several, and one that is cut at the model's token length."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MAX_PHOTOS = 16
"""Of a folder, spread evenly: agreement does not become surer with more."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine's results are from torch's, over all pairs of photo and phrase."""

    engine: str
    version: str
    pairs: int
    logits: float
    """Greatest absolute difference from torch with the weights as they are stored."""
    logits_from_checkpoint: float
    """The same from the checkpoint's own weights; more only where they were rounded."""
    masks: float
    """Share of pixels on which the mask is the checkpoint's, in the worst pair."""
    masks_mean: float
    """The same over all pairs."""
    covered: int
    """Pairs in which the checkpoint's mask is neither empty nor the whole photo."""

    def holds(self, precision: str) -> bool:
        """Within the bounds for that precision of the weights; what is no number is not."""
        asked = bounds(precision)
        masks = self.masks if precision == "float32" else self.masks_mean
        near = math.isfinite(self.logits) and self.logits <= asked.get("logits", math.inf)
        # Where masks alone count, masks that are empty tell nothing.
        told = "logits" in asked or self.covered > 0
        return near and told and masks >= asked["masks"]


def bounds(precision: str) -> dict[str, float]:
    """The most that logits may differ by, and the least share of equal pixels.

    Half precision throughout moves logits by more, most where they are far from 0: there masks
    alone count.
    """
    masks = MIN_MASKS_OF_BYTES if precision == "weights8" else MIN_MASKS
    return {"masks": masks} | ({} if precision == "fp16" else {"logits": MAX_LOGITS})


def in_words(precision: str) -> str:
    """The bounds for people."""
    asked = bounds(precision)
    logits = f"logits within {asked['logits']} and " if "logits" in asked else ""
    return f"{logits}masks on {asked['masks']:.1%} of pixels or more"


def find_photos(places: Sequence[Path]) -> list[Path]:
    """The photos to compare on: files as given, of each folder up to 16 spread evenly.

    Raises:
        ExportError: a place does not exist, or there is no photo at all.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
            step = math.ceil(len(inside) / MAX_PHOTOS) or 1
            found += inside[::step]
        elif place.is_file():
            found.append(place)
        else:
            raise ExportError(f"{place}: no such photo or folder of photos")
    if not found:
        names = ", ".join(map(str, places))
        raise ExportError(f"{names}: expected photos ({', '.join(sorted(SUFFIXES))}), found none")
    return found


def verify(
    bundle: Bundle, checkpoint: CRIS, stored: CRIS, tokenizer: Tokenizer, photos: Sequence[Path]
) -> list[Agreement]:
    """Compare a bundle with torch by every installed engine that reads it.

    Args:
        bundle: as written.
        checkpoint: the model as it was loaded.
        stored: the model whose weights the bundle holds: folded, perhaps rounded.
        tokenizer: the checkpoint's.
        photos: files, at least one; each is paired with every phrase of `PHRASES`.

    Returns:
        One result an engine, all within the bounds.

    Raises:
        ExportError: no engine is installed, one does not agree, or the checkpoint gives what is
            no number.
        InputError: a photo cannot be read.
    """
    fit = (name for name in filter(answers, installed()) if not unfit(name, bundle))
    engines = [open_engine(name) for name in fit]
    if not engines:
        raise ExportError(
            f"no engine for {', '.join(sorted(bundle.suffixes))} is installed, so the export "
            "cannot be checked; run: pip install 'cris-edge[export]'"
        )
    reference = _Reference(checkpoint, stored, tokenizer, bundle.threshold)
    pixels = [as_photo(path) for path in photos]
    try:
        expected = [reference.results(photo) for photo in pixels]
    except EngineError as error:
        raise ExportError(f"the checkpoint itself cannot be run: {error}") from error
    agreements = [_compare(engine, bundle, pixels, expected) for engine in engines]
    if not all(agreement.holds(bundle.precision) for agreement in agreements):
        raise ExportError(
            f"{bundle.name}: the export does not agree with torch. Expected "
            f"{in_words(bundle.precision)}; got\n{table(agreements)}\nNothing was written"
        )
    return agreements


@dataclass(frozen=True)
class _Expected:
    """Torch's results for one photo: one entry a phrase."""

    stored: list[NDArray[np.float32]]
    checkpoint: list[NDArray[np.float32]]
    masks: list[NDArray[np.bool_]]


class _Reference:
    """Torch, by way of the runtime's own photo and phrase preparation."""

    def __init__(self, checkpoint: CRIS, stored: CRIS, tokenizer: Tokenizer, threshold: float):
        self._checkpoint = torch_segmenter(checkpoint, tokenizer, threshold)
        self._stored = torch_segmenter(stored, tokenizer, threshold)

    def results(self, photo: Photo) -> _Expected:
        return _Expected(
            stored=run_graphs(self._stored, photo),
            checkpoint=run_graphs(self._checkpoint, photo),
            masks=[result.mask for result in self._checkpoint.predict(photo, PHRASES)],
        )


def run_graphs(segmenter: Segmenter, photo: Photo) -> list[NDArray[np.float32]]:
    """Logits (1, h, w) of a photo and `PHRASES`: each by itself, then all of them in one batch."""
    graphs, phrases = segmenter.graphs, segmenter.phrases
    features = graphs["photo"]({"frame": segmenter.letterbox.frame(photo)[None]})
    tokens = [phrases.tokenizer.encode(phrase, phrases.word_len)[None] for phrase in PHRASES]
    results = []
    for batch in (*tokens, np.concatenate(tokens)):
        pair = graphs["pair"]({**features, **graphs["phrase"]({"tokens": batch})})
        results += list(np.asarray(graphs["pair"].fetch(pair["logits"]), np.float32))
    return results


def _compare(
    engine: Engine, bundle: Bundle, photos: Sequence[Photo], expected: Sequence[_Expected]
) -> Agreement:
    """One engine: its logits graph by graph, its masks by the runtime as a user calls it."""
    segmenter = Segmenter(bundle.folder, engine=engine.name)
    stored: list[float] = []
    checkpoint: list[float] = []
    masks: list[float] = []
    coverage: list[float] = []
    for photo, wanted in zip(photos, expected, strict=True):
        logits = run_graphs(segmenter, photo)
        stored += map(_distance, logits, wanted.stored)
        checkpoint += map(_distance, logits, wanted.checkpoint)
        results = segmenter.predict(photo, PHRASES)
        masks += [
            float((result.mask == mask).mean())
            for result, mask in zip(results, wanted.masks, strict=True)
        ]
        coverage += [float(mask.mean()) for mask in wanted.masks]
    return Agreement(
        engine=engine.name,
        version=engine.version,
        pairs=len(masks),
        # numpy's maximum, which keeps what is no number.
        logits=float(np.max(stored)),
        logits_from_checkpoint=float(np.max(checkpoint)),
        masks=min(masks),
        masks_mean=float(np.mean(masks)),
        covered=sum(0 < share < 1 for share in coverage),
    )


def _distance(logits: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.max(np.abs(logits - wanted)))


def table(agreements: Sequence[Agreement]) -> str:
    """The figures for people."""
    lines = [
        f"  {'engine':24}{'logits':>10}{'from checkpoint':>18}{'masks, worst':>15}{'mean':>11}"
    ]
    for one in agreements:
        lines.append(
            f"  {one.engine + ' ' + one.version:24}{one.logits:>10.1e}"
            f"{one.logits_from_checkpoint:>18.1e}{one.masks:>15.3%}{one.masks_mean:>11.4%}"
        )
    first = agreements[0]
    lines.append(
        f"  over {first.pairs} pairs of photo and phrase; in {first.covered} the checkpoint's "
        "mask covers a part of the photo"
    )
    return "\n".join(lines)
