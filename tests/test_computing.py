"""However a step is computed, it comes to the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainers import SLOW, learn, masks, start, tensors
from tests.training_run import SIZES, interrupted, references_recipe, run, same_run, states
from training import checkpoint
from training.errors import TrainingError
from training.model.config import MODELS
from training.model.neck import double
from training.objective import Batch, Objective
from training.trainer import Trainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three steps of four photos, all in float32 and without dropout."""
    return references_recipe(tmp_path_factory.mktemp("references"))


def gradients(recipe: Path, accumulate: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the first step, with the statistics that batch norm starts from."""
    trainer = start(recipe, "photos=8", f"accumulate={accumulate}")
    parts = next(trainer.batches())
    assert len(parts) == accumulate
    assert {len(part["image"]) for part in parts} == {8 // accumulate}
    # Those of a part differ from those of the whole, and it is not batch norm that is tested.
    trainer.objective.eval()
    losses = trainer.learn(parts)
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return losses, found


@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_parts_of_a_batch_add_up_to_it(accumulate: int, recipe: Path) -> None:
    whole, expected = gradients(recipe, 1)
    losses, found = gradients(recipe, accumulate)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert sum(float(gradient.abs().sum()) for gradient in expected.values()) > 1


@pytest.mark.parametrize("frozen", ["true", "false"])
@pytest.mark.parametrize(
    "encoder",
    [
        {"vision_layers": [2, 1, 1, 1]},
        {"image_encoder": "tf_efficientnet_lite0", "image_blocks": 6},
        {"image_encoder": MODELS["cris_edge_m"].image_encoder},
    ],
    ids=["clip", "efficientnet", "mobileclip"],
)
def test_what_is_computed_again_is_the_very_same(
    encoder: dict[str, object], frozen: str, recipe: Path
) -> None:
    sizes = "sizes=" + json.dumps(SIZES | {"dropout": 0.3} | encoder)
    common = [sizes, f"frozen_statistics={frozen}"]
    kept, again = start(recipe, *common), start(recipe, *common, "recompute=true")
    calls: list[nn.Module] = []
    for trainer in (kept, again):
        (layer,) = trainer.model.decoder.layers
        stages = trainer.model.image_encoder.stages
        leaves = [next(p for p in stage.modules() if not [*p.children()]) for stage in stages]
        inside = [cast("nn.Module", layer.self_norm), *leaves]
        hooks = [part.register_forward_hook(lambda m, *_: calls.append(m)) for part in inside]
        assert len(masks(learn(trainer, 1))) == 1
        # Once going on; with the option once more going back.
        times = 1 + (trainer is again)
        assert [calls.count(part) for part in inside] == [times] * len(inside)
        for hook in hooks:
            hook.remove()
    assert learn(kept, 4) == learn(again, 4)
    ours, theirs = tensors(again), tensors(kept)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_steps_that_are_heard_of_later_are_the_same(recipe: Path) -> None:
    # As on a GPU, where a step is under way while the one before is heard of.
    now, later = start(recipe, SLOW), start(recipe, SLOW)
    later.behind = True
    losses = learn(now, 5)
    assert learn(later, 5) == losses
    assert (now.heard, later.heard) == (losses[4], losses[3])
    later.hear()
    assert later.sums == now.sums
    assert later.end_epoch() == now.end_epoch()
    ours, theirs = tensors(later), tensors(now)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def multiply_losses(patch: pytest.MonkeyPatch, factor: float) -> None:
    """Every loss is so many times what it would be."""
    forward = Objective.forward

    def multiplied(objective: Objective, batch: Batch) -> dict[str, Tensor]:
        return {name: factor * loss for name, loss in forward(objective, batch).items()}

    patch.setattr(Objective, "forward", multiplied)


@pytest.mark.parametrize("behind", [False, True])
def test_a_step_that_comes_to_no_number_is_never_written(
    behind: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(recipe)
    trainer.behind = behind
    steps = trainer.batches()
    trainer.learn(next(steps))
    before = tensors(trainer)
    multiply_losses(monkeypatch, math.nan)
    if behind:
        assert math.isnan(trainer.learn(next(steps))["mask"])
    write = partial(trainer.save, tmp_path / "state.safetensors")
    with pytest.raises(TrainingError, match=r"the loss is nan and its gradient nan at step 1\. A"):
        write() if behind else trainer.learn(next(steps))
    assert not list(tmp_path.iterdir())
    parameters = {name for name, _ in trainer.model.named_parameters()}
    same = all(torch.equal(tensors(trainer)[name], before[name]) for name in parameters)
    assert same is not behind


def test_the_layout_of_photos_in_memory_changes_nothing(recipe: Path) -> None:
    usual, turned = start(recipe, SLOW), start(recipe, SLOW, "channels_last=true")
    weight = cast("Tensor", turned.model.neck.c4[0].weight)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    losses = masks(learn(usual, 6))
    assert masks(learn(turned, 6)) == pytest.approx(losses, abs=1e-4)
    assert len(set(losses)) == 6


def test_bfloat16_comes_close(recipe: Path) -> None:
    exact, rounded = (
        masks(learn(start(recipe, SLOW, f"precision={p}"), 3)) for p in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded[0] != exact[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_upsampling_is_the_same_and_so_is_its_gradient(layout: Any) -> None:
    small = torch.rand(2, 3, 5, 4).contiguous(memory_format=layout).requires_grad_()
    weights = torch.rand(2, 3, 10, 8)
    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    for way in (double(small), compiled(small)):
        expected = F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
        torch.testing.assert_close(way, expected)
        gradients = [torch.autograd.grad((up * weights).sum(), small) for up in (way, expected)]
        torch.testing.assert_close(*gradients)
    if layout is torch.channels_last:
        # In the order of the convolutions around it, which would be copied from any other.
        assert compiled(small).is_contiguous(memory_format=layout)


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_other(recipe: Path) -> None:
    usual, compiled = start(recipe, SLOW), start(recipe, SLOW, "compile=true")
    assert masks(learn(compiled, 5)) == pytest.approx(masks(learn(usual, 5)), abs=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


# --- float16 ---


def settle(trainer: Trainer) -> Iterator[list[Batch]]:
    """Let the scale of the loss come down to where its gradients have room; further batches."""
    steps, scale = trainer.batches(), math.inf
    while trainer.scaler.get_scale() != scale:
        assert trainer.step < 15
        scale = trainer.scaler.get_scale()
        trainer.learn(next(steps))
    return steps


def test_float16_scales_its_loss_and_keeps_the_scale(recipe: Path, tmp_path: Path) -> None:
    trainer = start(recipe, "precision=float16", "epochs=9")
    (exact,) = masks(learn(start(recipe), 1))
    (first,) = masks(learn(trainer, 1))
    assert first == pytest.approx(exact, rel=0.02)
    assert first != exact
    steps = settle(trainer)
    assert trainer.scaler.get_scale() > 1
    assert masks([trainer.learn(next(steps)) for _ in range(8)])[-1] < 0.8 * first
    trainer.scaler.update(512.0)
    trainer.save(tmp_path / "state-00000003.safetensors")
    again = start(recipe, "precision=float16", "epochs=9")
    assert again.scaler.get_scale() != 512
    again.load(tmp_path / "state-00000003.safetensors")
    assert again.scaler.get_scale() == 512
    assert again.scaler.state_dict() == trainer.scaler.state_dict()


def test_a_scaled_loss_that_overflows_costs_one_step(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(recipe, "precision=float16", "epochs=9")
    steps = settle(trainer)
    before, scale, step = tensors(trainer), trainer.scaler.get_scale(), trainer.step
    with monkeypatch.context() as patch:
        multiply_losses(patch, 1e36)
        assert trainer.learn(next(steps))["mask"] > 1e35
    assert trainer.step == step + 1
    assert trainer.scaler.get_scale() == scale / 2
    parameters = {name for name, _ in trainer.model.named_parameters()}
    assert all(torch.equal(tensors(trainer)[name], before[name]) for name in parameters)
    for _ in range(6):
        trainer.learn(next(steps))
    changed = {name for name, tensor in tensors(trainer).items() if (tensor != before[name]).any()}
    assert len(changed & parameters) > 150


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(("scale", "broken"), [(1.0, True), (2.0, False)])
def test_a_loss_that_overflows_at_the_smallest_scale_is_broken(
    scale: float, broken: bool, behind: bool, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(recipe, "precision=float16", "epochs=9")
    trainer.behind, trainer.scaler = behind, torch.amp.GradScaler("cpu", init_scale=scale)
    multiply_losses(monkeypatch, 1e36)
    expected = (
        pytest.raises(TrainingError, match=r"its gradient (inf|nan)") if broken else nullcontext()
    )
    with expected:
        trainer.learn(next(trainer.batches()))
        trainer.hear()


def test_an_interrupted_run_in_float16_goes_on_as_if_never_stopped(
    recipe: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path / "whole", "precision=float16") == 0
    with interrupted(5):
        run(recipe, tmp_path / "stopped", "precision=float16")
    assert run(recipe, tmp_path / "stopped", "precision=float16", "--resume") == 0
    same_run(tmp_path / "stopped", tmp_path / "whole")
    state = json.loads(checkpoint.load(states(tmp_path / "whole")[-1]).metadata["state"])
    assert state["scaler"]["scale"] > 1
