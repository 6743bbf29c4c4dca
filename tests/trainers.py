"""Trainers in this process, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from training.data.batches import build_data
from training.recipe import read_recipe
from training.trainer import Trainer

# Rounding errors do not grow from step to step.
SLOW = "learning_rate=1.0e-4"


def start(recipe: Path, *overrides: str) -> Trainer:
    read = read_recipe(recipe, overrides)
    return Trainer(read, build_data(read), torch.device("cpu"))


def learn(trainer: Trainer, count: int) -> list[Mapping[str, float]]:
    """The losses of so many steps."""
    found = [trainer.learn(parts) for parts in islice(trainer.batches(), count)]
    assert len(found) == count
    return found


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def masks(losses: Sequence[dict[str, float]]) -> list[float]:
    return [loss["mask"] for loss in losses]
