"""From a photo and a phrase to a mask: load, encode, decode, result."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cris_edge.bundle import MAX_PHRASES, Bundle
from cris_edge.engines import choose_engine
from cris_edge.engines.base import Graph, Value
from cris_edge.errors import EngineError, InputError
from cris_edge.letterbox import Letterbox
from cris_edge.overlap import overlap
from cris_edge.photo import as_photo
from cris_edge.phrases import Phrases
from cris_edge.segmentation import Segmentation
from cris_edge.tokenizer import Tokenizer, clean

SHIPPED = Path(__file__).parent / "models" / "cris_edge_s"
MAX_THREADS = 1024
"""More than any machine has cores for; engines count them in few bits."""

Logits = NDArray[np.float32]
"""(h, w), one for every fourth pixel of the input."""


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """What a segmenter keeps of a photo; only that segmenter can use it, and it equals itself."""

    height: int
    width: int
    """Of the photo, in pixels."""
    features: Mapping[str, Value]
    """Where the engine keeps them."""
    graph: Graph
    """What made them."""


@dataclass(frozen=True)
class Info:
    """What a segmenter runs, and with what."""

    model: str
    precision: str
    """As the bundle says, which is about its weights and graphs."""
    input_size: int
    """Side of the model's square input in pixels."""
    engine: str
    engine_version: str
    threads: int | None
    """For one run of a graph; None: as many as the engine chooses."""
    computed: str = "float32"
    """What is computed in: `bfloat16` where it was asked for; else `float32`, `float16` of an
    `fp16` bundle, which an engine that has no such arithmetic widens, or `int8` of such a bundle,
    whose other layers are computed in float32, or in float16 if it is for TensorRT."""


