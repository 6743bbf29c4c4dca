"""Each option of a recipe does what it says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers import learn, start, tensors
from tests.training_run import SIZES, figures, references_recipe, run
from training import checkpoint
from training.errors import CheckpointError
from training.model import CRIS
from training.model.config import MODELS
from training.objective import Objective
from training.optimiser import parameter_groups
from training.recipe import Recipe
from training.schedule import factor


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three steps of four photos, all in float32 and without dropout."""
    return references_recipe(tmp_path_factory.mktemp("references"))


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
    for size, before, now in (
        ("decoder_ffn", SIZES["decoder_ffn"], 48),
        # Other heads, or photos of other brightness, have weights of the same shape.
        ("decoder_heads", SIZES["decoder_heads"], 2 * SIZES["decoder_heads"]),
        ("std", (0.5, 0.5, 0.5), (0.25, 0.5, 0.5)),
    ):
        sizes = json.dumps(SIZES | {size: now})
        with pytest.raises(CheckpointError) as refused:
            start(recipe, f"start_from={best}", f"sizes={sizes}")
        assert f"{size} is {before} and not {now}" in str(refused.value)
