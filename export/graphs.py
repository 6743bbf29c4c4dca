"""The three graphs of a bundle, cut out of a CRIS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cris_edge.bundle import PHRASES, GraphSpec, TensorSpec
from training.model import CRIS, PHRASE


class Photo(nn.Module):
    """Once a photo: normalisation, the image encoder, and what neck and projector take of it."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """(1, S, S, 3) uint8 RGB to what is kept of a photo."""
        return self.model.photo(frame)


class Phrase(nn.Module):
    """Once a phrase: the text encoder, and what decoder, neck and projector take of it."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(N, L) int64 to what is kept of N phrases."""
        return self.model.phrase(tokens)


class Pair(nn.Module):
    """Once a pair of photo and phrase: what is left of neck, decoder and projector."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.model, self.photo = model, len(model.photo_names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """One photo's tensors and N phrases' to logits (N, 1, S/4, S/4)."""
        return self.model.pair(inputs[: self.photo], inputs[self.photo :])


@dataclass(frozen=True)
class Source:
    """A graph before export: the module, an example of its inputs, and the names on both sides."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """Those of phrases hold `EXAMPLES` phrases."""
    outputs: tuple[str, ...]
    batched: tuple[str, ...] = ()
    """Inputs and outputs whose first axis is one a phrase."""

    def spec(self, file: str) -> GraphSpec:
        """Names, types and shapes, as the bundle describes them."""
        with torch.no_grad():
            results = self.module(*self.inputs.values())
        results = results if isinstance(results, tuple) else (results,)
        named = zip(self.outputs, results, strict=True)
        return GraphSpec(
            file,
            tuple(self._tensor(name, value) for name, value in self.inputs.items()),
            tuple(self._tensor(name, value) for name, value in named),
        )

    def _tensor(self, name: str, value: Tensor) -> TensorSpec:
        shape: tuple[int | str, ...] = tuple(value.shape)
        if name in self.batched:
            shape = (PHRASES, *shape[1:])
        return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


EXAMPLES = 2
"""Phrases in an example: with one alone, an exporter takes the axis for a constant."""


def split(model: CRIS) -> dict[str, Source]:
    """Cut a model in evaluation mode into a bundle's graphs `photo`, `phrase`, `pair`."""
    config = model.config
    frame = torch.zeros(1, config.input_size, config.input_size, 3, dtype=torch.uint8)
    # A start and an end token: a phrase of padding alone would attend to nothing.
    tokens = torch.zeros(EXAMPLES, config.word_len, dtype=torch.int64)
    tokens[:, :2] = torch.tensor([config.vocab_size - 2, config.vocab_size - 1])
    photo, phrase = Photo(model), Phrase(model)
    with torch.no_grad():
        features, texts = photo(frame), phrase(tokens)
    kept = dict(zip(model.photo_names, features, strict=True))
    said = dict(zip(PHRASE, texts, strict=True))
    return {
        "photo": Source(photo, {"frame": frame}, tuple(kept)),
        "phrase": Source(phrase, {"tokens": tokens}, tuple(said), ("tokens", *said)),
        "pair": Source(Pair(model), kept | said, ("logits",), (*said, "logits")),
    }
