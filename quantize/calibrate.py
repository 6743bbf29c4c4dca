"""`python -m quantize.calibrate`: a float model's layers to INT8, as many as a budget allows.

The three graphs of a bundle are quantised after training, calibrated with photos and phrases of the
training split, and judged on those of the validation split. While the loss of mIoU exceeds the
budget, the most sensitive layers go back to float. What misses the budget, or is not faster than
the float bundle on this machine with the same engine, is not written unless it is forced. For
jetson speed is measured only where TensorRT and a GPU are, and decides nothing elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from cris_edge.bundle import GRAPHS
from quantize.candidate import TARGETS
from quantize.job import CALIBRATED_WITH, Job, calibrate
from training.arguments import at_least, documented, refusals
from training.judged import VALIDATION, add_data, add_selection, data_of, splits_of

EXAMPLES = """examples:
  # OpenVINO, at most one point of mIoU lost on the validation split
  python -m quantize.calibrate --bundle cris_edge/models/cris_edge_s --data data \\
      --target openvino --budget 1.0 --out bundles/s_int8

  # from a checkpoint, for ONNX Runtime, with a chart of what each layer does
  python -m quantize.calibrate --checkpoint runs/s/best.safetensors --data data \\
      --target onnx --out bundles/s_int8_onnx --sensitivity layers.png

  # from a checkpoint, for TensorRT on a Jetson
  python -m quantize.calibrate --checkpoint runs/s/best.safetensors --data data \\
      --target jetson --out bundles/s_int8_jetson

  # a first look: made-up scenes, few of them, and a bundle whatever comes of it
  python -m quantize.calibrate --bundle cris_edge/models/cris_edge_s --scenes 8 --samples 16 \\
      --target openvino --out /tmp/s_int8 --force

  # then
  python -m quantize.report cris_edge/models/cris_edge_s bundles/s_int8 --data data

A bundle that misses the budget or is not faster here is refused with status 2, and what was at
--out stays. docs/quantize.md tells what is quantised and how.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("quantize.calibrate", __doc__, EXAMPLES)
    add, number = arguments.add_argument, at_least(1)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, help="a float bundle of ONNX graphs (folder or zip)")
    what.add_argument("--checkpoint", type=Path, help="a .safetensors file of training.train")
    add_data(arguments)
    add_selection(arguments, VALIDATION[0])
    add("--target", choices=sorted(TARGETS), default="openvino", help="default: %(default)s")
    add("--out", type=Path, required=True, help="the bundle's folder; an older bundle is replaced")
    add(
        "--budget",
        type=float,
        default=1.0,
        help="points of mIoU that may be lost, of each part of the data (default: %(default)s)",
    )
    add(
        "--samples",
        type=at_least(2),
        default=CALIBRATED_WITH,
        help="of the training split, to calibrate with (default: %(default)s)",
    )
    add(
        "--graphs",
        nargs="+",
        choices=GRAPHS,
        default=GRAPHS,
        metavar="GRAPH",
        help=f"of {', '.join(GRAPHS)}: those that may have layers in INT8; default: all",
    )
    add("--threads", type=number, help="processor threads; default: the engine's choice")
    add(
        "--sensitivity",
        type=Path,
        metavar="CHART",
        help="quantise every layer alone, whatever the loss, and draw there what it does",
    )
    add("--zip", action="store_true", help="also write the bundle as one file, OUT.zip: smaller")
    add("--force", action="store_true", help="write the bundle in any case; it says why not")
    return arguments


def _job(options: argparse.Namespace) -> Job:
    return Job(
        out=options.out,
        data=data_of(options),
        bundle=options.bundle,
        checkpoint=options.checkpoint,
        target=options.target,
        budget=options.budget,
        samples=options.samples,
        splits=splits_of(options),
        limit=options.limit,
        threads=options.threads,
        chart=options.sensitivity,
        graphs=tuple(options.graphs),
        zip=options.zip,
        force=options.force,
    )


class _Terminated(SystemExit):
    """SIGTERM, with the status that a shell gives a process that it ended."""


@contextlib.contextmanager
def _clean_end() -> Iterator[None]:
    """Let SIGTERM end the block as an exception would, so that temporary folders go with it.

    A second one ends the process at once.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused, 143 on SIGTERM."""
    options = parser().parse_args(argv)
    try:
        with _clean_end():
            return refusals(lambda: calibrate(_job(options)))
    except _Terminated:
        print("quantize.calibrate: ended by SIGTERM", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
