"""The three graphs of a bundle, cut out of a CRIS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cris_edge.bundle import GraphSpec, TensorSpec
from training.model import CRIS


class Photo(nn.Module):
    """Once a photo: the image encoder."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.image_encoder = model.image_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, S, S) normalised RGB to features at strides 8, 16 and 32."""
        return self.image_encoder(image)


class Phrase(nn.Module):
    """Once a phrase: the text encoder."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.text_encoder = model.text_encoder

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, L) int64 to words (1, L, D), sentence (1, E), padding (1, L) bool."""
        return self.text_encoder(tokens)


class Pair(nn.Module):
    """Once a pair of photo and phrase: neck, decoder, projector."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.neck, self.decoder, self.projector = model.neck, model.decoder, model.projector

    def forward(
        self, c3: Tensor, c4: Tensor, c5: Tensor, words: Tensor, sentence: Tensor, padding: Tensor
    ) -> Tensor:
        """What the other two graphs give, to logits (1, 1, S/4, S/4)."""
        fused = self.decoder(self.neck(c3, c4, c5, sentence), words, padding)
        return self.projector(fused, sentence, c3)


@dataclass(frozen=True)
class Source:
    """A graph before export: the module, an example of its inputs, and the names on both sides."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def spec(self, file: str) -> GraphSpec:
        """Names, types and static shapes, as the bundle describes them."""
        with torch.no_grad():
            results = self.module(*self.inputs.values())
        results = results if isinstance(results, tuple) else (results,)
        named = zip(self.outputs, results, strict=True)
        return GraphSpec(
            file,
            tuple(_tensor(name, value) for name, value in self.inputs.items()),
            tuple(_tensor(name, value) for name, value in named),
        )


def _tensor(name: str, value: Tensor) -> TensorSpec:
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))


def split(model: CRIS) -> dict[str, Source]:
    """Cut a model in evaluation mode into a bundle's graphs `photo`, `phrase`, `pair`, batch 1."""
    config = model.config
    image = torch.zeros(1, 3, config.input_size, config.input_size)
    # A start and an end token: a phrase of padding alone would attend to nothing.
    tokens = torch.zeros(1, config.word_len, dtype=torch.int64)
    tokens[0, :2] = torch.tensor([config.vocab_size - 2, config.vocab_size - 1])
    photo, phrase = Photo(model), Phrase(model)
    with torch.no_grad():
        features = dict(zip(("c3", "c4", "c5"), photo(image), strict=True))
        texts = dict(zip(("words", "sentence", "padding"), phrase(tokens), strict=True))
    return {
        "photo": Source(photo, {"image": image}, tuple(features)),
        "phrase": Source(phrase, {"tokens": tokens}, tuple(texts)),
        "pair": Source(Pair(model), features | texts, ("logits",)),
    }
