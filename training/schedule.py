"""The learning rate over a run, as a factor of the recipe's."""

from __future__ import annotations

import math

from training.recipe import Recipe

STEP = 0.1
"""By how much the rate falls at a milestone."""


def factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The factor at a step (the first is 0): linear warm-up, then the recipe's schedule."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.schedule == "steps":
        epoch = step // steps_per_epoch
        return warm * STEP ** sum(epoch >= milestone for milestone in recipe.milestones)
    done = min(1.0, step / (steps_per_epoch * recipe.epochs))
    return warm * 0.5 * (1 + math.cos(math.pi * done))
