"""Which photos and phrases a model is calibrated with, and what the float model gives for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge import Segmenter
from cris_edge.engines.base import Graph
from quantize.errors import QuantizeError
from training.data.samples import Sample
from training.selection import Data, Selection, spread

Feed = dict[str, NDArray[np.generic]]
"""A graph's inputs by name, or its outputs."""


def choose(data: Data, judged: Sequence[Selection], count: int) -> list[Sample]:
    """Samples of the training split to calibrate with, the same ones at every call.

    As many photos as can be, spread evenly; then another phrase of each, until there are `count`.

    Args:
        data: from `training.selection.open_data`, or made-up scenes.
        judged: what the model is judged by: nothing is taken of its photos.
        count: of samples.

    Raises:
        QuantizeError: there is no training split, or one photo alone in it.
        DataError: the data are not as they should be.
    """
    seen = {str(sample.photo.path) for selection in judged for sample in selection.samples}
    photos: dict[str, list[Sample]] = {}
    for selection in judged:
        for sample in data.training(selection):
            of_photo = photos.setdefault(str(sample.photo.path), [])
            if str(sample.photo.path) not in seen and sample not in of_photo:
                of_photo.append(sample)
    usable = [of_photo for of_photo in photos.values() if of_photo]
    if len(usable) < 2:
        raise QuantizeError(
            f"calibration needs at least two photos of a training split, with phrases, that are "
            f"not judged by; the data have {len(usable)}. Add labelled photos for training, or "
            "calibrate with made-up scenes: --scenes 100"
        )
    # Another place in each photo's list, so that not all phrases are of the kind that comes first.
    turned = [one[i % len(one) :] + one[: i % len(one)] for i, one in enumerate(usable)]
    rounds = itertools.zip_longest(*spread(turned, count))
    return [sample for each in rounds for sample in each if sample is not None][:count]


class Feeds:
    """Inputs of the three graphs for every sample, computed anew each time they are gone through.

    Photos and phrases are prepared by the runtime's own code, one phrase at a time; the pair's
    inputs are what the float photo and phrase graphs give.
    """

    def __init__(self, segmenter: Segmenter, samples: Sequence[Sample]):
        self._segmenter, self._samples = segmenter, samples

    def __len__(self) -> int:
        return len(self._samples)

    def first(self, count: int) -> Feeds:
        """At most `count` of them, spread evenly."""
        return Feeds(self._segmenter, spread(self._samples, count))

    def check(self) -> None:
        """Run the float model on every sample.

        Raises:
            QuantizeError: a graph gives what is no number.
            InputError: a photo cannot be read.
        """
        graphs = self._segmenter.graphs
        for sample, feed in zip(self._samples, self.of("pair"), strict=True):
            self._check(sample, "photo or phrase", feed)
            self._check(sample, "pair", run(graphs["pair"], feed))

    def _check(self, sample: Sample, graph: str, tensors: Feed) -> None:
        for name, values in tensors.items():
            if not np.isfinite(values).all():
                raise QuantizeError(
                    f"the float model's graph {graph} gives what is no number in {name!r} for "
                    f"{sample.photo.path.name}, {sample.text!r}: its weights are damaged, and it "
                    "cannot be calibrated; export the checkpoint anew"
                )

    def of(self, graph: str) -> Iterator[Feed]:
        """Inputs of `photo`, `phrase` or `pair`, one sample after the other, with a bar."""
        bar = tqdm(self._samples, f"samples for {graph}", unit="pair", mininterval=1, leave=False)
        for sample in bar:
            photo: Feed = {}
            phrase: Feed = {}
            if graph != "phrase":
                frame = self._segmenter.letterbox.frame(sample.photo.read())
                photo = {"frame": frame[None]}
            if graph != "photo":
                known = self._segmenter.phrases
                phrase = {"tokens": known.tokenizer.encode(sample.text, known.word_len)[None]}
            if graph == "pair":
                photo = run(self._segmenter.graphs["photo"], photo)
                phrase = run(self._segmenter.graphs["phrase"], phrase)
            yield photo | phrase


def run(graph: Graph, feed: Feed) -> Feed:
    """What a graph gives, as arrays."""
    return {name: graph.fetch(value) for name, value in graph(feed).items()}
