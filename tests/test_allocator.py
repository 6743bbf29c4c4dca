"""Training on a CPU keeps the memory of freed tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from training.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from training.allocator import keep_freed_memory
told = sys.argv[1] == "keep" and keep_freed_memory(torch.device("cpu"))
def faults():
    # As in a step, where many tensors are freed that lie side by side.
    tensors = [torch.ones(number * 2_000_000) for number in range(1, 9)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(10):
    after = faults()
print(int(told), after - before)
"""


def told_and_faults(way: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", FAULTS, way]
    told, faults = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    return told == "1", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_a_tensor_takes_the_memory_of_the_one_before() -> None:
    told, kept = told_and_faults("keep")
    if not told:
        pytest.skip("this system's C library has no such setting")
    assert kept < 0.3 * told_and_faults("leave")[1]


def test_a_gpu_needs_none_of_it() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
