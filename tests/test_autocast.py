"""bfloat16 on a CPU, but for the operations whose gradients are slow in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainers import learn, start, tensors
from tests.training_run import SIZES, references_recipe
from training.autocast import Float32WhereFaster, autocast

Layer = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]


def call(layer: nn.Module, image: Tensor) -> Tensor:
    return layer(image)


def attend(layer: nn.Module, words: Tensor) -> Tensor:
    return layer(words, words, words, need_weights=False)[0]


def attend_with_keys_of_its_own(keys: nn.Module, words: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(words, keys.weight[None], words)


def depthwise(kernel: int, stride: int) -> Layer:
    return nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8), call, (2, 8, 12, 12)


SLOW = {
    "depthwise 5x5": depthwise(5, 1),
    "depthwise, strided": depthwise(3, 2),
    "attention": (nn.MultiheadAttention(16, 2, batch_first=True), attend, (2, 5, 16)),
    "its product": (nn.Embedding(5, 16), attend_with_keys_of_its_own, (2, 5, 16)),
}
OTHERS = {
    "depthwise 3x3": depthwise(3, 1),
    "convolution": (nn.Conv2d(8, 8, 5, padding=2), call, (2, 8, 12, 12)),
    "in groups": (nn.Conv2d(8, 8, 5, padding=2, groups=2), call, (2, 8, 12, 12)),
    "one channel": (nn.Conv2d(1, 4, 5), call, (2, 1, 12, 12)),
    "linear": (nn.Linear(16, 16), call, (2, 5, 16)),
}


def plain(enabled: bool = True) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def gradients(
    layer: Layer, context: AbstractContextManager[Any]
) -> tuple[torch.dtype, dict[str, Tensor]]:
    """The result's type and the gradients of the layer's parameters."""
    module, forward, shape = layer
    torch.manual_seed(0)
    module.zero_grad()
    # Of numbers that bfloat16 has, so that nothing is rounded on the way in.
    given = torch.randn(shape).bfloat16().float()
    with context:
        result = forward(module, given)
    result.float().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return result.dtype, found


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_learns_as_in_float32(name: str) -> None:
    _, exact = gradients(SLOW[name], plain(enabled=False))
    _, rounded = gradients(SLOW[name], plain())
    kind, found = gradients(SLOW[name], autocast("cpu", torch.bfloat16))
    assert kind == torch.bfloat16
    assert same(found, exact)
    assert not same(rounded, exact)


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_stays_as_autocast_has_it(name: str) -> None:
    kind, found = gradients(OTHERS[name], autocast("cpu", torch.bfloat16))
    assert kind == torch.bfloat16
    assert same(found, gradients(OTHERS[name], plain())[1])


@pytest.mark.parametrize("name", SLOW | OTHERS)
def test_float32_stays_float32(name: str) -> None:
    layer = (SLOW | OTHERS)[name]
    expected = gradients(layer, plain(enabled=False))[1]
    for context in (autocast("cpu", None), Float32WhereFaster()):
        kind, found = gradients(layer, context)
        assert kind == torch.float32
        assert same(found, expected)


def test_nothing_changes_where_nothing_is_learnt() -> None:
    module, forward, shape = SLOW["depthwise 5x5"]
    given = torch.randn(shape)
    with torch.no_grad(), plain():
        expected = forward(module, given)
    with torch.no_grad(), autocast("cpu", torch.bfloat16):
        assert torch.equal(forward(module, given), expected)


def in_bfloat16(tensor: Tensor) -> bool:
    return torch.equal(tensor, tensor.bfloat16().float())


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return references_recipe(tmp_path)


SIZES_OF_A_STUDENT = SIZES | {"image_encoder": "tf_efficientnet_lite0", "image_blocks": 6}
STUDENT = (f"sizes={json.dumps(SIZES_OF_A_STUDENT)}", "precision=bfloat16")


def test_a_trainer_learns_so(recipe: Path) -> None:
    trainer = start(recipe, *STUDENT)
    learn(trainer, 1)
    learnt = [p for p in trainer.model.parameters() if p.ndim == 4 and p.grad is not None]
    depthwise_5x5 = [p.grad for p in learnt if p.shape[1] == 1 and p.shape[2] == 5]
    pointwise = [p.grad for p in learnt if p.shape[1] > 1 and p.shape[2] == 1]
    assert len(depthwise_5x5) > 3
    assert not any(in_bfloat16(gradient) for gradient in depthwise_5x5)
    assert len(pointwise) > 10
    assert all(in_bfloat16(gradient) for gradient in pointwise)


def test_what_is_computed_again_going_back_is_computed_the_same_way(recipe: Path) -> None:
    kept, again = start(recipe, *STUDENT), start(recipe, *STUDENT, "recompute=true")
    assert learn(kept, 2) == learn(again, 2)
    ours, theirs = tensors(again), tensors(kept)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
