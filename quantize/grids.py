"""The grids of INT8 in torch: rounded forwards, as if it were not rounded backwards.

They are those of `quantize.calibration` for OpenVINO and ONNX Runtime.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF, WHOLE = 63.5, 127.0
"""Steps from 0 to the largest weight of a channel: half of int8's range, so that sums of two
products fit 16 bits; all of it for depthwise kernels and the table of words, as NNCF has it."""
LEAST, MOST = -128, 127
TINY = torch.finfo(torch.float32).tiny


def round_weight(weight: Tensor, axis: int, steps: float) -> Tensor:
    """A weight on a grid symmetric around 0, with a scale for each index along an axis.

    The gradient is that of the weight as it was (straight-through, arXiv 1308.3432). A batch norm
    that export folds into a layer multiplies its output channels, and so their scales: the rounded
    weight folded is the folded weight rounded, and nothing needs to be folded here. Ties may fall
    otherwise, and with `HALF` the largest weight of a channel is one.

    Args:
        weight: float32.
        axis: of the channels.
        steps: `HALF` or `WHOLE`.
    """
    axis %= weight.ndim
    others = [other for other in range(weight.ndim) if other != axis]
    scale = (weight.detach().abs().amax(others) / steps).clamp(min=TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    most = math.ceil(steps)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -most, most)


def round_activation(values: Tensor, low: Tensor, high: Tensor, symmetric: bool) -> Tensor:
    """A tensor on a grid of 256 levels with one scale, 0 among them; what lies beyond is cut off.

    The gradient is that of the tensor as it was, and 0 where it is cut off.

    Args:
        values: of any shape and floating type; the result is float32.
        low, high: scalars, what the grid reaches from and to.
        symmetric: 0 is its middle.
    """
    if symmetric:
        scale = (torch.maximum(-low, high) / MOST).clamp(min=TINY)
        zero = torch.zeros_like(scale)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (MOST - LEAST)).clamp(min=TINY)
        zero = (LEAST - low / scale).round()
    zero = zero.to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, LEAST, MOST)


def range_of(values: Tensor) -> Tensor:
    """Mean over the first axis of the least and of the greatest value, as NNCF measures: (2,)."""
    least, greatest = values.detach().float().flatten(1).aminmax(dim=1)
    return torch.stack([least.mean(), greatest.mean()])
