"""The command `cris-edge`: `predict` segments a photo, `check` says what works here."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tokenizers

from cris_edge import __version__
from cris_edge.bundle import Bundle
from cris_edge.engines import CHOICES, ENGINES, installed, open_engine
from cris_edge.engines.base import OFFERED
from cris_edge.errors import CrisEdgeError, InputError
from cris_edge.files import check_image_name, write_image
from cris_edge.photo import as_photo
from cris_edge.segmentation import Segmentation, draw
from cris_edge.segmenter import SHIPPED, Segmenter

EXAMPLES = """examples:
  cris-edge predict street.jpg "the man in the red shirt" -o overlay.png
  cris-edge predict street.jpg "left bus" "the dog" --json
  cris-edge check
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 with one line on stderr."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is shown by its number, and nothing is lost for it.
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CrisEdgeError as error:
        # Engines tell of what failed in several lines.
        told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        print(f"cris-edge: {told}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk, or a reader that is gone: without this Python would complain of it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(
            f"cris-edge: the output cannot be written: {error.strerror or error}", file=sys.stderr
        )
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="cris-edge",
        description="Find in a photo what a phrase means, on this device.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cris-edge {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("predict", help="segment a photo by one phrase or several")
    one.add_argument("photo", type=Path, help="an image file")
    one.add_argument("phrases", nargs="+", metavar="phrase", help='such as "the man in red"')
    one.add_argument("-o", "--output", type=Path, help="where to write the overlay (.png, .jpg)")
    one.add_argument("--json", action="store_true", help="print the results as JSON")
    one.add_argument("--bundle", type=Path, help="a model; default: the one that is shipped")
    one.add_argument("--engine", default="auto", choices=CHOICES)
    one.add_argument("--threads", type=int, help="for one prediction; default: the engine's own")
    one.add_argument(
        "--precision",
        choices=OFFERED,
        help="faster but less exact, so that edges of masks may move, where the CPU has it "
        "(openvino); default: as the bundle says",
    )
    one.set_defaults(run=predict)
    two = commands.add_parser("check", help="engines found, versions, a test prediction")
    two.set_defaults(run=check)
    return top


def predict(options: argparse.Namespace) -> int:
    """`cris-edge predict`: a line or a JSON object for each phrase, and the overlay."""
    if options.output is not None:
        check_image_name(options.output)
    photo = as_photo(options.photo)
    taken = options.output is not None and options.output.exists()
    if taken and options.output.samefile(options.photo):
        raise InputError(f"{options.output}: is the photo itself; choose another --output")
    segmenter = Segmenter(options.bundle, options.engine, options.threads, options.precision)
    results, milliseconds = timed(segmenter, photo, options.phrases)
    if options.output is not None:
        write_image(options.output, draw(photo, results))
    if options.json:
        print(json.dumps([as_json(r, segmenter, milliseconds) for r in results], indent=1))
        return 0
    for result in results:
        print(line(result, segmenter, milliseconds))
    if options.output is not None:
        print(f"overlay: {options.output}")
    return 0


def timed(
    segmenter: Segmenter, photo: Any, phrases: Sequence[str]
) -> tuple[list[Segmentation], float]:
    """The results, and the milliseconds of a call after a first one that warms the engine up."""
    segmenter.predict(photo, phrases)
    begun = time.perf_counter()
    results = segmenter.predict(photo, phrases)
    return results, 1000 * (time.perf_counter() - begun)


def line(result: Segmentation, segmenter: Segmenter, milliseconds: float) -> str:
    """One result in words."""
    return (
        f'"{result.phrase}": {100 * result.coverage:.1f} % of the photo, '
        f"score {result.score:.2f}, {segmenter.info.engine}, {milliseconds:.0f} ms"
    )


def as_json(result: Segmentation, segmenter: Segmenter, milliseconds: float) -> dict[str, Any]:
    """One result for machines."""
    return {
        "phrase": result.phrase,
        "coverage": round(result.coverage, 4),
        "score": round(result.score, 4),
        "box": result.box,
        "engine": segmenter.info.engine,
        "milliseconds": round(milliseconds, 1),
    }


def check(options: argparse.Namespace) -> int:
    """`cris-edge check`: versions, engines, and a prediction with each that runs what ships."""
    del options
    print(f"cris-edge {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name, package in (("numpy", np), ("opencv", cv2), ("tokenizers", tokenizers)):
        print(f"  {name} {package.__version__}")
    found, works = installed(), 0
    for name in ENGINES:
        told = "not installed"
        if name in found:
            try:
                told = check_engine(name)
                works += 1
            except CrisEdgeError as error:
                told = f"fails: {error}"
        print(f"  {name}: {told}")
    if not works:
        print("no engine works: pip install 'cris-edge[onnxruntime]'", file=sys.stderr)
        return 2
    return 0


def check_engine(name: str) -> str:
    """Run the shipped model on a grey photo with one engine, if it is one that runs it.

    Raises:
        CrisEdgeError: the engine fails.
    """
    engine = open_engine(name)
    if reason := engine.unfit(Bundle.open(SHIPPED)):
        return f"{engine.version}, ready; {reason}"
    segmenter = Segmenter(engine=name)
    grey = np.full((480, 640, 3), 128, np.uint8)
    _, milliseconds = timed(segmenter, grey, ["the man in red"])
    info = segmenter.info
    return f"{info.engine_version}, runs {info.model} ({info.precision}) in {milliseconds:.0f} ms"
