"""Each option of a recipe does what it says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training_run import (
    SIZES,
    figures,
    interrupted,
    references_recipe,
    run,
    same_run,
    states,
)
from training import checkpoint
from training.data.batches import build_data
from training.errors import CheckpointError, TrainingError
from training.model import CRIS
from training.model.config import MODELS
from training.model.neck import double
from training.objective import Batch, Objective
from training.recipe import Recipe, read_recipe
from training.schedule import factor
from training.trainer import Trainer, parameter_groups

CPU = torch.device("cpu")
# Rounding errors do not grow from step to step.
SLOW = "learning_rate=1.0e-4"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three steps of four photos, all in float32 and without dropout."""
    return references_recipe(tmp_path_factory.mktemp("options"))


def start(recipe: Path, *overrides: str) -> Trainer:
    read = read_recipe(recipe, overrides)
    return Trainer(read, build_data(read), CPU)


def learn(trainer: Trainer, count: int) -> list[Mapping[str, float]]:
    """The losses of so many steps."""
    found = [trainer.learn(parts) for parts in islice(trainer.batches(), count)]
    assert len(found) == count
    return found


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def masks(losses: Sequence[dict[str, float]]) -> list[float]:
    return [loss["mask"] for loss in losses]


# --- how it is computed ---


def gradients(recipe: Path, accumulate: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the first step, with the statistics that batch norm starts from."""
    trainer = start(recipe, f"accumulate={accumulate}")
    parts = next(trainer.batches())
    assert len(parts) == accumulate
    assert {len(part["image"]) for part in parts} == {4 // accumulate}
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


@pytest.mark.parametrize("behind", [False, True])
def test_a_step_that_comes_to_no_number_is_never_written(
    behind: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(recipe)
    trainer.behind = behind
    steps, forward = trainer.batches(), Objective.forward
    trainer.learn(next(steps))
    before = tensors(trainer)

    def spoilt(objective: Objective, batch: Batch) -> dict[str, Tensor]:
        return {name: math.nan * loss for name, loss in forward(objective, batch).items()}

    monkeypatch.setattr(Objective, "forward", spoilt)
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
    forward = Objective.forward

    def huge(objective: Objective, batch: Batch) -> dict[str, Tensor]:
        return {name: 1e36 * loss for name, loss in forward(objective, batch).items()}

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", huge)
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
    forward = Objective.forward

    def huge(objective: Objective, batch: Batch) -> dict[str, Tensor]:
        return {name: 1e36 * loss for name, loss in forward(objective, batch).items()}

    monkeypatch.setattr(Objective, "forward", huge)
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


# --- how it learns ---


def test_the_papers_rates(recipe: Path) -> None:
    """Both towers at a tenth, but for their positional embeddings."""
    del recipe
    paper = Recipe()
    with torch.device("meta"):
        objective = Objective(CRIS(MODELS["cris_r50"]), paper)
    names = {parameter: name for name, parameter in objective.named_parameters()}
    rates = {
        names[parameter]: group["base_lr"]
        for group in parameter_groups(objective, paper)
        for parameter in group["params"]
    }
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert rates.keys() == trained
    assert trained == set(names.values()) - {"model.text_encoder.logit_scale"}
    towers = ("model.image_encoder.", "model.text_encoder.")
    places = [name for name in rates if "positional_embedding" in name]
    assert sorted(places) == [
        "model.image_encoder.trunk.attnpool.positional_embedding",
        "model.text_encoder.tower.positional_embedding",
    ]
    for name, rate in rates.items():
        tenth = name.startswith(towers) and name not in places
        assert rate == pytest.approx(1e-5 if tenth else 1e-4), name
    assert len([name for name in rates if rates[name] < 5e-5]) > 200
    assert len([name for name in rates if rates[name] > 5e-5]) > 100


def test_vectors_are_not_decayed(recipe: Path) -> None:
    trainer = start(recipe, "optimiser=adamw", "weight_decay=0.5", "image_encoder_rate=0.3")
    assert isinstance(trainer.optimiser, torch.optim.AdamW)
    for group in trainer.optimiser.param_groups:
        (matrices,) = {parameter.ndim > 1 for parameter in group["params"]}
        assert group["weight_decay"] == (0.5 if matrices else 0.0)
    rates = sorted({group["base_lr"] for group in trainer.optimiser.param_groups})
    assert rates == pytest.approx([1e-4, 3e-4, 1e-3])


def test_the_optimisers(recipe: Path) -> None:
    adam, adamw = start(recipe), start(recipe, "optimiser=adamw")
    assert type(adam.optimiser) is torch.optim.Adam
    # Without decay they are one and the same.
    assert learn(adam, 2) == learn(adamw, 2)
    decayed = start(recipe, "optimiser=adamw", "weight_decay=100.0")
    coupled = start(recipe, "weight_decay=100.0")
    assert len({losses[-1]["mask"] for losses in (
        learn(start(recipe), 2), learn(decayed, 2), learn(coupled, 2)
    )}) == 3  # fmt: skip


@settings(deadline=None)
@given(
    steps=st.integers(1, 50),
    milestones=st.lists(st.integers(0, 20), max_size=3),
    warmup=st.integers(0, 30),
    step=st.integers(0, 1000),
)
def test_the_rate_falls_to_a_tenth_exactly_at_milestones(
    steps: int, milestones: list[int], warmup: int, step: int
) -> None:
    recipe = dataclasses.replace(Recipe(), milestones=milestones, warmup_steps=warmup)
    epochs_over = step // steps
    fallen = len([milestone for milestone in milestones if milestone <= epochs_over])
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    assert factor(recipe, step, steps) == pytest.approx(warm * 0.1**fallen)


def test_the_papers_schedule() -> None:
    last, first = 35 * 1000 - 1, 35 * 1000
    assert [factor(Recipe(), step, 1000) for step in (0, last)] == [1.0, 1.0]
    assert [factor(Recipe(), step, 1000) for step in (first, 49_999)] == pytest.approx([0.1, 0.1])


@settings(deadline=None)
@given(steps=st.integers(1, 100), epochs=st.integers(1, 50), warmup=st.integers(0, 20))
def test_a_cosine_goes_down_to_nothing(steps: int, epochs: int, warmup: int) -> None:
    recipe = dataclasses.replace(
        Recipe(), schedule="cosine", epochs=epochs, warmup_steps=warmup, milestones=[1]
    )
    total = steps * epochs
    factors = [factor(recipe, step, steps) for step in range(total)]
    assert all(0 <= value <= 1 for value in factors)
    rising, falling = factors[: warmup or 1], factors[max(warmup - 1, 0) :]
    assert falling == sorted(falling, reverse=True)
    assert rising[0] == pytest.approx(1 / max(1, warmup))
    # The last step is one before the end, where nothing is left.
    assert factors[-1] <= 0.5 * (1 - math.cos(math.pi / total)) + 1e-12
    assert factor(recipe, total, steps) == pytest.approx(0, abs=1e-12)


def test_the_optimiser_has_the_rates_of_the_schedule(recipe: Path, tmp_path: Path) -> None:
    trainer = start(recipe, "warmup_steps=2", "milestones=[1, 2]")
    found = []
    for parts in islice(trainer.batches(), 9):
        trainer.learn(parts)
        found.append({group["lr"] / group["base_lr"] for group in trainer.optimiser.param_groups})
    expected = [0.5, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert [min(ratios) for ratios in found] == pytest.approx(expected)
    assert [max(ratios) for ratios in found] == pytest.approx(expected)
    assert run(recipe, tmp_path, "warmup_steps=2", "milestones=[1, 2]", "validate_every=9") == 0
    told = [record["learning_rate"] for record in figures(tmp_path) if "losses" in record]
    assert told == pytest.approx([1e-3 * value for value in expected])


def test_gradients_are_clipped_as_a_whole(recipe: Path) -> None:
    def norm(*overrides: str) -> float:
        trainer = start(recipe, *overrides)
        learn(trainer, 1)
        found = [p.grad.norm() for p in trainer.objective.parameters() if p.grad is not None]
        return float(torch.stack(found).norm())

    free = norm()
    assert free > 0.05
    assert norm("clip_norm=0.02") == pytest.approx(0.02, rel=1e-3)
    assert norm(f"clip_norm={2 * free:.6f}") == pytest.approx(free, rel=1e-5)


# --- what is judged ---


def test_without_an_average_the_model_itself_is_judged(recipe: Path) -> None:
    trainer = start(recipe)
    learn(trainer, 1)
    assert trainer.average is None
    assert trainer.judged is trainer.model
    assert not trainer.model.training


def test_judging_leaves_the_training_as_it_is(recipe: Path, tmp_path: Path) -> None:
    often, once = (tmp_path / name for name in ("often", "once"))
    assert run(recipe, often, "validate_every=1") == 0
    assert run(recipe, once, "validate_every=9") == 0
    losses, expected = (
        [record["losses"] for record in figures(out) if "losses" in record] for out in (often, once)
    )
    assert len(losses) == 9
    assert losses == expected


def test_the_average_that_is_judged_lags_behind(recipe: Path) -> None:
    trainer = start(recipe, "ema=0.6")
    steps = trainer.batches()
    expected, name = None, "projector.pixels.weight"
    for count, parts in enumerate(islice(steps, 7)):
        trainer.learn(parts)
        weights = trainer.model.state_dict()[name].double()
        # Young averages forget faster; that of 7 steps has reached the recipe's decay.
        decay = min(0.6, (1 + count) / (10 + count))
        expected = weights if expected is None else decay * expected + (1 - decay) * weights
        judged = trainer.judged
        assert judged is not trainer.model
        assert not judged.training
        torch.testing.assert_close(
            judged.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-7
        )
    assert trainer.model.training


def test_frozen_statistics_stay_as_they_came(recipe: Path) -> None:
    free, frozen = start(recipe), start(recipe, "frozen_statistics=true")
    before = tensors(frozen)
    learn(free, 2)
    learn(frozen, 2)
    mean = "image_encoder.trunk.layer1.0.bn1.running_mean"
    assert torch.equal(tensors(frozen)[mean], before[mean])
    assert not torch.equal(tensors(free)[mean], before[mean])
    neck = "neck.c4.1.running_mean"
    assert not torch.equal(tensors(frozen)[neck], before[neck])


# --- fine-tuning ---


def test_a_checkpoint_is_fine_tuned(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "first", "epochs=1") == 0
    best = tmp_path / "first" / "best.safetensors"
    begun = start(recipe, f"start_from={best}", "seed=3")
    kept = checkpoint.load(best)
    assert begun.data.tokenizer.to_json() == kept.tokenizer.to_json()
    for name, tensor in kept.model.state_dict().items():
        assert torch.equal(begun.model.state_dict()[name], tensor), name
    before = tensors(begun)
    learn(begun, 1)
    assert not all(torch.equal(before[name], tensor) for name, tensor in tensors(begun).items())


def test_a_checkpoint_of_other_sizes_is_not_fine_tuned(recipe: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "first", "epochs=1") == 0
    best = tmp_path / "first" / "best.safetensors"
    sizes = json.dumps(SIZES | {"decoder_ffn": 48})
    with pytest.raises(
        CheckpointError, match=r"decoder\.layers\.0\.feed\.0.* is \(32, 32\) and not \(48, 32\)"
    ):
        start(recipe, f"start_from={best}", f"sizes={sizes}")
