"""`python -m training.benchmark --config CONFIG data=DIR`: how fast training is.

Trains a few steps for real, from the recipe's data, in several ways one after the other in the same
process, and prints for each: photos a second, the share of time that steps wait for photos, peak
memory, and how much of the machine's matrix rate, measured just before, the model's own arithmetic
makes use of. The weights are random and nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from training import distributed
from training.arguments import at_least, documented, refusals, split_way
from training.data.batches import build_data
from training.model.cost import multiply_adds
from training.objective import AUTOCAST
from training.pace import Pace
from training.recipe import Recipe, read_recipe
from training.report import describe_machine, today
from training.run_log import peak_memory
from training.trainer import Trainer

PLAIN = "compile=false channels_last=false"
FAST = "precision=bfloat16 compile=true channels_last=true"


@dataclass(frozen=True)
class Measured:
    """One way of training."""

    way: str
    photos_per_second: float
    milliseconds: float
    """Of a step."""
    waiting: float
    """Share of time in which a step waits for photos."""
    memory_gib: float
    """Peak: of the GPU, or of the process so far."""
    teraflops: float
    """The model's own floating-point operations a second, whatever is computed besides."""
    peak_teraflops: float
    """Of products of large matrices in the same precision."""

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation (arXiv 2204.02311, appendix B), of the measured rate."""
        return self.teraflops / self.peak_teraflops


def flops_of_step(recipe: Recipe) -> float:
    """Floating-point operations of a step: two a multiply-add, three passes (one on, two back)."""
    costs = multiply_adds(recipe.config())
    each = costs["phrase"] + costs["pair"]
    return 2 * 3 * recipe.photos * (costs["photo"] + recipe.phrases * each)


def matrix_rate(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """Teraflops of products of square matrices (8192 a side on a GPU, 1536 on a CPU)."""
    side = 8192 if device.type == "cuda" else 1536
    matrix = torch.randn(side, side, device=device, dtype=AUTOCAST[precision] or torch.float32)

    def run(count: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            matrix @ matrix
        _wait(device)
        return time.perf_counter() - start

    count = max(3, round(seconds / (run(3) / 3)))
    return 2 * side**3 * count / run(count) / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(recipe: Recipe, way: str, device: torch.device, warm: int, steps: int) -> Measured:
    """Train `warm` steps, then `steps` more against the clock.

    Raises:
        CrisEdgeError: the recipe or its data are not as they should be.
    """
    peak = matrix_rate(device, recipe.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    data = build_data(recipe)
    epochs = math.ceil((warm + steps) / data.steps(recipe))
    trainer = Trainer(replace(recipe, epochs=epochs), data, device)
    batches = trainer.batches()
    for _ in tqdm(range(warm), f"{way}: warming up", leave=False):
        trainer.learn(next(batches))
    pace = Pace(recipe.photos)
    timed = pace.waiting_for(batches)
    for _ in tqdm(range(steps), way, leave=False):
        trainer.learn(next(timed))
    _wait(device)
    found = pace.so_far()
    rate = found["photos_per_second"]
    return Measured(
        way=way,
        photos_per_second=rate,
        milliseconds=1000 * recipe.photos / rate,
        waiting=found["waiting"],
        memory_gib=peak_memory(device),
        teraflops=flops_of_step(recipe) * rate / recipe.photos / 1e12,
        peak_teraflops=peak,
    )


HEADER = (
    f"{'':<58}{'photos/s':>9}{'ratio':>7}{'ms/step':>9}{'waiting':>9}{'GiB':>7}"
    f"{'TFLOP/s':>9}{'of peak':>9}"
)


def row(one: Measured, first: Measured) -> str:
    """A way's line of the table; the ratio is to the first way."""
    ratio = one.photos_per_second / first.photos_per_second
    return (
        f"{one.way:<58}{one.photos_per_second:>9.2f}{ratio:>7.2f}{one.milliseconds:>9.1f}"
        f"{one.waiting:>9.1%}{one.memory_gib:>7.2f}{one.teraflops:>9.2f}{one.utilisation:>9.1%}"
    )


EXAMPLES = """examples:
  python -m training.benchmark --config training/configs/refcoco_r50.yaml \\
      data=data/prepared/refcoco workers=16

  # without any data set, on a processor
  python -m training.benchmark --config training/configs/scenes.yaml data=samples/photos photos=8 \\
      --way "" --way precision=bfloat16 --warm 1 --steps 4
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.benchmark", __doc__, EXAMPLES)
    add = arguments.add_argument
    add("--config", required=True, help="a recipe, see training/configs/")
    add(
        "--way",
        action="append",
        metavar="OVERRIDES",
        help=f'how to train, once or more often; default: "{PLAIN}", then "{FAST}"',
    )
    add(
        "--warm",
        type=at_least(1),
        default=10,
        help="steps before the clock starts; default: %(default)s",
    )
    add("--steps", type=at_least(1), default=30, help="steps on the clock; default: %(default)s")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("overrides", nargs="*", help="name=value, for every way")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Measure each way and print it at once: the next one may take minutes to compile."""
    device = distributed.start()
    machine = describe_machine()
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    found: list[Measured] = []
    for way in arguments.way or [PLAIN, FAST]:
        overrides = ["pretrained=null", *arguments.overrides, *split_way(way)]
        recipe = read_recipe(arguments.config, overrides)
        found.append(measure(recipe, way, device, arguments.warm, arguments.steps))
        if not arguments.json:
            if len(found) == 1:
                facts = {"date": today(), "batch": recipe.photos, "model": recipe.model}
                facts = machine | versions | facts
                print(", ".join(f"{name} {value}" for name, value in facts.items()))
                print(HEADER)
            print(row(found[-1], found[0]), flush=True)
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if arguments.json:
        facts = {"date": today(), "machine": machine, "versions": versions}
        ways = [asdict(one) | {"utilisation": one.utilisation} for one in found]
        print(json.dumps(facts | {"config": arguments.config, "ways": ways}, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_intermixed_args(argv)
    try:
        return refusals(lambda: run(options))
    finally:
        distributed.stop()


if __name__ == "__main__":
    sys.exit(main())
