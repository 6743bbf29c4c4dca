"""One process or many: torch's own process group, as torchrun starts it.

Without torchrun everything here works as one process does: rank 0 of 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cris_edge.errors import CrisEdgeError
from training.errors import TrainingError

_T = TypeVar("_T")


def start() -> torch.device:
    """Join the other processes that torchrun started, if it did.

    Returns:
        The device of this process: a GPU of its own where there are GPUs, else the CPU.

    Raises:
        TrainingError: there are fewer GPUs on this machine than processes.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}; start torchrun with --nproc-per-node so many"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leave the other processes; harmless where there are none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_objects(value: Any) -> list[Any]:
    """What every process has, in the order of their ranks, on every process.

    Objects travel as pickles between the processes of one run, never from files.
    """
    _, size = world()
    if size == 1:
        return [value]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, value)
    return gathered


def agree(act: Callable[[], _T]) -> _T:
    """Do something in every process; what one of them refuses, all refuse, so that none waits.

    Raises:
        CrisEdgeError: what the first process raised of those that did.
    """
    result, refusal = None, None
    try:
        result = act()
    except CrisEdgeError as error:
        refusal = error
    for one in gather_objects(refusal):
        if one is not None:
            raise one
    return cast("_T", result)
