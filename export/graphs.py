"""The three graphs of a bundle, cut out of a CRIS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cris_edge.bundle import GRAPHS, PHRASES, GraphSpec, TensorSpec
from training.model import CRIS, PHRASE


class Stage(nn.Module):
    """One of a model's stages as a module of its own: `photo`, `phrase` or `pair`."""

    def __init__(self, model: CRIS, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the model's method of that name gives."""
        result: Tensor | tuple[Tensor, ...] = getattr(self.model, self.name)(*inputs)
        return result


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
    with torch.no_grad():
        kept = dict(zip(model.photo_names, model.photo(frame), strict=True))
        said = dict(zip(PHRASE, model.phrase(tokens), strict=True))
    photo, phrase, pair = (Stage(model, name) for name in GRAPHS)
    return {
        "photo": Source(photo, {"frame": frame}, tuple(kept)),
        "phrase": Source(phrase, {"tokens": tokens}, tuple(said), ("tokens", *said)),
        "pair": Source(pair, kept | said, ("logits",), (*said, "logits")),
    }