COMPUTED = {"fp16": "float16", "int8": "int8"}
"""What bundles of a precision are computed in, where it is not float32."""


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
        precision: str | None = None,
    ):
        """Load a model.

        Args:
            bundle: a folder or zip file; None takes the model that comes with the package.
            engine: `tensorrt`, `openvino`, `onnxruntime`, or `auto` for the best that is installed
                and runs the bundle; `info` says which.
            threads: for one prediction; None lets the engine choose.
            precision: `bfloat16` computes faster and less exactly, with OpenVINO on a CPU that has
                it; None computes as the bundle says, whatever else the CPU has.

        Raises:
            BundleError: the bundle is missing, damaged, or does not describe itself.
            EngineError: the engine is missing, or cannot run the bundle or compute in `precision`.
        """
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
            raise EngineError(f"threads must be a number from 1 to {MAX_THREADS}, not {threads!r}")
        opened = Bundle.open(SHIPPED if bundle is None else Path(bundle))
        chosen = choose_engine(engine, opened, precision)
        # A zip file's temporary folder lives as long as its bundle.
        self.bundle: Bundle | None = opened
        self._set(
            opened.letterbox,
            Tokenizer.load(opened.path(opened.tokenizer)),
            opened.word_len,
            opened.threshold,
            {
                name: chosen.load(opened.path(spec.file), spec, threads, precision)
                for name, spec in opened.graphs.items()
            },
            Info(
                model=opened.name,
                precision=opened.precision,
                input_size=opened.letterbox.size,
                engine=chosen.name,
                engine_version=chosen.version,
                threads=threads,
                computed=precision or COMPUTED.get(opened.precision, "float32"),
            ),
        )

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
        self.letterbox, self.threshold, self.info = letterbox, threshold, info
        self.phrases = Phrases(tokenizer, word_len, graphs["phrase"])
        self.graphs = dict(graphs)
        self._photo, self._pair = graphs["photo"], graphs["pair"]

    def encode(self, photo: object) -> EncodedPhoto:
        """Do once what a photo needs, for later `predict` calls with other phrases.

        Args:
            photo: a path or an array, as `predict` takes them.

        Raises:
            InputError: a photo that cannot be used.
            EngineError: the engine failed.
        """
        return self._encode(*self._prepare(photo))

    def _prepare(self, photo: object) -> tuple[NDArray[np.uint8], int, int]:
        """A photo's letterboxed frame, its height and its width."""
        pixels = as_photo(photo)
        height, width = pixels.shape[:2]
        return self.letterbox.frame(pixels), height, width

    def _encode(self, frame: NDArray[np.uint8], height: int, width: int) -> EncodedPhoto:
        return EncodedPhoto(height, width, self._photo({"frame": frame[None]}), self._photo)

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
                side from 8 to 8192 pixels; or what `encode` gave.
            phrases: what to find, such as "the man in red". Phrases asked before are remembered.

        Returns:
            One result for one phrase, a list for a sequence, in its order.

        Raises:
            InputError: a photo or phrase that cannot be used.
            EngineError: the engine failed, or gave what is no number.
        """
        texts = _texts(phrases)
        if not isinstance(photo, EncodedPhoto):
            ready = self._prepare(photo)
            if not texts:
                return []
            photo = self._encode(*ready)
        if photo.graph is not self._photo:
            raise InputError("the photo was encoded by another segmenter; encode it with this one")
        results = self._restore(self._logits(photo, texts), photo, texts)
        return results[0] if isinstance(phrases, str) else results

    @overload
    def stream(  # type: ignore[overload-overlap]
        self, photos: Iterable[object], phrases: str
    ) -> Generator[Segmentation, None, None]: ...
    @overload
    def stream(
        self, photos: Iterable[object], phrases: Sequence[str]
    ) -> Generator[list[Segmentation], None, None]: ...
    def stream(
        self, photos: Iterable[object], phrases: str | Sequence[str]
    ) -> Generator[Segmentation, None, None] | Generator[list[Segmentation], None, None]:
        """Segment photo after photo, such as a camera's frames, by the same phrases.

        A photo is prepared, and one that is done brought back to its size, while another is
        computed. Results come in the photos' order; few are read ahead, so that memory stays
        bounded. When the caller stops asking, reading stops; `close` waits until it has. Whoever
        needs the photo beside its result keeps those that were read (samples/video.py).

        Args:
            photos: paths or arrays, as `predict` takes them, of which there may be no end; read
                in another thread.
            phrases: one or several.

        Yields:
            What `predict` gives for each photo.

        Raises:
            InputError: at once, phrases that cannot be used, and one photo or path in place of
                several; in its turn, a photo that cannot be used.
            EngineError: the engine failed.
        """
        one = isinstance(photos, (str, bytes, os.PathLike, np.ndarray))
        if one or not isinstance(photos, Iterable):
            raise InputError(
                "stream takes photo after photo, such as a list of paths or a camera's frames; "
                f"this is one {type(photos).__name__}: give it to predict, or in a list"
            )
        texts = _texts(phrases)
        single = isinstance(phrases, str)

        def compute(ready: tuple[NDArray[np.uint8], int, int]) -> tuple[EncodedPhoto, list[Logits]]:
            encoded = self._encode(*ready)
            return encoded, self._logits(encoded, texts)

        def finish(raw: tuple[EncodedPhoto, list[Logits]]) -> Any:
            encoded, logits = raw
            results = self._restore(logits, encoded, texts)
            return results[0] if single else results

        return overlap(photos, self._prepare, compute, finish)

    def _logits(self, encoded: EncodedPhoto, texts: Sequence[str]) -> list[Logits]:
        """Logits of each phrase, a few phrases in one run."""
        found: list[Logits] = []
        for first in range(0, len(texts), MAX_PHRASES):
            said = self.phrases(texts[first : first + MAX_PHRASES])
            results = self._pair({**encoded.features, **said})
            found += list(np.asarray(self._pair.fetch(results["logits"])[:, 0], np.float32))
        return found

    def _restore(
        self, logits: Sequence[Logits], encoded: EncodedPhoto, texts: Sequence[str]
    ) -> list[Segmentation]:
        """Logits to results at the photo's own size."""
        results = []
        for text, one in zip(texts, logits, strict=True):
            if not np.isfinite(one).all():
                raise EngineError(
                    f"{self.info.engine} gave results that are no numbers for {text!r}; "
                    f"the weights of {self.info.model} ({self.info.precision}) are damaged"
                )
            probability = self.letterbox.restore(one, encoded.height, encoded.width)
            results.append(Segmentation(text, probability, self.threshold))
        return results


def _texts(phrases: object) -> list[str]:
    """The phrases of a call, one or several."""
    if isinstance(phrases, Iterable) and not isinstance(phrases, (str, bytes)):
        return [check_phrase(text) for text in phrases]
    return [check_phrase(phrases)]


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
