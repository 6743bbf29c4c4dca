"""`python -m samples.benchmark`: how fast the runtime is on this machine, and against what.

Every engine runs in a process of its own, and in another in bfloat16 where it can; all take turns,
so that what disturbs the machine for a while disturbs all of them. "Times faster" is the median of
the rounds' own ratios to plain CRIS where --reference is given, else to the first line, with as
many threads.

  both new       a new photo with a new phrase
  first eight    the very first call with eight phrases, for which an engine may compile anew
  new photo      a new photo with a phrase that was asked before
  new phrase     a new phrase on a photo that was kept (Segmenter.encode)
  eight phrases  eight new phrases on a new photo; "a phrase" is an eighth of it
  a frame in a stream / one by one   Segmenter.stream against calls of predict, the same phrase

--threads holds for the engine and for OpenCV and numpy around it. Memory is the most that the
process held. The exit status is 1 when a line failed; the others are measured all the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cris_edge.engines import installed
from cris_edge.errors import CrisEdgeError, InputError
from cris_edge.files import check_file_name, whole_file
from samples.bench import machine
from samples.bench.contender import Model, contenders, references, unreadable
from samples.bench.models import find_model
from samples.bench.rounds import Say, all_figures, run_rounds
from samples.bench.startup import startups
from samples.bench.table import report
from training.arguments import at_least, documented

EXAMPLES = """examples:
  # the model that ships, on every engine that is installed
  python -m samples.benchmark

  # against the authors' way in PyTorch and CLIPSeg, on one and two threads, also for machines
  python -m samples.benchmark --models cris_edge_s cris_r50 --reference --threads 1 2 \\
      --json speed.json

  # a first look
  python -m samples.benchmark --rounds 2 --repetitions 1
"""

SHIPPED = Model("the model that ships", None)


def measure(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """All figures of a run.

    Raises:
        InputError: a model that is none, or packages that are missing.
    """
    engines, notes, plain = installed(), [], []
    if not engines:
        raise InputError("no engine is installed: pip install 'cris-edge[onnxruntime]'")
    if options.reference:
        if importlib.util.find_spec("torch") is None:
            raise InputError("--reference needs torch: pip install 'cris-edge[export]'")
        clipseg = importlib.util.find_spec("transformers") is not None
        plain = references(options.threads, clipseg)
        if not clipseg:
            notes.append("CLIPSeg is left out: transformers is not installed ('cris-edge[bench]')")
    with tempfile.TemporaryDirectory(prefix="cris-edge-bench-") as workspace:
        models = [SHIPPED]
        if options.models:
            say(f"opening {', '.join(options.models)}")
            models = [find_model(given, Path(workspace)) for given in options.models]
        pairs = []
        for model, engine in itertools.product(models, engines):
            if reason := unreadable(model, engine):
                notes.append(f"{model.name} on {engine} is left out: {reason}")
            else:
                pairs.append((model, engine))
        all_of_them = contenders(pairs, options.threads) + plain
        entries = run_rounds(all_of_them, options.rounds, options.repetitions, say)
        say("fresh processes")
        reading = [engine for model, engine in pairs if model is models[0]]
        runtime = startups(models[0], reading, options.threads[-1], options.starts)
    return {
        "machine": machine.describe(),
        "notes": notes,
        "settings": {"rounds": options.rounds, "repetitions": options.repetitions},
        "contenders": all_figures(entries),
        "runtime": runtime,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("samples.benchmark", __doc__, EXAMPLES)
    add = arguments.add_argument
    add(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="bundles; or names such as cris_edge_s and cris_r50, which are exported with random "
        "weights for the run; default: the bundle that ships",
    )
    add(
        "--threads",
        nargs="+",
        type=at_least(1),
        default=[os.cpu_count() or 1],
        help="numbers of threads, each measured; default: as many as there are cores",
    )
    add(
        "--reference",
        action="store_true",
        help="also plain PyTorch running full CRIS R50, and CLIPSeg where transformers is there",
    )
    add("--rounds", type=at_least(1), default=10, help="turns of each; default: %(default)s")
    add("--repetitions", type=at_least(1), default=3, help="calls in a turn; default: %(default)s")
    add("--starts", type=at_least(1), default=5, help="fresh processes; default: %(default)s")
    add("--json", metavar="FILE", help="write the figures as JSON; - prints them, and no table")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 where something is refused, 1 where a line failed."""
    options = parser().parse_args(arguments)
    try:
        if options.json not in (None, "-"):
            check_file_name(options.json)
        found = measure(options, say=lambda line: print(line, file=sys.stderr))
        text = json.dumps(found, indent=1)
        if options.json == "-":
            print(text)
        else:
            print(report(found))
        if options.json not in (None, "-"):
            with whole_file(options.json) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    except (CrisEdgeError, OSError) as error:
        print(f"samples.benchmark: {error}", file=sys.stderr)
        return 2
    return int(any("error" in row for row in [*found["contenders"], *found["runtime"]]))


if __name__ == "__main__":
    sys.exit(main())
