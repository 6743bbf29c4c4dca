"""CRIS computed the plain way, as its authors' code does: what the benchmark compares with.

`training.model` gives the same numbers with less arithmetic, in parts that are kept for later
phrases and photos. Here every pair of photo and phrase goes through the whole model: features are
resized and concatenated before their 1x1 convolutions, attention is torch's own module, and the
last 1x1 convolution runs before each sample's own kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import CRIS
from training.model.decoder import Decoder, DecoderLayer
from training.model.neck import Neck, double
from training.model.projector import KERNEL, Projector


class PlainCRIS(nn.Module):
    """The whole model over a CRIS's own parameters, which it shares."""

    def __init__(self, model: CRIS):
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, tokens: Tensor) -> Tensor:
        """Segment photos by phrases, pair by pair.

        Args:
            frame: (B, H, W, 3) uint8 RGB, letterboxed.
            tokens: (B, L) int64.

        Returns:
            (B, 1, H/4, W/4) logits.
        """
        model = self.model
        c3, c4, c5 = model.encode_image(model.normalise(frame))
        words, sentence, padding = model.encode_text(tokens)
        fused = merge(model.neck, c3, c4, c5, sentence)
        decoded = decode(model.decoder, fused, words, padding)
        return project(model.projector, decoded, sentence, c3)


def merge(neck: Neck, c3: Tensor, c4: Tensor, c5: Tensor, sentence: Tensor) -> Tensor:
    """Features at strides 8, 16, 32 and (B, embed_dim) to (B, decoder_width, H/16, W/16)."""
    f5 = neck.gated(neck.c5(c5) * neck.sentence(sentence)[:, :, None, None])
    f4 = neck.merge4(torch.cat([neck.c4(c4), double(f5)], dim=1))
    f3 = neck.merge3(torch.cat([F.avg_pool2d(neck.c3(c3), 2), f4], dim=1))
    levels = [neck.lateral3(f3), neck.lateral4(f4), double(neck.lateral5(f5))]
    fused = neck.aggregate(torch.cat(levels, dim=1))
    where = neck.coordinates(*fused.shape[2:]).expand(fused.shape[0], -1, -1, -1)
    return neck.final(neck.located(torch.cat([fused, where], dim=1)))


def decode(decoder: Decoder, features: Tensor, words: Tensor, padding: Tensor) -> Tensor:
    """(B, width, h, w), (B, L, text_width), (B, L) bool to (B, width, h, w)."""
    _, channels, height, width = features.shape
    pixel_codes = decoder.pixel_codes(height, width, channels)
    placed_words = words + decoder.word_codes(*words.shape[1:])
    pixels = features.flatten(2).transpose(1, 2)
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        pixels = attend(layer, pixels, words, placed_words, padding, pixel_codes)
    return decoder.norm(pixels).transpose(1, 2).unflatten(2, (height, width))


def attend(
    layer: DecoderLayer,
    pixels: Tensor,
    words: Tensor,
    placed_words: Tensor,
    padding: Tensor,
    pixel_codes: Tensor,
) -> Tensor:
    """One layer of the decoder: (B, P, width) to (B, P, width)."""
    normed = layer.self_norm(pixels)
    placed = normed + pixel_codes
    # The authors leave `need_weights` as it is: the weights are computed and thrown away.
    attended, _ = layer.self_attention(placed, placed, normed)
    pixels = pixels + layer.self_out_norm(attended)
    queries = layer.cross_norm(pixels) + pixel_codes
    attended, _ = layer.cross_attention(queries, placed_words, words, key_padding_mask=padding)
    pixels = pixels + layer.cross_out_norm(attended)
    return pixels + layer.feed(layer.feed_norm(pixels))


def project(projector: Projector, features: Tensor, sentence: Tensor, c3: Tensor) -> Tensor:
    """(B, width, h, w) and (B, embed_dim) to logits (B, 1, 4h, 4w)."""
    stride8 = double(features)
    if projector.detail is not None:
        stride8 = torch.cat([stride8, projector.detail(c3)], dim=1)
    pixels = projector.pixels(projector.stride4(double(projector.stride8(stride8))))
    batch, channels, height, width = pixels.shape
    weights = projector.kernel(sentence)
    kernel = weights[:, :-1].reshape(batch, channels, KERNEL, KERNEL)
    # One group a sample, so that each is convolved with its own kernel.
    stacked = pixels.reshape(1, batch * channels, height, width)
    logits = F.conv2d(stacked, kernel, weights[:, -1], padding=KERNEL // 2, groups=batch)
    return logits.reshape(batch, 1, height, width)
