"""`python -m training.average a.safetensors b.safetensors --out c.safetensors`: the mean of models.

The checkpoints are of one model, by several fine-tunings of the same start: their weights lie near
enough for the mean to be a model, and it is most often a better one than each of them, at the price
of one (model soups, arXiv 2203.05482). Judge it anew: nothing is promised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import checkpoint
from training.arguments import documented, file_to_write, refusals
from training.checkpoint import Checkpoint
from training.errors import CheckpointError
from training.weights import MAY_DIFFER, told_of_all

EXAMPLES = """\
examples:
  python -m training.average runs/first/best.safetensors runs/second/best.safetensors \\
      --out runs/mean.safetensors
  python -m training.average old.safetensors new.safetensors --weights 1 3 --out mean.safetensors
"""


def average(sources: Sequence[Path], out: Path, weights: Sequence[float] | None = None) -> None:
    """Write the mean of checkpoints' weights; what they learned from is told of all, and all
    else, as the input's size, is the first one's.

    Args:
        sources: at least two checkpoints of one model with one tokenizer; what no weight depends on
            may differ.
        out: a checkpoint.
        weights: how much each counts, all positive; None: all the same.

    Raises:
        CheckpointError: they are of different models, the weights are not as described, a source
            is no checkpoint, or `out` cannot be written.
    """
    shares = _shares(sources, [1.0] * len(sources) if weights is None else weights)
    first = checkpoint.load(sources[0])
    state = first.model.state_dict()
    mean = {k: v * shares[0] if v.is_floating_point() else v for k, v in state.items()}
    learned = [first.metadata]
    for source, share in zip(sources[1:], shares[1:], strict=True):
        other = _like(first, sources[0], source)
        learned.append(other.metadata)
        for name, tensor in other.model.state_dict().items():
            if tensor.is_floating_point():
                mean[name] += tensor * share
    first.model.load_state_dict(mean)
    notes = {k: v for k, v in first.metadata.items() if k not in ("accuracy", "weights", "recipe")}
    notes |= told_of_all("training_data", learned) | told_of_all("licence", learned)
    notes["mean_of"] = ", ".join(
        f"{source.name} ({share:.3g})" for source, share in zip(sources, shares, strict=True)
    )
    checkpoint.save(out, first.model, first.tokenizer, notes, threshold=first.threshold)


def _shares(sources: Sequence[Path], weights: Sequence[float]) -> list[float]:
    if len(sources) < 2:
        raise CheckpointError(f"a mean is of two checkpoints at least, not of {len(sources)}")
    if len(weights) != len(sources) or not all(0 < weight < float("inf") for weight in weights):
        raise CheckpointError(
            f"weights: expected {len(sources)} positive numbers, one a checkpoint, "
            f"got {', '.join(f'{weight:g}' for weight in weights)}"
        )
    return [weight / sum(weights) for weight in weights]


def _like(first: Checkpoint, name: Path, source: Path) -> Checkpoint:
    """A checkpoint, if it is of the same model as the first."""
    other = checkpoint.load(source)
    if differing := other.model.config.differences(first.model.config, MAY_DIFFER):
        raise CheckpointError(
            f"{source} and {name} are not of one model: their sizes differ: {'; '.join(differing)}"
        )
    if other.tokenizer.to_json() != first.tokenizer.to_json():
        raise CheckpointError(
            f"{source} and {name} number words differently: their tokenizers differ"
        )
    return other


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.average", __doc__, EXAMPLES)
    arguments.add_argument("sources", type=Path, nargs="+", help="checkpoints (.safetensors)")
    arguments.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="of each (default: all the same)"
    )
    arguments.add_argument(
        "--out", type=file_to_write, required=True, help="the checkpoint to write"
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: average(options.sources, options.out, options.weights))


if __name__ == "__main__":
    sys.exit(main())
