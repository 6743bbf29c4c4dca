"""`python -m training.compact best.safetensors --out small.safetensors`: a quarter of the size.

Every matrix and kernel is rounded to 8 bits with a scale for each output channel (the largest
magnitude is 127), everything else to float16. What is read back are float32 weights again: rounded
ones, so judge the small checkpoint anew. For keeping and sending models; the speed stays. With
--threshold its masks end at another probability, wherever the checkpoint is judged or exported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import checkpoint
from training.arguments import documented, file_to_write, refusals


def compact(source: Path, out: Path, threshold: float | None = None) -> None:
    """Write a checkpoint's model, tokenizer and notes in small; the state of training is left out.

    Args:
        source, out: checkpoints.
        threshold: probability above which a pixel belongs to the mask, in (0, 1); None: the
            source's own.

    Raises:
        CheckpointError: the source is no checkpoint, the threshold no such probability, or `out`
            cannot be written.
    """
    kept = checkpoint.load(source)
    # Of other weights, and perhaps of another threshold.
    notes = {name: note for name, note in kept.metadata.items() if name != "accuracy"}
    notes |= {"weights": "8 bits an output channel, vectors in float16"}
    ends = kept.threshold if threshold is None else threshold
    checkpoint.save(out, kept.model, kept.tokenizer, notes, threshold=ends, compact=True)


EXAMPLE = """example:
  python -m training.compact runs/s/best.safetensors --threshold 0.25 --out s.safetensors
  python -m training.evaluate s.safetensors --data data
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.compact", __doc__, EXAMPLE)
    arguments.add_argument("source", type=Path, help="a checkpoint (.safetensors)")
    arguments.add_argument(
        "--out", type=file_to_write, required=True, help="the checkpoint to write"
    )
    arguments.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability above which a pixel belongs to the mask (default: the source's own); "
        "training.evaluate --threshold tells what one is worth",
    )
    return arguments


def run(options: argparse.Namespace) -> None:
    """Compact, and print what that saves."""
    compact(options.source, options.out, options.threshold)
    before, after = (path.stat().st_size / 1e6 for path in (options.source, options.out))
    print(f"{options.out}: {after:.2f} MB, from {before:.2f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
