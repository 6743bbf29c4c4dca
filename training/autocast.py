"""Autocast on CPUs, amended: what learns faster in float32 there is computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Products of matrices in `dtype`, where it is given; on a CPU `Float32WhereFaster` besides."""
    plain = torch.autocast(device, dtype, enabled=dtype is not None)
    amend = device == "cpu" and dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    return _amended(plain) if amend else plain


@contextmanager
def _amended(plain: AbstractContextManager[Any]) -> Iterator[None]:
    with plain, Float32WhereFaster():
        yield


class Float32WhereFaster(TorchFunctionMode):
    """Within it, and within bfloat16 autocast on a CPU, some operations take and keep float32.

    oneDNN and torch compute the gradients of attention, and of depthwise convolutions with large
    kernels or strides, several times as fast in float32 as in bfloat16. All else stays as autocast
    has it; results are bfloat16 again. docs/training.md has what that is worth.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of `func`."""
        kwargs = kwargs or {}
        if not _slow(func, args):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            result = func(*_to(torch.float32, args), **_to(torch.float32, kwargs))
        return _to(torch.bfloat16, result)


def _slow(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    if func in ATTENTION:
        return _in_bfloat16(args[0])
    # As layers call it, with all arguments in order: one group a channel, large kernels or strides.
    if func is not torch.conv2d or len(args) < 7:
        return False
    image, weight, _, stride, _, _, groups = args
    large = weight[0, 0].numel() > 9 or stride != (1, 1)
    return groups == image.shape[1] > 1 and large and _in_bfloat16(image)


def _in_bfloat16(tensor: Tensor) -> bool:
    """Whether autocast would take it in bfloat16, for gradients to be had."""
    if tensor.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _to(dtype: torch.dtype, values: Any) -> Any:
    """Numbers with a fraction in another precision, wherever they are; all else as it is."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)
