"""`python -m training.ceiling`: what a model can reach at most, by what it is taught.

A mask becomes a target at the model's stride, and a model's logits become a mask on the way back.
This takes the targets for logits: the mIoU of a model that learnt them to perfection, for each way
of making targets (`outlines` in a recipe) and each size of the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_edge.letterbox import Letterbox
from training.arguments import at_least, documented, refusals
from training.data.labels import MASK_STRIDE, Labels
from training.data.references import Sentences
from training.data.samples import Sample
from training.errors import RecipeError
from training.judged import add_data, data_of
from training.metrics import iou
from training.model.config import CLIP_MEAN, THRESHOLD
from training.recipe import CHOICES
from training.selection import ReferenceData, select

WAYS = CHOICES["outlines"]
SURE = 1e-4
"""The least probability of a target's logit."""


def ceiling(samples: Sequence[Sample], size: int, outlines: str) -> float:
    """The mIoU of targets that are taken for what a model gives.

    Args:
        samples: with masks.
        size: side of the model's input in pixels.
        outlines: `published` or `covered`.
    """
    letterbox = Letterbox(size, CLIP_MEAN)
    reached = []
    for sample in tqdm(samples, f"{size} px, {outlines}", leave=False, mininterval=1):
        height, width = sample.photo.height, sample.photo.width
        labels = Labels(sample.photo, letterbox.matrix(height, width))
        target = labels.taught(sample.instance, size // MASK_STRIDE, outlines)
        back = letterbox.restore(_logits(target), height, width) > THRESHOLD
        reached.append(iou(back, sample.instance.mask().astype(bool)))
    return float(np.mean(reached))


def _logits(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    sure = np.clip(probability, SURE, 1 - SURE)
    return np.asarray(np.log(sure / (1 - sure)), np.float32)


EXAMPLE = """examples:
  python -m training.ceiling --data data/prepared/refcoco --split val --size 416
  python -m training.ceiling --scenes 100 --size 192 256
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.ceiling", __doc__, EXAMPLE)
    add = arguments.add_argument
    add_data(arguments)
    add("--split", action="append", default=[], help="can be repeated; default: the usual ones")
    add("--first", type=at_least(1), help="the first so many samples of each part alone")
    add("--size", type=at_least(32), nargs="+", default=[256, 416], help="default: 256 416")
    return arguments


def run(options: argparse.Namespace) -> None:
    """Print a line for each part, size and way."""
    data = data_of(options)
    # A reference has one mask, however many sentences.
    sentences: Sentences | None = "first" if isinstance(data, ReferenceData) else None
    for size in options.size:
        if size % 32:
            raise RecipeError(f"--size: a model's input is a multiple of 32, not {size}")
    for part in select(data, options.split, sentences):
        samples = part.samples[: options.first]
        print(f"{part.name}, {len(samples)} samples")
        for size in options.size:
            figures = (f"{way} {100 * ceiling(samples, size, way):5.1f}" for way in WAYS)
            print(f"  {size} px: mIoU {'  '.join(figures)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
