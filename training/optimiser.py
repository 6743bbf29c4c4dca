"""What takes the steps of a run: optimiser, its groups, and the average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.objective import Objective
from training.recipe import Recipe


def build_optimiser(
    objective: Objective, recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimiser of a model and of what learns beside it."""
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    groups, fused = parameter_groups(objective, recipe), device.type == "cuda"
    return kind(groups, weight_decay=recipe.weight_decay, fused=fused)


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights, which forgets faster while it is young.

    After n steps it decays by (1 + n) / (10 + n) at most; else the random start would weigh on it
    for 1 / (1 - decay) steps and more.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start with the model as it is, on its device; `decay` is that of an old average."""
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take a step's weights in, and buffers with a fraction; others, which count, as they are.

        torch's own method asks the GPU for the number of steps, and so waits for it.
        """
        count = int(self.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        mine, theirs = (
            [tensor.detach() for tensor in (*one.parameters(), *one.buffers())]
            for one in (self.module, model)
        )
        pairs = list(zip(mine, theirs, strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        get_ema_multi_avg_fn(decay)(*map(list, zip(*averaged, strict=True)), count)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)
        self.n_averaged += 1


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
