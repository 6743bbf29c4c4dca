"""What is done to a model's weights before export: checked, folded, rounded to 16 or 8 bits."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion

from export.errors import ExportError
from training.checkpoint import Checkpoint
from training.model import CRIS
from training.model.neck import Neck

MIN_ROUNDED = 1024
"""Values of a tensor from which on storing it in fewer bits is worth it."""
LEVELS = 127
"""Of 8 bits, the same to both sides of 0."""


def check_finite(model: CRIS) -> None:
    """Refuse weights that no export can make good.

    Raises:
        ExportError: weights are infinite or no numbers; names them.
    """
    bad = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if bad:
        raise ExportError(
            f"the checkpoint's weights must be finite numbers; {len(bad)} tensors are not: "
            f"{', '.join(bad[:5])}. Training went astray: take an earlier checkpoint"
        )


def fold_batch_norms(model: CRIS) -> CRIS:
    """A copy whose batch norms have gone into the convolutions and linear layers before them.

    Where a network is trained with branches side by side (arXiv 2303.14189), they become one
    convolution. Exact in evaluation mode, up to rounding. A batch norm that follows no such layer
    stays.
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad():
        reparameterize_model(folded.image_encoder, inplace=True)
    for module in list(folded.modules()):
        _fold_children(module)
    _fold_gate(folded.neck)
    return folded


def _fold_gate(neck: Neck) -> None:
    """Fold the batch norm behind the gated C5: its scale goes into the gates, once a phrase."""
    norm = neck.gated[0]
    if not isinstance(norm, nn.BatchNorm2d):
        return
    running_mean, running_var = norm.running_mean, norm.running_var
    assert running_mean is not None
    assert running_var is not None
    scale = norm.weight / torch.sqrt(running_var + norm.eps)
    shift = norm.bias - running_mean * scale
    neck.sentence.append(_Scale(scale))
    neck.gated[0] = _Shift(shift[:, None, None])


class _Constant(nn.Module):
    values: Tensor

    def __init__(self, values: Tensor):
        super().__init__()
        self.register_buffer("values", values.detach())


class _Scale(_Constant):
    """Times a constant."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.values


class _Shift(_Constant):
    """Plus a constant."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.values


def count_batch_norms(model: nn.Module) -> int:
    """How many batch norms a model has."""
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def _fold_children(parent: nn.Module) -> None:
    """Fold what is declared side by side, which in these networks is also applied in turn."""
    children = list(parent.named_children())
    for (name, layer), (norm_name, norm) in itertools.pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused: nn.Module = fusion.fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            fused = fusion.fuse_linear_bn_eval(layer, norm)
        else:
            continue
        setattr(parent, name, fused)
        setattr(parent, norm_name, _after(norm))


def _after(norm: Any) -> nn.Module:
    """What a norm does beside norming: timm's carry their activation with them."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def round_to_half(model: CRIS) -> CRIS:
    """A copy whose large weights are values that float16 holds, so that storing them so is exact.

    Small ones (biases, norms) stay: rounding them saves nothing and flips as many pixels of the
    mask as rounding all the others.

    Raises:
        ExportError: a weight is beyond float16's range of 65504.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.numel() >= MIN_ROUNDED:
                weight.copy_(_rounded(name, weight))
    return rounded


def _rounded(name: str, weight: Tensor) -> Tensor:
    half = weight.half().float()
    if not half.isfinite().all():
        raise ExportError(
            f"{name}: float16 holds values up to 65504, this weight reaches "
            f"{weight.abs().max():.3g}; export with --precision float32"
        )
    return half


def round_to_eight(model: CRIS) -> CRIS:
    """A copy whose large weights are multiples, up to 127, of a scale for each output channel.

    The scales have 16 significant bits, so that products of 8 and 16 bits are exact in float32, and
    whoever stores the weights finds the scales again (`export.onnx.store_weights_as_bytes`). What
    is no matrix or kernel, and what is small, stays.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.numel() >= MIN_ROUNDED and weight.ndim > 1:
                # CLIP's projection alone is multiplied as (in, out). OpenVINO takes scales of
                # inputs for those of outputs.
                outputs = 1 if name.endswith("text_projection") else 0
                scale = _scales(weight, outputs)
                weight.copy_((weight / scale).round().clamp(-LEVELS, LEVELS) * scale)
    return rounded


def _scales(weight: Tensor, axis: int) -> Tensor:
    """A scale for each index of an axis, to be multiplied with the weight's levels."""
    rest = tuple(other for other in range(weight.ndim) if other != axis)
    largest = weight.abs().amax(dim=rest, keepdim=True)
    fraction, exponent = torch.frexp(largest / LEVELS)
    scale = torch.ldexp((fraction * 2**16).round() / 2**16, exponent)
    # A channel of zeros is zeros by any scale.
    return torch.where(largest > 0, scale, 1.0)


def at_input_size(kept: Checkpoint, size: int | None) -> Checkpoint:
    """A checkpoint's model for another input; what was measured of it no longer holds.

    Args:
        kept: what training wrote.
        size: of the input's side in pixels; None: as in training.

    Raises:
        ExportError: no model can have this size.
    """
    trained_at = kept.model.config.input_size
    if size in (None, trained_at):
        return kept
    try:
        model = CRIS(dataclasses.replace(kept.model.config, input_size=size))
    except ValueError as error:
        raise ExportError(f"--input-size: {error}") from error
    model.load_state_dict(kept.model.state_dict())
    accuracy = {"accuracy": f"not measured at {size} px; trained at {trained_at} px"}
    return dataclasses.replace(kept, model=model.eval(), metadata=kept.metadata | accuracy)
