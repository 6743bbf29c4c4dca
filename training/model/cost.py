"""`python -m training.model.cost`: parameters and multiply-adds of a model, part by part."""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.model.config import MODELS, CRISConfig
from training.model.cris import CRIS

PARTS = ("image_encoder", "text_encoder", "neck", "decoder", "projector")


def multiply_adds(model: CRIS) -> dict[str, int]:
    """Multiply-adds of one photo with one phrase, by part: convolutions and matrix products.

    Counted by torch on tensors without storage, two floating-point operations each.
    """
    size = model.config.input_size
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(1, model.config.word_len, dtype=torch.int64)
        model.to("meta").eval()(torch.zeros(1, 3, size, size), tokens)
    counts = counter.get_flop_counts()
    # `decode` and `encode_*` are methods: a part's work is its module's forward.
    return {part: sum(counts[f"CRIS.{part}"].values()) // 2 for part in PARTS}


def parameters(module: nn.Module) -> int:
    """Number of trainable and fixed parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def table(config: CRISConfig) -> str:
    """A text table of what each part of the model costs."""
    with torch.device("meta"):
        model = CRIS(config)
    costs = multiply_adds(model)
    rows = [
        f"{config.name}, {config.input_size} px",
        f"{'part':<14}{'M params':>10}{'G mult-adds':>13}",
    ]
    for part in PARTS:
        count = parameters(model.get_submodule(part))
        rows.append(f"{part:<14}{count / 1e6:>10.2f}{costs[part] / 1e9:>13.2f}")
    total = sum(costs.values())
    rows.append(f"{'all':<14}{parameters(model) / 1e6:>10.2f}{total / 1e9:>13.2f}")
    return "\n".join(rows)


def main() -> None:
    """Print the table of the models named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=sorted(MODELS), help=", ".join(sorted(MODELS)))
    for name in parser.parse_args().models:
        if name not in MODELS:
            parser.error(f"no model {name!r}; there are {', '.join(sorted(MODELS))}")
        print(table(MODELS[name]), end="\n\n")


if __name__ == "__main__":
    main()
