"""bfloat16 on a CPU, but for the operations whose gradients are slow in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainers import learn, start, tensors
from tests.training_run import SIZES, references_recipe
from training.autocast import Float32WhereFaster

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


def gradients(layer: Layer, autocast: bool, amended: bool) -> tuple[torch.dtype, dict[str, Tensor]]:
    """The result's type and the gradients of the layer's parameters."""
    module, forward, shape = layer
    torch.manual_seed(0)
    module.zero_grad()
    # Of numbers that bfloat16 has, so that nothing is rounded on the way in.
    given = torch.randn(shape).bfloat16().float()
    amendment = Float32WhereFaster() if amended else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), amendment:
        result = forward(module, given)
    result.float().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return result.dtype, found


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_learns_as_in_float32(name: str) -> None:
    _, exact = gradients(SLOW[name], autocast=False, amended=False)
    _, rounded = gradients(SLOW[name], autocast=True, amended=False)
    kind, found = gradients(SLOW[name], autocast=True, amended=True)
    assert kind == torch.bfloat16
    assert same(found, exact)
    assert not same(rounded, exact)


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_stays_as_autocast_has_it(name: str) -> None:
    kind, found = gradients(OTHERS[name], autocast=True, amended=True)
    assert kind == torch.bfloat16
    assert same(found, gradients(OTHERS[name], autocast=True, amended=False)[1])


@pytest.mark.parametrize("name", SLOW | OTHERS)
def test_float32_stays_float32(name: str) -> None:
    kind, found = gradients((SLOW | OTHERS)[name], autocast=False, amended=True)
    assert kind == torch.float32
    assert same(found, gradients((SLOW | OTHERS)[name], autocast=False, amended=False)[1])


def test_nothing_changes_where_nothing_is_learnt() -> None:
    module, forward, shape = SLOW["depthwise 5x5"]
    given = torch.randn(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = forward(module, given)
        with Float32WhereFaster():
            assert torch.equal(forward(module, given), plain)


def test_what_is_computed_again_going_back_is_computed_the_same_way(tmp_path: Path) -> None:
    recipe = references_recipe(tmp_path)
    sizes = SIZES | {"image_encoder": "tf_efficientnet_lite0", "image_blocks": 6}
    common = [f"sizes={json.dumps(sizes)}", "precision=bfloat16", "frozen_statistics=true"]
    kept, again = start(recipe, *common), start(recipe, *common, "recompute=true")
    assert learn(kept, 2) == learn(again, 2)
    ours, theirs = tensors(again), tensors(kept)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
