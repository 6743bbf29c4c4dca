"""What takes the steps of a run: optimiser, its groups, and the average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.objective import Objective
from training.recipe import Recipe

Tensors = list[Tensor] | tuple[Tensor, ...]


def build_optimiser(
    objective: Objective, recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimiser of a model and of what learns beside it."""
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    groups, fused = parameter_groups(objective, recipe), device.type == "cuda"
    return kind(groups, weight_decay=recipe.weight_decay, fused=fused)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights, which forgets faster while it is young.

    After n steps it decays by (1 + n) / (10 + n) at most; else the random start would weigh on it
    for 1 / (1 - decay) steps and more.
    """

    def update(average: Tensors, current: Tensors, count: Tensor | int) -> None:
        young = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, young))(average, current, count)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def parameter_groups(objective: Objective, recipe: Recipe) -> list[dict[str, Any]]:
    """Towers that come trained at a fraction of the rate; no decay for vectors and scalars.

    Positional embeddings have the whole rate, as the CRIS authors have it.
    """
    rates = {
        "model.image_encoder.": recipe.image_encoder_rate,
        "model.text_encoder.": recipe.text_encoder_rate,
    }
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            scale = next((rate for tower, rate in rates.items() if name.startswith(tower)), 1.0)
            scale = 1.0 if "positional_embedding" in name else scale
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": group, "base_lr": recipe.learning_rate * scale}
        | ({} if decayed else {"weight_decay": 0.0})
        for (scale, decayed), group in groups.items()
    ]
