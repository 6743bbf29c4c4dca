"""The weights that a run starts from: pretrained towers, or a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from training import checkpoint
from training.data.batches import TrainingData
from training.errors import CheckpointError, RecipeError
from training.model import CRIS
from training.model.pretrained import load_clip, load_imagenet
from training.recipe import Recipe

MAY_DIFFER = ("name", "input_size", "word_len", "dropout")
"""Sizes that no weight depends on."""


def build_model(recipe: Recipe, data: TrainingData) -> CRIS:
    """The recipe's model with the weights it starts from.

    Raises:
        RecipeError: its sizes do not make a model.
        CheckpointError: the weights cannot be had or do not fit.
    """
    config = dataclasses.replace(recipe.config(), vocab_size=data.tokenizer.vocab_size)
    try:
        model = CRIS(config)
    except (ValueError, RuntimeError) as error:
        # What timm's models cannot be, and what runs out of memory.
        raise RecipeError(f"sizes: {error}") from error
    if recipe.start_from is not None:
        fine_tune(model, recipe.start_from)
    elif recipe.pretrained == "imagenet":
        load_imagenet(model)
    else:
        load_clip(model, recipe.pretrained)
    return model


def origin(recipe: Recipe, data: TrainingData) -> dict[str, str]:
    """What a run's checkpoints say of all that their weights have learned from.

    Raises:
        CheckpointError: the checkpoint that it starts from is damaged.
    """
    if recipe.start_from is None:
        return {"training_data": data.sources}
    before = checkpoint.notes(recipe.start_from)
    learned = before.get("training_data", "what its checkpoint does not tell")
    kept = {name: before[name] for name in ("licence",) if name in before}
    return kept | {"training_data": f"{data.sources}; before that: {learned}"}


def told_of_all(name: str, notes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What notes of several models that become one say under a name, each once; {} if none does."""
    told = dict.fromkeys(str(one[name]) for one in notes if one.get(name) is not None)
    return {name: "; ".join(told)} if told else {}


def fine_tune(model: CRIS, path: str) -> None:
    """Give a model all the weights of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or of other sizes; tells which.
    """
    kept = checkpoint.load(path).model
    if differing := model.config.differences(kept.config, MAY_DIFFER):
        raise CheckpointError(
            f"start_from: {path} is of other sizes than the recipe's model: {'; '.join(differing)}"
        )
    model.load_state_dict(kept.state_dict())
