"""`python -m training.compare --config C --out DIR --way "" --way "dice=0"`: which way is better.

Trains the recipe in each way, once for every seed, and prints the figures of the last validation as
a table, mean and spread over the seeds. What is trained already is not trained again, and a run
that was stopped goes on: give the very same command.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from training import distributed
from training.arguments import documented, refusals, split_way
from training.distributed import agree, gather_objects, world
from training.recipe import Recipe, read_recipe
from training.report import measured_by
from training.run_log import LOG
from training.train import train

AS_IT_IS = "as it is"

_Kind = TypeVar("_Kind", bound=Recipe)

Figures = dict[str, dict[str, float]]
"""By source of the samples, then by metric."""


def figures_of(out: Path) -> Figures:
    """The figures of a run's last validation, from its log."""
    lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    found: Figures = [record["val"] for record in records if "val" in record][-1]
    return found


def train_ways(
    config: str,
    overrides: Sequence[str],
    ways: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    kind: type[_Kind],
    train: Callable[[_Kind, Path, bool, torch.device], None],
) -> dict[str, list[Figures]]:
    """Train each way with each seed below `out`; figures by way, in the order of the seeds.

    Args:
        config: a recipe.
        overrides: for every way.
        ways: what to change, once for each.
        seeds: of the recipe.
        out: folder for the runs.
        kind: of recipe.
        train: trains one into a folder, goes on if told to.

    Raises:
        CrisEdgeError: a way is no recipe, or a run broke down.
    """
    device = distributed.start()
    recipes = {
        (way, seed): read_recipe(config, [*overrides, *split_way(way), f"seed={seed}"], kind)
        for way in ways
        for seed in seeds
    }
    found: dict[str, list[Figures]] = {}
    for (way, seed), recipe in recipes.items():
        name = re.sub(r"[^\w.=+-]+", "-", way).strip("-") or "as-it-is"
        folder = out / name / f"seed-{seed}"
        train(recipe, folder, True, device)
        # The first process writes the log, later than the others end.
        read = partial(figures_of, folder) if world()[0] == 0 else Figures
        found.setdefault(way, []).append(gather_objects(agree(read))[0])
    return found


def table(found: dict[str, list[Figures]]) -> str:
    """A line for each way and source, in per cent; `more` is against the first way."""
    lines = [f"{'':<48}{'':<16}{'seeds':>6}{'mIoU':>7}{'+-':>6}{'more':>7}{'Pr@50':>7}"]
    first = next(iter(found.values()))
    for way, runs in found.items():
        for source in runs[0]:
            miou = [100 * run[source]["mIoU"] for run in runs]
            base = statistics.mean(100 * run[source]["mIoU"] for run in first)
            precision = statistics.mean(100 * run[source]["Pr@50"] for run in runs)
            spread = statistics.stdev(miou) if len(miou) > 1 else 0.0
            mean = statistics.mean(miou)
            lines.append(
                f"{way or AS_IT_IS:<47} {source:<16}{len(runs):>6}{mean:>7.1f}{spread:>6.1f}"
                f"{mean - base:>+7.1f}{precision:>7.1f}"
            )
    return "\n".join(lines)


EXAMPLE = """example:
  python -m training.compare --config training/configs/scenes.yaml --out runs/options \\
      --way "" --way "dice=0" --way "ema=0" --seeds 0 1 2 --set data=PHOTOS scenes=1440
"""


def parser(
    name: str, about: str | None, examples: str, ways: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The command line of a comparison.

    Args:
        name, about, examples: of the command, as `documented` takes them.
        ways: compared where none are given; None: they must be given.
    """
    arguments = documented(name, about, examples)
    add = arguments.add_argument
    add("--config", required=True, help="a recipe, see training/configs/")
    add("--out", type=Path, required=True, help="folder for the runs")
    add(
        "--way",
        action="append",
        required=ways is None,
        metavar="OVERRIDES",
        help='what to change, e.g. "ema=0 dice=0"; "" for nothing. The first is what others are '
        + ("compared with" if ways is None else f"compared with; default: {', '.join(ways)}"),
    )
    add("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="overrides for every way")
    return arguments


def compare(
    options: argparse.Namespace,
    kind: type[_Kind],
    train: Callable[[_Kind, Path, bool, torch.device], None],
) -> int:
    """Compare as told and print; one line on stderr and 2 where something is refused."""

    def run() -> None:
        found = train_ways(
            options.config, options.set, options.way, options.seeds, options.out, kind, train
        )
        if world()[0] > 0:
            return
        print(f"recipe     {options.config} {' '.join(options.set)}")
        print("\n".join(measured_by(torch=torch.__version__)))
        print("figures    last validation, per cent")
        print(table(found))

    try:
        return refusals(run)
    finally:
        distributed.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("training.compare", __doc__, EXAMPLE).parse_args(argv)
    return compare(options, Recipe, train)


if __name__ == "__main__":
    sys.exit(main())
