"""CRIS: a photo and a phrase in, one logit for every fourth pixel out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.model.config import CRISConfig
from training.model.decoder import Decoder
from training.model.image_encoder import Features, build_image_encoder
from training.model.neck import Neck
from training.model.projector import Projector
from training.model.text_encoder import TextEncoder

PHRASE = ("keys", "values", "padding", "gate", "kernel", "bias")
"""What is kept of a phrase."""
HIDDEN = -1e4
"""The score of a word that is padding: after softmax nothing is left of it."""


class CRIS(nn.Module):
    """The whole model (arXiv 2111.15174), built from open_clip's or timm's towers.

    Three parts, for what must be computed once a photo, once a phrase, and once a pair: `photo`,
    `phrase` and `pair`. Training, and every artifact, is made of these.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: CRISConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.std), persistent=False)
        self.image_encoder = build_image_encoder(config)
        self.text_encoder = TextEncoder(config)
        self.neck = Neck(config, self.image_encoder.channels)
        self.decoder = Decoder(config)
        self.projector = Projector(config, self.image_encoder.channels[0])

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, word_len: int, decoder_heads: int
    ) -> CRIS:
        """The model of an authors' checkpoint, in evaluation mode.

        Args:
            state_dict: names as the authors' code saves them, with or without `module.`.
            word_len: tokens of a phrase; the shapes do not tell.
            decoder_heads: heads of the decoder's attentions (8 as published); no shape tells them.

        Raises:
            CheckpointError: tensors are missing, surplus or of a wrong shape; all are listed.
        """
        from training.model.official import convert, read_config

        model = cls(read_config(state_dict, word_len=word_len, decoder_heads=decoder_heads))
        convert(state_dict, model)
        return model.eval()

    @property
    def photo_names(self) -> tuple[str, ...]:
        """What `photo` gives, by name."""
        return ("p3", "p4", "p5") + (("detail",) if self.config.detail else ())

    def encode_image(self, image: Tensor) -> Features:
        """(B, 3, H, W) float32, normalised RGB: C3, C4, C5 at strides 8, 16, 32."""
        return self.image_encoder(image)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) int64: words (B, L, text_width), sentence (B, embed_dim), padding (B, L) bool."""
        return self.text_encoder(tokens)

    def normalise(self, frame: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, minus the mean, over the deviation."""
        return ((frame.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)

    def photo(self, frame: Tensor) -> tuple[Tensor, ...]:
        """All that needs no phrase: letterboxed (B, H, W, 3) uint8 RGB to `photo_names`."""
        return self.look(*self.encode_image(self.normalise(frame)))

    def look(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, ...]:
        """The photo's part of neck and projector: `photo_names`."""
        return *self.neck.look(c3, c4, c5), *self.projector.look(c3)

    def phrase(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """All that needs no photo, `PHRASE`: `encode_text` and what `read` takes of it."""
        return self.read(*self.encode_text(tokens))

    def read(self, words: Tensor, sentence: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        """The phrase's part of decoder, neck and projector: `PHRASE`."""
        # Added to the scores of attention; finite, so that half precision holds it.
        mask = padding.to(words.dtype) * HIDDEN
        gate, kernel = self.neck.read(sentence), self.projector.read(sentence)
        return *self.decoder.read(words), mask, gate, *kernel

    def pair(self, *inputs: Tensor) -> Tensor:
        """Photos and phrases, pair by pair: logits (N, 1, H/4, W/4).

        Args:
            inputs: what `photo` gave of N photos, or of one for N phrases; then what `phrase` gave
                of N phrases.
        """
        p3, p4, p5, *detail = inputs[: -len(PHRASE)]
        keys, values, padding, gate, kernel, bias = inputs[-len(PHRASE) :]
        fused = self.decoder(self.neck(p3, p4, p5, gate), keys, values, padding)
        return self.projector(fused, kernel, bias, *detail)

    def forward(self, frame: Tensor, tokens: Tensor) -> Tensor:
        """Segment photos by phrases.

        Args:
            frame: (B, H, W, 3) uint8 RGB, letterboxed.
            tokens: (B * K, L) int64: K phrases of each photo, in the order of the photos.

        Returns:
            (B * K, 1, H/4, W/4) logits.
        """
        return self.pair(*each(self.photo(frame), len(tokens)), *self.phrase(tokens))

    def stages(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Every stage's result by name, for comparing and for teaching models.

        Args:
            image: (B, 3, H, W) normalised RGB.
            tokens: (B * K, L), K phrases of each photo.
        """
        c3, c4, c5 = self.encode_image(image)
        words, sentence, padding = self.encode_text(tokens)
        p3, p4, p5, *detail = each(self.look(c3, c4, c5), len(tokens))
        keys, values, mask, gate, kernel, bias = self.read(words, sentence, padding)
        neck = self.neck(p3, p4, p5, gate)
        decoder = self.decoder(neck, keys, values, mask)
        return {
            "c3": c3,
            "c4": c4,
            "c5": c5,
            "word_features": words,
            "padding": padding,
            "values": values,
            "sentence_feature": sentence,
            "neck": neck,
            "decoder": decoder,
            "logits": self.projector(decoder, kernel, bias, *detail),
        }


def each(photo: Sequence[Tensor], pairs: int) -> Sequence[Tensor]:
    """Features of B photos for `pairs` phrases, B * K of them in the order of the photos."""
    times = pairs // len(photo[0])
    return photo if times == 1 else [part.repeat_interleave(times, dim=0) for part in photo]
