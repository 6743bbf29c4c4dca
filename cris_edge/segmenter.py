"""From a photo and a phrase to a mask: load, encode, decode, result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from cris_edge.bundle import Bundle, GraphSpec
from cris_edge.engines import choose_engine
from cris_edge.engines.base import Graph
from cris_edge.errors import EngineError, InputError
from cris_edge.letterbox import Letterbox
from cris_edge.photo import as_photo
from cris_edge.segmentation import Segmentation
from cris_edge.tokenizer import Tokenizer, clean

SHIPPED = Path(__file__).parent / "models" / "cris_edge_s"


@dataclass(frozen=True)
class Info:
    """What a segmenter runs, and with what."""

    model: str
    precision: str
    input_size: int
    """Side of the model's square input in pixels."""
    engine: str
    engine_version: str
    threads: int | None
    """For one run of a graph; None: as many as the engine chooses."""


class Segmenter:
    """Finds in photos what phrases mean. Safe to use from several threads.

    >>> segmenter = Segmenter()
    >>> result = segmenter.predict("photo.jpg", "the man in red")  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        threads: int | None = None,
    ):
        """Load a model.

        Args:
            bundle: a folder or zip file; None takes the model that comes with the package.
            engine: `onnxruntime`, `openvino`, or `auto` for the best that is installed and runs
                the bundle; `info` says which.
            threads: for one prediction; None lets the engine choose.

        Raises:
            BundleError: the bundle is missing, damaged, or does not describe itself.
            EngineError: the engine is missing or cannot run the bundle.
        """
        if threads is not None and threads < 1:
            raise EngineError(f"threads must be 1 or more, not {threads}")
        opened = Bundle.open(SHIPPED if bundle is None else Path(bundle))
        chosen = choose_engine(engine, opened)
        # A zip file's temporary folder lives as long as its bundle.
        self.bundle: Bundle | None = opened
        self._set(
            opened.letterbox,
            Tokenizer.load(opened.path(opened.tokenizer)),
            opened.word_len,
            opened.threshold,
            {
                name: chosen.load(opened.path(spec.file), spec, threads)
                for name, spec in opened.graphs.items()
            },
            Info(
                model=opened.name,
                precision=opened.precision,
                input_size=opened.letterbox.size,
                engine=chosen.name,
                engine_version=chosen.version,
                threads=threads,
            ),
        )
        self._check_sizes(opened.graphs)

    @classmethod
    def from_graphs(
        cls,
        letterbox: Letterbox,
        tokenizer: Tokenizer,
        word_len: int,
        threshold: float,
        graphs: Mapping[str, Graph],
        info: Info,
    ) -> Segmenter:
        """A segmenter over graphs that are loaded already, so that a model in training goes
        through the very same code as a bundle on a device.

        Args:
            letterbox, tokenizer, word_len, threshold: as in a bundle.
            graphs: `photo`, `phrase` and `pair`, with the inputs and outputs of docs/bundle.md.
            info: what `info` shall say.
        """
        segmenter = cls.__new__(cls)
        segmenter.bundle = None
        segmenter._set(letterbox, tokenizer, word_len, threshold, graphs, info)
        return segmenter

    def _set(
        self,
        letterbox: Letterbox,
        tokenizer: Tokenizer,
        word_len: int,
        threshold: float,
        graphs: Mapping[str, Graph],
        info: Info,
    ) -> None:
        self.letterbox, self.tokenizer = letterbox, tokenizer
        self.word_len, self.threshold = word_len, threshold
        self.info = info
        self._graphs = dict(graphs)

    def _check_sizes(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Refuse a bundle whose sizes are not those of its graphs."""
        side = self.letterbox.size
        wanted = {"photo": ("image", (1, 3, side, side)), "phrase": ("tokens", (1, self.word_len))}
        for graph, (name, shape) in wanted.items():
            found = {tensor.name: tensor.shape for tensor in graphs[graph].inputs}
            if found != {name: shape}:
                raise EngineError(f"{graph} must take {name} {shape}, but takes {found}")

    @overload
    def predict(self, photo: object, phrases: str) -> Segmentation: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, photo: object, phrases: Sequence[str]) -> list[Segmentation]: ...
    def predict(
        self, photo: object, phrases: str | Sequence[str]
    ) -> Segmentation | list[Segmentation]:
        """Segment a photo by one phrase or several; the photo is encoded once.

        Args:
            photo: a path; or uint8 (H, W, 3) BGR, (H, W, 4) BGRA, (H, W) or (H, W, 1) grey, each
                side from 8 to 8192 pixels.
            phrases: what to find, such as "the man in red".

        Returns:
            One result for one phrase, a list for a sequence, in its order.

        Raises:
            InputError: a photo or phrase that cannot be used.
            EngineError: the engine failed, or gave what is no number.
        """
        single = isinstance(phrases, str)
        sequence = isinstance(phrases, Iterable) and not isinstance(phrases, (str, bytes))
        texts = [check_phrase(text) for text in (phrases if sequence else [phrases])]
        pixels = as_photo(photo)
        if not texts:
            return []
        features = self._graphs["photo"]({"image": self.letterbox.image(pixels)})
        results = []
        for text in texts:
            tokens = self.tokenizer.encode(text, self.word_len)[None]
            pair = self._graphs["pair"](features | self._graphs["phrase"]({"tokens": tokens}))
            logits = np.asarray(pair["logits"][0, 0], np.float32)
            if not np.isfinite(logits).all():
                raise EngineError(
                    f"{self.info.engine} gave results that are no numbers for {text!r}; "
                    f"the weights of {self.info.model} ({self.info.precision}) are damaged"
                )
            probability = self.letterbox.restore(logits, *pixels.shape[:2])
            results.append(Segmentation(text, probability, self.threshold))
        return results[0] if single else results


def check_phrase(phrase: object) -> str:
    """Refuse what is no phrase.

    Raises:
        InputError: not a str, or nothing but white space.
    """
    if not isinstance(phrase, str):
        raise InputError(
            f"a phrase must be a str such as 'the man in red', not {type(phrase).__name__}"
        )
    if not clean(phrase):
        raise InputError(f"the phrase {phrase!r} is empty; say what to find: 'the man in red'")
    return phrase
