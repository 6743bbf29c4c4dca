"""The weights that a run starts from: pretrained towers, or a checkpoint."""

from __future__ import annotations

import dataclasses

from training import checkpoint
from training.data.batches import TrainingData
from training.errors import CheckpointError
from training.model import CRIS
from training.model.pretrained import load_clip, load_imagenet
from training.recipe import Recipe


def build_model(recipe: Recipe, data: TrainingData) -> CRIS:
    """The recipe's model with the weights it starts from.

    Raises:
        CheckpointError: the weights cannot be had or do not fit.
    """
    config = dataclasses.replace(recipe.config(), vocab_size=data.tokenizer.vocab_size)
    model = CRIS(config)
    if recipe.start_from is not None:
        fine_tune(model, recipe.start_from)
    elif recipe.pretrained == "imagenet":
        load_imagenet(model)
    else:
        load_clip(model, recipe.pretrained)
    return model


def fine_tune(model: CRIS, path: str) -> None:
    """Give a model all the weights of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or of other sizes; tells the first that differ.
    """
    weights, wanted = checkpoint.load(path).model.state_dict(), model.state_dict()
    differing = [f"{name} is surplus" for name in weights if name not in wanted]
    for name, tensor in wanted.items():
        if name not in weights:
            differing.append(f"{name} is missing")
        elif tensor.shape != weights[name].shape:
            shapes = tuple(weights[name].shape), tuple(tensor.shape)
            differing.append(f"{name} is {shapes[0]} and not {shapes[1]}")
    if differing:
        raise CheckpointError(
            f"start_from: {path} is of other sizes than the recipe's model: "
            f"{'; '.join(differing[:3])}"
        )
    model.load_state_dict(weights)
