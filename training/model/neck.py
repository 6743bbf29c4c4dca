"""Cross-modal neck: features of three strides and the sentence, fused at stride 16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.blocks import ConstantGrid, conv, coordinates
from training.model.config import CRISConfig


def double(features: Tensor) -> Tensor:
    """Bilinear upsampling by two."""
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)


class Neck(nn.Module):
    """The sentence gates C5; then C4 and C3 join from coarse to fine, and all three are merged."""

    def __init__(self, config: CRISConfig, channels: tuple[int, int, int]):
        super().__init__()
        out3, out4, out5 = config.neck_channels
        separable = config.separable
        self.sentence = nn.Sequential(
            nn.Linear(config.embed_dim, out5, bias=False), nn.BatchNorm1d(out5), nn.ReLU(True)
        )
        self.c5 = conv(channels[2], out5)
        self.gated = nn.Sequential(nn.BatchNorm2d(out5), nn.ReLU(True))
        self.c4 = conv(channels[1], out4, 3, separable)
        self.merge4 = conv(out4 + out5, out4)
        self.c3 = conv(channels[0], out3, 3, separable)
        self.merge3 = conv(out3 + out4, out4)
        self.lateral5 = conv(out5, out4, 3, separable)
        self.lateral4 = conv(out4, out4, 3, separable)
        self.lateral3 = conv(out4, out4, 3, separable)
        self.aggregate = conv(3 * out4, out4)
        self.coordinates = ConstantGrid(
            coordinates, config.input_size // 16, config.input_size // 16
        )
        self.located = conv(out4 + 2, out4, 3, separable)
        self.final = conv(out4, out4, 3, separable)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor, sentence: Tensor) -> Tensor:
        """Features of strides 8, 16, 32 and (B, embed_dim) to (B, decoder_width, H/16, W/16)."""
        f5 = self.gated(self.c5(c5) * self.sentence(sentence)[:, :, None, None])
        f4 = self.merge4(torch.cat([self.c4(c4), double(f5)], dim=1))
        f3 = self.merge3(torch.cat([F.avg_pool2d(self.c3(c3), 2), f4], dim=1))
        levels = [self.lateral3(f3), self.lateral4(f4), double(self.lateral5(f5))]
        fused = self.aggregate(torch.cat(levels, dim=1))
        where = self.coordinates(*fused.shape[2:]).expand(fused.shape[0], -1, -1, -1)
        return self.final(self.located(torch.cat([fused, where], dim=1)))
