"""What is measured, from a frame in memory to a mask at its size: the runtime's segmenter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from cris_edge import Segmenter
from cris_edge.photo import Photo
from samples.bench.contender import CLIPSEG, REFERENCE, Contender


class Subject(Protocol):
    """A model that is loaded and can be timed."""

    def describe(self) -> dict[str, Any]:
        """Model, precision as stored and as computed, version of the engine, size of a bundle."""

    def predict(self, frame: Photo, phrases: list[str]) -> object:
        """Masks of a new photo, one a phrase."""

    def keep(self, frame: Photo) -> object:
        """What can be computed of a photo once, for `ask`."""

    def ask(self, kept: object, phrase: str) -> object:
        """The mask of a photo that was kept."""

    def stages(self, frame: Photo, phrase: str) -> dict[str, float | None]:
        """Milliseconds of each stage for a new photo and a new phrase."""

    def stream(self, frames: Iterable[Photo], phrase: str) -> object:
        """Masks of frame after frame; None where the model has no way of its own for it."""


def open_subject(contender: Contender) -> Subject:
    """Load what the contender says; torch and transformers are imported for their kinds alone."""
    if contender.kind == REFERENCE:
        from samples.bench.torch_subjects import PlainSubject

        return PlainSubject(contender.threads)
    if contender.kind == CLIPSEG:
        from samples.bench.torch_subjects import ClipSegSubject

        return ClipSegSubject(contender.threads)
    return SegmenterSubject(contender)


def milliseconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begun)


class SegmenterSubject:
    """The runtime, by its public calls."""

    def __init__(self, contender: Contender):
        self.segmenter = Segmenter(
            contender.bundle, contender.engine, contender.threads, contender.precision
        )

    def describe(self) -> dict[str, Any]:
        """What the segmenter and its bundle say of themselves."""
        info, bundle = self.segmenter.info, self.segmenter.bundle
        return {
            "model": info.model,
            "precision": info.precision,
            "computed": info.computed,
            "input_size": info.input_size,
            "engine_version": info.engine_version,
            "bundle_bytes": bundle.size if bundle else None,
        }

    def predict(self, frame: Photo, phrases: list[str]) -> object:
        """The photo is encoded once, the phrases run in batches."""
        return [result.mask for result in self.segmenter.predict(frame, phrases)]

    def keep(self, frame: Photo) -> object:
        """The encoded photo."""
        return self.segmenter.encode(frame)

    def ask(self, kept: object, phrase: str) -> object:
        """Only the phrase and the pair are left to compute."""
        return self.segmenter.predict(kept, phrase).mask

    def stages(self, frame: Photo, phrase: str) -> dict[str, float | None]:
        """Photo and pair are differences, as a segmenter prepares and restores in the same call.

        Noise could turn those of a very small model negative.
        """
        segmenter = self.segmenter
        height, width = frame.shape[:2]
        side = segmenter.letterbox.size // 4
        logits = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
        prepare = milliseconds(lambda: segmenter.letterbox.frame(frame))
        encode = milliseconds(lambda: self.keep(frame))
        read = milliseconds(lambda: segmenter.phrases([phrase]))
        kept = segmenter.encode(frame)
        rest = milliseconds(lambda: self.ask(kept, phrase))
        back = milliseconds(
            lambda: segmenter.letterbox.restore(logits, height, width) > segmenter.threshold
        )
        return {
            "prepare": prepare,
            "photo": max(0.0, encode - prepare),
            "phrase": read,
            "pair": max(0.0, rest - back),
            "back": back,
        }

    def stream(self, frames: Iterable[Photo], phrase: str) -> object:
        """The segmenter's own stream."""
        for result in self.segmenter.stream(frames, phrase):
            _ = result.mask
        return True
