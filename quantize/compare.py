"""`python -m quantize.compare --teacher T --config C --out DIR`: is a teacher worth it.

Trains the recipe's student without the teacher, with it, and with each lesson by itself, as long
each time and once for every seed, and prints the figures of the last validation as a table, mean
and spread over the seeds. What is trained already is not trained again, and a run that was stopped
goes on: give the very same command.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

import torch

from quantize.distill import distil
from quantize.recipe import DistillRecipe
from quantize.teachers import check_lessons, is_checkpoint, open_teacher
from training.arguments import refusals, split_way
from training.compare import compare, parser
from training.phrases import read_phrases
from training.recipe import as_override, read_recipe

WAYS = (
    "teacher=null",
    "",
    "relations=0 features=0 texts=null",
    "soft_masks=0 features=0 texts=null",
    "soft_masks=0 relations=0 texts=null",
)
"""Without a teacher; with all its lessons; with one of them."""
OF_A_BUNDLE = (WAYS[0], WAYS[2])
"""Without a teacher; with its masks, which is all that a bundle shows."""


EXAMPLE = """example:
  python -m quantize.compare --teacher runs/r50/best.safetensors \\
      --config training/configs/scenes.yaml --out runs/worth --seeds 0 1 2 --set data=PHOTOS
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parser("quantize.compare", __doc__, EXAMPLE, [repr(way) for way in WAYS])
    arguments.add_argument(
        "--teacher", required=True, help="a checkpoint (.safetensors) or a bundle"
    )
    options = arguments.parse_args(argv)
    usual = WAYS if is_checkpoint(options.teacher) else OF_A_BUNDLE
    options.way = options.way or list(usual)
    options.set = [as_override("teacher", options.teacher), *options.set]
    # Before the first way, which needs no teacher, has trained for hours.
    if status := refusals(lambda: check_ways(options)):
        return status
    return compare(options, DistillRecipe, distil)


def check_ways(options: argparse.Namespace) -> None:
    """Refuse ways whose teachers are not there, or cannot give a lesson.

    Raises:
        CrisEdgeError: tells which, and why.
    """
    # Most ways have the same one, which is large.
    opened = functools.cache(lambda path: open_teacher(path, torch.device("cpu")))
    for way in options.way:
        overrides = [*options.set, *split_way(way)]
        recipe = read_recipe(options.config, overrides, DistillRecipe)
        if recipe.teacher is not None:
            check_lessons(recipe, opened(recipe.teacher))
        if recipe.texts is not None:
            read_phrases(recipe.texts)


if __name__ == "__main__":
    sys.exit(main())
