"""Memory for training on a CPU: what a step frees, the next one takes again."""

from __future__ import annotations

import ctypes
import sys

import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory(device: torch.device) -> bool:
    """Tell glibc to keep the memory of freed tensors for the next ones, where a CPU trains.

    By default it hands large blocks back at once, and each tensor of each step costs page faults
    and zeroed pages anew (mallopt(3)); docs/training.md has what that is. The process then holds
    its peak memory to its end.

    Returns:
        Whether it was told: not where a GPU trains, nor where the allocator is another.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
