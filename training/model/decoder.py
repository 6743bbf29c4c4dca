"""Vision-language decoder: pixels look at each other and at single words."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.blocks import ConstantGrid, sine_codes, sine_codes_2d
from training.model.config import CRISConfig


class DecoderLayer(nn.Module):
    """Pre-norm layer whose attentions have one more layer norm before their residual sum."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        width, heads, dropout = config.decoder_width, config.decoder_heads, config.dropout
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.self_out_norm = nn.LayerNorm(width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(
            width, heads, dropout, kdim=config.text_width, vdim=config.text_width, batch_first=True
        )
        self.cross_out_norm = nn.LayerNorm(width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, config.decoder_ffn),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.LayerNorm(config.decoder_ffn),
            nn.Linear(config.decoder_ffn, width),
        )
        self.dropout = nn.Dropout(dropout)

    def read(self, words: Tensor, word_codes: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the words, each (B, L, width)."""
        _, of_keys, of_values = projections(self.cross_attention)
        return F.linear(words + word_codes, *of_keys), F.linear(words, *of_values)

    def forward(
        self, pixels: Tensor, keys: Tensor, values: Tensor, padding: Tensor, pixel_codes: Tensor
    ) -> Tensor:
        """(B, P, width) pixels and what `read` gave of the words to (B, P, width)."""
        normed = self.self_norm(pixels)
        attended = self._attend_pixels(normed + pixel_codes, normed)
        pixels = pixels + self.dropout(self.self_out_norm(attended))
        queries = self.cross_norm(pixels) + pixel_codes
        attended = self._attend_words(queries, keys, values, padding)
        pixels = pixels + self.dropout(self.cross_out_norm(attended))
        return pixels + self.dropout(self.feed(self.feed_norm(pixels)))

    def _attend_pixels(self, placed: Tensor, normed: Tensor) -> Tensor:
        """Queries and keys know where they are, values do not."""
        of_queries, of_keys, of_values = projections(self.self_attention)
        queries, keys = F.linear(placed, *of_queries), F.linear(placed, *of_keys)
        return attend(self.self_attention, queries, keys, F.linear(normed, *of_values))

    def _attend_words(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        of_queries, _, _ = projections(self.cross_attention)
        queries = F.linear(queries, *of_queries)
        return attend(self.cross_attention, queries, keys, values, mask[:, None, None])


def projections(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of queries, keys and values; torch packs them where widths are equal."""
    width = attention.embed_dim
    # Slices, which exporters fold into constants; what `chunk` becomes they leave in the graph.
    thirds = [slice(start, start + width) for start in range(0, 3 * width, width)]
    weights: list[Tensor] = [
        attention.q_proj_weight,
        attention.k_proj_weight,
        attention.v_proj_weight,
    ]
    if attention.in_proj_weight is not None:
        weights = [attention.in_proj_weight[third] for third in thirds]
    return [(w, attention.in_proj_bias[t]) for w, t in zip(weights, thirds, strict=True)]


def attend(
    attention: nn.MultiheadAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """What torch's attention does with queries, keys and values that are projected already.

    Args:
        attention: with the number of heads, the dropout and the last projection.
        queries: (B, P, width).
        keys, values: (B, L, width).
        mask: added to the scores, broadcast to (B, heads, P, L).

    Returns:
        (B, P, width).
    """

    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        heads(queries),
        heads(keys),
        heads(values),
        attn_mask=None if mask is None else mask.to(queries),
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Layers of self- and cross-attention. Position codes join queries and keys, never values."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        side = config.input_size // 16
        self.pixel_codes = ConstantGrid(sine_codes_2d, side, side, config.decoder_width)
        self.word_codes = ConstantGrid(sine_codes, config.word_len, config.text_width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.decoder_width)

    def read(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """All that needs no photo, once a phrase: keys and values, each (B, layers, L, width).

        Args:
            words: (B, L, text_width).
        """
        codes = self.word_codes(*words.shape[1:])
        read = [cast("DecoderLayer", layer).read(words, codes) for layer in self.layers]
        return torch.stack([keys for keys, _ in read], 1), torch.stack([v for _, v in read], 1)

    def forward(self, features: Tensor, keys: Tensor, values: Tensor, padding: Tensor) -> Tensor:
        """(N, width, h, w) and N phrases' keys, values, padding to (N, width, h, w)."""
        _, channels, height, width = features.shape
        pixel_codes = self.pixel_codes(height, width, channels)
        pixels = features.flatten(2).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            pixels = layer(pixels, keys[:, index], values[:, index], padding, pixel_codes)
        return self.norm(pixels).transpose(1, 2).unflatten(2, (height, width))
