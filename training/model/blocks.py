"""Small parts that neck, decoder and projector share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 1, separable: bool = False) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; stride 1, size kept.

    A separable one is depthwise 3x3, batch norm, then pointwise, batch norm, ReLU: no activation
    between, so that the pair stays close to the convolution it stands for.
    """
    if separable and kernel > 1:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            *conv(inputs, outputs),
        )
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def share(layer: nn.Module, features: Tensor, last: bool = False) -> Tensor:
    """What some of its input channels contribute to a convolution's result.

    Args:
        layer: the convolution, of one group and stride 1.
        features: its first channels (B, C, h, w), or its last ones.
        last: which of these. The first share carries the bias, if there is one.
    """
    assert isinstance(layer, nn.Conv2d)
    channels = features.shape[1]
    if last:
        return F.conv2d(features, layer.weight[:, -channels:], padding=layer.padding)
    return F.conv2d(features, layer.weight[:, :channels], layer.bias, padding=layer.padding)


class ConstantGrid(nn.Module):
    """A constant that depends on the feature's size alone.

    Kept as a buffer for the size the model is built for, so that an exported graph holds the
    numbers and not the arithmetic; other sizes are computed when they come.
    """

    values: Tensor

    def __init__(self, make: Callable[..., Tensor], *size: int):
        super().__init__()
        self.make = make
        self.size = size
        self.register_buffer("values", make(*size), persistent=False)

    def forward(self, *size: int) -> Tensor:
        """The constant for `size`, on the module's device."""
        return self.values if size == self.size else self.make(*size).to(self.values)


def coordinates(height: int, width: int) -> Tensor:
    """x then y of every pixel, each linear from -1 to 1: (1, 2, height, width)."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([x, y])[None]


def sine_codes(length: int, width: int) -> Tensor:
    """Sine position codes of "Attention Is All You Need": (length, width), sin, cos in turn."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sine_codes_2d(height: int, width: int, channels: int) -> Tensor:
    """Codes of pixels in row-major order, (height * width, channels): x first, then y."""
    x = sine_codes(width, channels // 2).expand(height, -1, -1)
    y = sine_codes(height, channels // 2)[:, None].expand(-1, width, -1)
    return torch.cat([x, y], dim=-1).flatten(0, 1)
