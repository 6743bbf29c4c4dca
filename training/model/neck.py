"""Cross-modal neck: features of three strides and the sentence, fused at stride 16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.blocks import ConstantGrid, conv, coordinates, share
from training.model.config import CRISConfig


def double(features: Tensor) -> Tensor:
    """Bilinear upsampling by two."""
    if torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
        # torch.compile's own gradient adds to each pixel four times, atomically.
        return _double_along(_double_along(features, 2), 3)
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)


def _double_along(features: Tensor, axis: int) -> Tensor:
    """The same along one axis, by shifts, whose gradient is shifts as well.

    Element by element and with channels last, as the convolutions around want them: torch.compile
    copies twice what is concatenated, or is in any other order.
    """
    length = features.shape[axis]
    # Each pixel becomes two, the even and the odd one, along a new axis; channels are the last.
    own = features.unsqueeze(axis + 1).movedim(1, -1)
    around = F.pad(own, (0, 0) * (5 - axis) + (1, 1))
    before, after = (around.narrow(axis - 1, start, length) for start in (0, 2))
    odd = torch.arange(2, device=features.device)
    # Beyond the border a pixel is its own neighbour.
    border = torch.arange(length, device=features.device)[:, None] == odd * (length - 1)
    weight = torch.where(border, 1.0, 0.75).to(features)
    rest = (1,) * (4 - axis)
    neighbour = torch.where(odd.view(2, *rest) == 1, after, before)
    doubled = weight.view(length, 2, *rest) * own + 0.25 * neighbour
    return doubled.movedim(-1, 1).flatten(axis, axis + 1)


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

    def look(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that needs no phrase, once a photo.

        A 1x1 convolution of concatenated features is the sum of its shares of each, and of features
        resized is its result resized: exact, so the photo's shares are computed without phrases.

        Args:
            c3, c4, c5: features at strides 8, 16, 32.

        Returns:
            shares (B, decoder_width, H/16, W/16) of C3 and of C4 in what they are merged into, and
            C5 (B, neck_channels[2], H/32, W/32) ready for its gate.
        """
        p3 = share(self.merge3[0], F.avg_pool2d(self.c3(c3), 2))
        return p3, share(self.merge4[0], self.c4(c4)), self.c5(c5)

    def read(self, sentence: Tensor) -> Tensor:
        """The gate of C5: (B, embed_dim) to (B, neck_channels[2])."""
        return self.sentence(sentence)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor, gate: Tensor) -> Tensor:
        """What `look` and `read` gave, to (N, decoder_width, H/16, W/16).

        Photos have batch N like the gates, or 1 for N phrases of one photo.
        """
        f5 = self.gated(p5 * gate[:, :, None, None])
        f4 = self.merge4[1:](p4 + double(share(self.merge4[0], f5, last=True)))
        f3 = self.merge3[1:](p3 + share(self.merge3[0], f4, last=True))
        levels = torch.cat([self.lateral3(f3), self.lateral4(f4)], dim=1)
        coarse = share(self.aggregate[0], self.lateral5(f5), last=True)
        fused = self.aggregate[1:](share(self.aggregate[0], levels) + double(coarse))
        return self.final(self._locate(fused))

    def _locate(self, fused: Tensor) -> Tensor:
        """Features that know where they are, (N, decoder_width, H/16, W/16).

        The share of the coordinates in a convolution is a constant; concatenated in float32 they
        would keep the whole of it from INT8. Depthwise it is little either way.
        """
        where = self.coordinates(*fused.shape[2:])
        first = self.located[0]
        if first.groups == 1:
            return self.located[1:](share(first, fused) + share(first, where, last=True))
        return self.located(torch.cat([fused, where.expand(fused.shape[0], -1, -1, -1)], dim=1))
