"""`python -m quantize.report A B …`: what bundles are worth, side by side.

Every bundle is judged anew on the same samples and timed in turns on this machine. Masks are
compared with those of the first one. Results are a table, and if asked for JSON, a picture of
accuracy against latency, and the samples that lost most with every bundle's mask.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_edge.engines import CHOICES
from cris_edge.files import whole_file, write_image
from quantize.errors import QuantizeError
from quantize.figures import Figures, agreement, table
from quantize.speed import UNTIMED, race
from quantize.written import only_written, open_judged
from training.arguments import at_least, documented, file_to_write, image_to_write, refusals
from training.evaluate import evaluate
from training.evaluation import Record
from training.judged import VALIDATION, add_data, add_selection, data_of, splits_of
from training.report import VERSIONS, describe_machine, engine_in_words, measured_by, today
from training.selection import Data

Picture = NDArray[np.uint8]

WORST = 6
"""Samples in the picture."""
_TILE = 240, 180
_CAPTION, _GAP, _PLOT = 40, 12, 420
# BGR.
_PAPER, _INK, _TINT = (250, 250, 250), (40, 40, 40), (0, 110, 255)


def compare(
    bundles: Sequence[Path],
    data: Data,
    *,
    engine: str = "auto",
    threads: int | None = None,
    splits: Sequence[str] = VALIDATION,
    limit: int | None = None,
) -> dict[str, Figures]:
    """Judge and time bundles.

    Graphs for TensorRT that no TensorRT runs are judged as they are written, and not timed.

    Args:
        bundles: folders or zip files; the first is what the others are compared with.
        data: from `training.selection.open_data`, or made-up scenes.
        engine, threads: as `Segmenter` takes them.
        splits, limit: as `training.selection.select` takes them.

    Returns:
        The figures of each, by its path.

    Raises:
        QuantizeError: a bundle is named twice.
        BundleError, EngineError: of a bundle.
        DataError: of the data.
    """
    names = [str(path) for path in bundles]
    if len(set(names)) < len(names):
        raise QuantizeError(f"expected bundles that differ, got {', '.join(names)}")
    segmenters = [open_judged(path, engine, threads) for path in bundles]
    evaluations = [evaluate(one, data, splits, limit=limit) for one in segmenters]
    samples = evaluations[0][0].selection.samples
    timed = [one for one in segmenters if not only_written(one)]
    times = iter(race(timed, samples[0]))
    found = [{} if only_written(one) else next(times) for one in segmenters]
    sizes = [one.bundle.size for one in segmenters if one.bundle is not None]
    engines = [engine_in_words(one.info) for one in segmenters]
    figures = map(Figures, sizes, found, evaluations, engines)
    return dict(zip(names, figures, strict=True))


def as_json(figures: Mapping[str, Figures], about: Mapping[str, Any]) -> str:
    """Figures, machine and date as JSON; scores in [0, 1]."""
    first = next(iter(figures.values()))
    content = {
        **about,
        "date": today(),
        "machine": describe_machine(),
        "versions": VERSIONS,
        "bundles": {
            name: one.as_dict() | {"mask_agreement": agreement(first.parts, one.parts)}
            for name, one in figures.items()
        },
    }
    return json.dumps(content, indent=1) + "\n"


def draw(path: Path, figures: Mapping[str, Figures]) -> None:
    """Write a picture: mIoU against milliseconds, and below the samples that lost most.

    Bundles that were not timed have no place in the upper part. The samples are those in which any
    bundle's IoU is furthest below the first one's.

    Raises:
        InputError: the suffix is no image format, or the file cannot be written.
    """
    timed = {name: one for name, one in figures.items() if one.milliseconds}
    rows = [*([_plot(timed)] if timed else []), *_worst(figures)]
    width = max(row.shape[1] for row in rows)
    write_image(path, np.vstack([_widened(row, width) for row in rows]))


def _plot(figures: Mapping[str, Figures]) -> Picture:
    """A point for each bundle: mIoU of all parts' samples against the milliseconds of a pair."""
    canvas = _blank(_PLOT, 900)
    points = {name: (one.milliseconds["total"], 100 * _miou(one)) for name, one in figures.items()}
    xs, ys = zip(*points.values(), strict=True)
    right, low, high = 1.25 * max(xs), float(min(ys)) - 1, float(max(ys)) + 1
    left, top, bottom, end = 90, 40, _PLOT - 60, 860
    cv2.line(canvas, (left, bottom), (end, bottom), _INK, 1)
    cv2.line(canvas, (left, bottom), (left, top), _INK, 1)
    for share in (0.0, 0.5, 1.0):
        _write(
            canvas, f"{right * share:.1f}", (round(left + share * (end - left)) - 16, bottom + 18)
        )
        level = round(bottom - share * (bottom - top))
        _write(canvas, f"{low + share * (high - low):.1f}", (left - 50, level + 4))
    _write(canvas, "milliseconds of a new photo and phrase", (left + 250, bottom + 40))
    _write(canvas, "mIoU of all samples, per cent", (12, 24))
    for name, (x, y) in points.items():
        at = (
            round(left + (end - left) * x / right),
            round(bottom - (bottom - top) * (y - low) / (high - low)),
        )
        cv2.circle(canvas, at, 5, _TINT, -1, cv2.LINE_AA)
        _write(canvas, Path(name).name[-28:], (at[0] + 9, at[1] + 4))
    return canvas


