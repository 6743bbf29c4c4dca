"""`python -m training.model.cost [MODEL ...]`: parameters and multiply-adds, part by part.

MODEL is a name of training/model/config.py or a checkpoint (.safetensors); without one, all names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.arguments import documented, refusals
from training.model.config import MODELS, CRISConfig
from training.model.cris import CRIS

PARTS = ("image_encoder", "text_encoder", "neck", "decoder", "projector")
STAGES = ("photo", "phrase", "pair")
"""What is computed once a photo, once a phrase, and once a pair of them."""


def multiply_adds(config: CRISConfig) -> dict[str, int]:
    """Multiply-adds of one photo with one phrase, by stage: convolutions and matrix products.

    Counted by torch on tensors without storage, two floating-point operations each.
    """
    size = config.input_size
    with torch.device("meta"), torch.no_grad():
        # Where something has wrapped torch's functions for a while, as exporters do, torch makes
        # some tensors elsewhere ever after.
        model = CRIS(config).eval().to("meta")
        frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        tokens = torch.zeros(1, config.word_len, dtype=torch.int64)
        photo, photo_cost = _counted(model.photo, frame)
        phrase, phrase_cost = _counted(model.phrase, tokens)
        _, pair_cost = _counted(model.pair, *photo, *phrase)
    return {"photo": photo_cost, "phrase": phrase_cost, "pair": pair_cost}


def _counted(stage: Callable[..., Any], *inputs: Any) -> tuple[Any, int]:
    with FlopCounterMode(display=False) as counter:
        result = stage(*inputs)
    return result, counter.get_total_flops() // 2


def parameters(module: nn.Module) -> int:
    """Number of trainable and fixed parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def table(config: CRISConfig) -> str:
    """A text table of what each part holds and each stage costs."""
    with torch.device("meta"):
        model = CRIS(config)
    held = {part: parameters(model.get_submodule(part)) for part in PARTS}
    held["all"] = parameters(model)
    costs = multiply_adds(config)
    costs["all"] = sum(costs.values())
    rows = [f"{config.name}, {config.input_size} px", f"{'part':<16}{'M parameters':>14}"]
    rows += [f"{part:<16}{count / 1e6:>14.2f}" for part, count in held.items()]
    rows += [f"{'once a':<16}{'G mult-adds':>14}"]
    rows += [f"{stage:<16}{cost / 1e9:>14.2f}" for stage, cost in costs.items()]
    return "\n".join(rows)


EXAMPLES = """examples:
  python -m training.model.cost cris_edge_s cris_r50
  python -m training.model.cost training/checkpoints/cris_edge_s.safetensors
"""


def _config(model: str) -> CRISConfig:
    """The sizes of what is named, or of a checkpoint."""
    if model in MODELS:
        return MODELS[model]
    from training import checkpoint

    return checkpoint.load(model).model.config


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of the models named; one line on stderr and 2 where one is refused."""
    parser = documented("training.model.cost", __doc__, EXAMPLES)
    names = ", ".join(sorted(MODELS))
    parser.add_argument("models", nargs="*", default=sorted(MODELS), help=f"{names}, or a file")
    models = parser.parse_args(argv).models
    for model in models:
        if model not in MODELS and not model.endswith(".safetensors"):
            parser.error(f"no model {model!r}; there are {names}")
    return refusals(lambda: print("\n\n".join(table(_config(model)) for model in models)))


if __name__ == "__main__":
    sys.exit(main())
