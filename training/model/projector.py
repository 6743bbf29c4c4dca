"""Text-to-pixel contrast: the sentence becomes a convolution over the pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.blocks import conv
from training.model.config import CRISConfig
from training.model.neck import double

KERNEL = 3


class Projector(nn.Module):
    """Pixels upsampled to stride 4, then convolved with each sample's own 3x3 kernel and bias."""

    def __init__(self, config: CRISConfig, c3_channels: int):
        super().__init__()
        at8, at4 = config.projector_channels
        # C3 shows outlines that stride 16 has lost; the published model does without.
        self.detail = conv(c3_channels, at4) if config.detail else None
        inputs = config.decoder_width + (at4 if config.detail else 0)
        self.stride8 = conv(inputs, at8, 3, config.separable)
        self.stride4 = conv(at8, at4, 3, config.separable)
        self.pixels = nn.Conv2d(at4, at4, 1)
        self.kernel = nn.Linear(config.embed_dim, at4 * KERNEL**2 + 1)

    def forward(self, features: Tensor, sentence: Tensor, c3: Tensor) -> Tensor:
        """(B, width, h, w) and (B, embed_dim) to logits (B, 1, 4h, 4w)."""
        stride8 = double(features)
        if self.detail is not None:
            stride8 = torch.cat([stride8, self.detail(c3)], dim=1)
        pixels = self.pixels(self.stride4(double(self.stride8(stride8))))
        batch, channels, height, width = pixels.shape
        weights = self.kernel(sentence)
        kernel = weights[:, :-1].reshape(batch, channels, KERNEL, KERNEL)
        # One group a sample, so that each is convolved with its own kernel.
        stacked = pixels.reshape(1, batch * channels, height, width)
        logits = F.conv2d(stacked, kernel, weights[:, -1], padding=KERNEL // 2, groups=batch)
        return logits.reshape(batch, 1, height, width)