def _miou(figures: Figures) -> float:
    return float(np.mean([r.iou for part in figures.parts for r in part.evaluation.records]))


def _worst(figures: Mapping[str, Figures]) -> list[Picture]:
    """A row for each of the samples that lost most: a tile for each bundle."""
    columns = [
        [record for part in one.parts for record in part.evaluation.records]
        for one in figures.values()
    ]
    lines = sorted(
        zip(*columns, strict=True), key=lambda line: min(r.iou for r in line) - line[0].iou
    )
    names = [Path(name).name for name in figures]
    return [
        np.hstack([_tile(name, record) for name, record in zip(names, line, strict=True)])
        for line in lines[:WORST]
    ]


def _tile(name: str, record: Record) -> Picture:
    """The photo with the mask tinted, and under it the bundle, IoU and phrase."""
    width, height = _TILE
    canvas = _blank(height + _CAPTION + _GAP, width + _GAP)
    photo = record.sample.photo.read()
    photo[record.mask()] = (0.5 * photo[record.mask()] + 0.5 * np.array(_TINT)).astype(np.uint8)
    scale = min(width / photo.shape[1], height / photo.shape[0])
    size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
    canvas[: size[1], : size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    _write(canvas, f"{name[-22:]}: IoU {100 * record.iou:.0f}", (2, height + 16))
    _write(canvas, record.phrase[:34], (2, height + 34))
    return canvas


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _widened(row: Picture, width: int) -> Picture:
    return np.hstack([row, _blank(row.shape[0], width - row.shape[1])])


def _write(canvas: Picture, text: str, at: tuple[int, int]) -> None:
    # OpenCV's font has no letters beyond ASCII.
    plain = text.encode("ascii", "replace").decode("ascii")
    cv2.putText(canvas, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


EXAMPLES = """examples:
  python -m quantize.report cris_edge/models/cris_edge_s bundles/s_int8 --data data \\
      --engine openvino --picture compared.png --json compared.json
  python -m quantize.report cris_edge/models/cris_edge_s bundles/s_int8 --scenes 20
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("quantize.report", __doc__, EXAMPLES)
    add, number = arguments.add_argument, at_least(1)
    add("bundles", type=Path, nargs="+", metavar="BUNDLE", help="a folder or zip; float first")
    add_data(arguments)
    add_selection(arguments, VALIDATION[0])
    add("--engine", default="auto", choices=CHOICES, help="default: %(default)s")
    add("--threads", type=number, help="processor threads; default: the engine's choice")
    add("--json", type=file_to_write, help="write the figures there")
    add("--picture", type=image_to_write, help="write the picture there (.png, .jpg)")
    return arguments


def run(options: argparse.Namespace) -> None:
    """Compare; print and write what is asked for."""
    data, splits = data_of(options), splits_of(options)
    figures = compare(
        options.bundles,
        data,
        engine=options.engine,
        threads=options.threads,
        splits=splits,
        limit=options.limit,
    )
    first = next(iter(figures.values()))
    print(table(figures))
    for name, one in list(figures.items())[1:]:
        same = agreement(first.parts, one.parts)
        print(f"{name}: masks as the first one's on {same:.2%} of pixels")
    for name, one in figures.items():
        if not one.milliseconds:
            print(f"{name}: judged by ONNX Runtime, not timed: {UNTIMED}")
    for engine in dict.fromkeys(one.engine for one in figures.values()):
        print(f"engine     {engine}")
    print(f"data       {data.name}, split {', '.join(splits)}")
    print("\n".join(measured_by()))
    print("Scores in per cent.")
    if options.json:
        about = {"data": data.name, "splits": list(splits), "limit": options.limit}
        with whole_file(options.json) as file:
            file.write_text(as_json(figures, about), encoding="utf-8")
    if options.picture:
        draw(options.picture, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
