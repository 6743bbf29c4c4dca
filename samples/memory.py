"""`python -m samples.memory`: does memory grow with the number of predictions?

Runs photos of changing sizes with new and known phrases, on kept photos and in streams. After the
first fifth, in which caches fill and engines take what they need, memory may grow by --bound MB;
the exit status is 1 when it grew by more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cris_edge import Segmenter
from cris_edge.engines import CHOICES
from cris_edge.errors import CrisEdgeError
from cris_edge.photo import Photo
from samples.bench.process import peak_memory
from training.arguments import at_least, documented

EXAMPLES = """example:
  python -m samples.memory --engine openvino --predictions 2000
"""
SIZES = ((96, 128), (128, 96), (120, 120), (64, 160))
SAME = "the man in the red shirt"
WARM = 5
"""One part in so many of the predictions is for caches to fill."""
LINES = 20


def resident() -> int:
    """Bytes that this process holds now; where the system does not say, the most it has held."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory()


def photos() -> Iterator[Photo]:
    """Photos of noise, each new."""
    random = np.random.default_rng(0)
    for height, width in itertools.cycle(SIZES):
        yield random.integers(0, 256, (height, width, 3), np.uint8)


def predictions(segmenter: Segmenter) -> Iterator[object]:
    """Masks without end, asked for in every way there is."""
    fresh = photos()
    for number in itertools.count():
        yield segmenter.predict(next(fresh), SAME).mask
        yield segmenter.predict(next(fresh), f"player {number} in the red shirt").mask
        kept = segmenter.encode(next(fresh))
        for phrase in (SAME, f"the {number} on the left"):
            yield segmenter.predict(kept, phrase).mask
        yield segmenter.predict(next(fresh), [SAME, f"bus {number}", f"{number} cats"])
        for result in segmenter.stream(itertools.islice(fresh, 4), SAME):
            yield result.mask


def with_progress(steps: range) -> tuple[Iterable[int], Callable[[str], None]]:
    """The steps with a bar where tqdm is installed, and what prints a line without tearing it."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps, print
    return tqdm(steps, "predictions", disable=None), tqdm.write


def watch(segmenter: Segmenter, total: int) -> int:
    """Predict, print memory every so often, and give the bytes it grew by after the warm-up."""
    results, warm, every = predictions(segmenter), max(1, total // WARM), max(1, total // LINES)
    base = top = 0
    steps, say = with_progress(range(1, total + 1))
    for done in steps:
        next(results)
        if done == warm:
            base = top = resident()
        if done % every == 0 or done == total:
            now = resident()
            # The end counts, not a peak between: what is given back did not leak.
            top = now if done >= warm else top
            say(f"{done:>8} predictions {now / 1e6:>9.1f} MB")
    return top - base


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("samples.memory", __doc__, EXAMPLES)
    add = arguments.add_argument
    add("--predictions", type=at_least(1), default=10_000, help="how many; default: %(default)s")
    add("--bound", type=float, default=32, help="MB that it may grow by; default: %(default)s")
    add("--bundle", help="a model; default: the one that ships")
    add("--engine", default="auto", choices=CHOICES)
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    try:
        segmenter = Segmenter(options.bundle, engine=options.engine)
        grown = watch(segmenter, options.predictions) / 1e6
    except CrisEdgeError as error:
        print(f"samples.memory: {error}", file=sys.stderr)
        return 2
    print(f"grew by {grown:.1f} MB after the warm-up, at most {options.bound:g} are allowed")
    return int(grown > options.bound)


if __name__ == "__main__":
    sys.exit(main())
