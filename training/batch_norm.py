"""Batch norm whose statistics are of all processes' photos, on GPUs and on CPUs."""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from training.distributed import world


class CPUSyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` computes, which refuses CPUs (shares of equal size)."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (B, C, …)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, …) by mean and variance of all processes' batches, when training."""
        if not self.training:
            return super().forward(input)
        _, size = world()
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        # Autocast leaves inputs in bfloat16, in which sums are worthless.
        whole = input.float()
        mean = cast("Tensor", all_reduce(whole.mean(axes))) / size
        centred = whole - mean.reshape(shape)
        variance = cast("Tensor", all_reduce(centred.square().mean(axes))) / size
        self._track(mean.detach(), variance.detach(), input.numel() // input.shape[1] * size)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        running = self.running_mean, self.running_var, self.num_batches_tracked
        running_mean, running_var, batches = (cast("Tensor", tensor) for tensor in running)
        with torch.no_grad():
            batches.add_(1)
            momentum = 1 / float(batches) if self.momentum is None else self.momentum
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / max(1, count - 1), momentum)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Make the batch norms inside a module synchronous, in place; nothing for one process.

    Names, parameters and statistics stay, so that checkpoints are the same with and without.
    """
    if world()[1] == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _synchronous(child, device))
        else:
            synchronise(child, device)


def _synchronous(norm: _BatchNorm, device: torch.device) -> nn.Module:
    copy: nn.Module
    if device.type == "cuda":
        copy = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    else:
        copy = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
        copy.load_state_dict(norm.state_dict())
        copy.train(norm.training)
    if isinstance(norm, BatchNormAct2d):
        # timm's own have their activation inside.
        copy.register_forward_hook(lambda _, __, normed: norm.act(norm.drop(normed)))
    return copy
