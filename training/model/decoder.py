"""Vision-language decoder: pixels look at each other and at single words."""

from __future__ import annotations

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

    def forward(
        self,
        pixels: Tensor,
        words: Tensor,
        padding: Tensor,
        pixel_codes: Tensor,
        word_codes: Tensor,
    ) -> Tensor:
        """(B, P, width) pixels and (B, L, text_width) words to (B, P, width)."""
        normed = self.self_norm(pixels)
        placed = normed + pixel_codes
        attended, _ = self.self_attention(placed, placed, normed, need_weights=False)
        pixels = pixels + self.dropout(self.self_out_norm(attended))
        attended, _ = self.cross_attention(
            self.cross_norm(pixels) + pixel_codes,
            words + word_codes,
            words,
            key_padding_mask=padding,
            need_weights=False,
        )
        pixels = pixels + self.dropout(self.cross_out_norm(attended))
        return pixels + self.dropout(self.feed(self.feed_norm(pixels)))


class Decoder(nn.Module):
    """Layers of self- and cross-attention. Position codes join queries and keys, never values."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        side = config.input_size // 16
        self.pixel_codes = ConstantGrid(sine_codes_2d, side, side, config.decoder_width)
        self.word_codes = ConstantGrid(sine_codes, config.word_len, config.text_width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.decoder_width)

    def forward(self, features: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """(B, width, h, w), (B, L, text_width), (B, L) bool to (B, width, h, w)."""
        _, channels, height, width = features.shape
        pixel_codes = self.pixel_codes(height, width, channels)
        word_codes = self.word_codes(words.shape[1], words.shape[2])
        pixels = features.flatten(2).transpose(1, 2)
        for layer in self.layers:
            pixels = layer(pixels, words, padding, pixel_codes, word_codes)
        return self.norm(pixels).transpose(1, 2).unflatten(2, (height, width))
