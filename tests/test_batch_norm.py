"""Batch norm over processes is batch norm of the whole batch: results, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.training_run import SERVER
from training import batch_norm

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def in_two_processes(work: Callable[[int], None], meeting: Path) -> None:
    """Run something in two processes that can talk to each other; they meet at a file."""
    ranks = [SERVER.Process(target=_join, args=(rank, meeting, work)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]


def _join(rank: int, meeting: Path, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    # One that says nothing to the other must not leave while the other is still connecting.
    dist.barrier()
    work(rank)
    dist.destroy_process_group()


def compare_norms(
    rank: int, plain: Norm, shape: tuple[int, ...], dtype: torch.dtype, train: bool
) -> None:
    """Fail unless both processes together compute what batch norm does of the whole batch."""
    torch.manual_seed(7)
    network = nn.Sequential(plain, nn.Tanh())
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.uniform_(-1, 1)
    shared = nn.Sequential(plain, nn.Tanh())
    batch_norm.synchronise(shared, torch.device("cpu"))
    assert isinstance(shared[0], batch_norm.CPUSyncBatchNorm)
    assert isinstance(network[0], type(plain))
    network.train(train)
    shared.train(train)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for _ in range(3):
        whole = (3 + 2 * torch.randn(shape)).to(dtype)
        half = whole.chunk(2)[rank].clone().requires_grad_()
        whole.requires_grad_()
        pull = torch.randn(shape).to(dtype)
        expected, got = network(whole), shared(half)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected.chunk(2)[rank], rtol=0, atol=tolerance)
        (expected * pull).sum().backward()
        (got * pull.chunk(2)[rank]).sum().backward()
        assert whole.grad is not None
        torch.testing.assert_close(
            half.grad, whole.grad.chunk(2)[rank], rtol=tolerance, atol=tolerance
        )
    for (name, theirs), (_, ours) in zip(
        network.named_parameters(), shared.named_parameters(), strict=True
    ):
        assert ours.grad is not None
        total = ours.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(
            total, theirs.grad, rtol=10 * tolerance, atol=10 * tolerance, msg=name
        )
    state: dict[str, Tensor] = shared.state_dict()
    assert state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def compare_all(rank: int) -> None:
    """Every sort of batch norm, in the same two processes."""
    float32, bfloat16 = torch.float32, torch.bfloat16
    images, vectors = (6, 4, 5, 3), (8, 4)
    compare_norms(rank, nn.BatchNorm2d(4), images, float32, True)
    compare_norms(rank, nn.BatchNorm2d(4, eps=0.1, momentum=0.5), images, float32, True)
    compare_norms(rank, nn.BatchNorm2d(4, momentum=None), images, float32, True)
    compare_norms(rank, nn.BatchNorm2d(4), (2, 4, 1, 2), float32, True)
    compare_norms(rank, nn.BatchNorm2d(4), images, float32, False)
    compare_norms(rank, nn.BatchNorm2d(4), images, bfloat16, True)
    activated = BatchNormAct2d(4, act_layer=nn.ReLU6)
    compare_norms(rank, activated, images, float32, True)
    compare_norms(rank, nn.BatchNorm1d(4), vectors, float32, True)
    compare_norms(rank, nn.BatchNorm1d(4), (2, 4), float32, True)


def test_batch_norm_of_two_processes_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    in_two_processes(compare_all, tmp_path / "meeting")


def compare_wrongly(rank: int) -> None:
    """Batch norm of the halves, each by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_norm, "all_reduce", lambda tensor: 2 * tensor)
        with pytest.raises(AssertionError, match="not close"):
            compare_norms(rank, nn.BatchNorm2d(4), (6, 4, 5, 3), torch.float32, True)


def test_batch_norm_of_each_half_would_be_found_out(tmp_path: Path) -> None:
    in_two_processes(compare_wrongly, tmp_path / "meeting")


def test_one_process_keeps_its_batch_norms() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4))
    before = network[0]
    batch_norm.synchronise(network, torch.device("cpu"))
    assert network[0] is before
