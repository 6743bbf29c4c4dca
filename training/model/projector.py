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

    gather: Tensor

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
        taps = torch.eye(KERNEL**2).reshape(1, KERNEL**2, KERNEL, KERNEL)
        self.register_buffer("gather", taps, persistent=False)

    def look(self, c3: Tensor) -> tuple[Tensor, ...]:
        """All that needs no phrase, once a photo: outlines (B, C, H/8, W/8), or nothing."""
        return () if self.detail is None else (self.detail(c3),)

    def read(self, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel that a sentence becomes, with the 1x1 convolution before it folded in.

        Args:
            sentence: (B, embed_dim).

        Returns:
            kernel (B, C + 1, 9): for each tap the weights of C channels and the constant that it
            adds, which zero padding leaves out at the border; bias (B, 1).
        """
        weights = self.kernel(sentence)
        taps = weights[:, :-1].unflatten(1, (-1, KERNEL**2))
        pointwise = self.pixels.weight.flatten(1).T
        assert self.pixels.bias is not None
        fold = torch.cat([pointwise, self.pixels.bias[None]])
        return fold @ taps, weights[:, -1:]

    def forward(self, features: Tensor, kernel: Tensor, bias: Tensor, *detail: Tensor) -> Tensor:
        """(N, width, h, w) with what `read` and `look` gave, to logits (N, 1, 4h, 4w)."""
        stride8 = double(features)
        if self.detail is not None:
            outlines = detail[0].expand(features.shape[0], -1, -1, -1)
            stride8 = torch.cat([stride8, outlines], dim=1)
        pixels = self.stride4(double(self.stride8(stride8)))
        # A convolution with each phrase's own kernel, as a matrix product that gives every tap's
        # part for every pixel, and a constant convolution that adds up the neighbours' parts.
        parts = kernel[:, :-1].transpose(1, 2) @ pixels.flatten(2) + kernel[:, -1][:, :, None]
        parts = parts.unflatten(2, pixels.shape[2:])
        return F.conv2d(parts, self.gather, padding=KERNEL // 2) + bias[:, :, None, None]
