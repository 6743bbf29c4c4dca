"""CRIS: a photo and a phrase in, one logit for every fourth pixel out."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from training.model.config import CRISConfig
from training.model.decoder import Decoder
from training.model.image_encoder import Features, build_image_encoder
from training.model.neck import Neck
from training.model.projector import Projector
from training.model.text_encoder import TextEncoder


class CRIS(nn.Module):
    """The whole model (arXiv 2111.15174), built from open_clip's or timm's towers."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        self.config = config
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

    def encode_image(self, image: Tensor) -> Features:
        """(B, 3, H, W) float32, normalised RGB: C3, C4, C5 at strides 8, 16, 32."""
        return self.image_encoder(image)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) int64: words (B, L, text_width), sentence (B, embed_dim), padding (B, L) bool."""
        return self.text_encoder(tokens)

    def decode(
        self, c3: Tensor, c4: Tensor, c5: Tensor, words: Tensor, sentence: Tensor, padding: Tensor
    ) -> Tensor:
        """Features of photos and phrases, pair by pair: logits (B, 1, H/4, W/4)."""
        fused = self.decoder(self.neck(c3, c4, c5, sentence), words, padding)
        return self.projector(fused, sentence, c3)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Segment photos by phrases.

        Args:
            image: (B, 3, H, W) float32, normalised RGB.
            tokens: (B * K, L) int64: K phrases of each photo, in the order of the photos.

        Returns:
            (B * K, 1, H/4, W/4) logits.
        """
        phrases = tokens.shape[0] // image.shape[0]
        features = self.encode_image(image)
        if phrases > 1:
            c3, c4, c5 = (feature.repeat_interleave(phrases, dim=0) for feature in features)
            features = c3, c4, c5
        return self.decode(*features, *self.encode_text(tokens))

    def stages(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Every stage's result by name, for comparing implementations: one phrase a photo."""
        c3, c4, c5 = self.encode_image(image)
        words, sentence, padding = self.encode_text(tokens)
        neck = self.neck(c3, c4, c5, sentence)
        decoder = self.decoder(neck, words, padding)
        return {
            "c3": c3,
            "c4": c4,
            "c5": c5,
            "word_features": words,
            "sentence_feature": sentence,
            "neck": neck,
            "decoder": decoder,
            "logits": self.projector(decoder, sentence, c3),
        }


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The paper's loss: binary cross-entropy with logits, the mask resized by nearest neighbour.

    Args:
        logits: (B, 1, h, w).
        mask: (B, 1, H, W) in [0, 1].
    """
    target = F.interpolate(mask.to(logits), logits.shape[2:], mode="nearest")
    return F.binary_cross_entropy_with_logits(logits, target)
