"""A sheet of overlays, to see what the figures mean: the worst samples and a random choice."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_edge.files import write_image
from training.evaluation import Evaluation, Record

_Picture = NDArray[np.uint8]
_Colour = tuple[int, int, int]

COLUMNS = 4
_PHOTO = 360, 270
_CAPTION = 76
_GAP = 18
_HEADING = 46
_LETTERS = 40
"""Letters of a line of the caption."""

# BGR.
_PAPER: _Colour = (250, 250, 250)
_INK: _Colour = (40, 40, 40)
_FAINT: _Colour = (130, 130, 130)
_MAT: _Colour = (228, 228, 228)
_PREDICTION: _Colour = (0, 110, 255)
_TRUTH: _Colour = (255, 255, 255)
_POOR: _Colour = (60, 60, 200)
_FAIR: _Colour = (30, 140, 215)
_GOOD: _Colour = (80, 150, 50)


def sheet_of(path: Path, source: str) -> Path:
    """Where a source's own sheet lies: of `sheet.png`, `sheet-refcoco-val.png`."""
    name = re.sub(r"[^\w+.-]+", "-", source)
    return path.with_name(f"{path.stem}-{name}{path.suffix}")


def draw_sheet(path: str | Path, evaluation: Evaluation, count: int = 8, seed: int = 0) -> None:
    """Write a picture with the `count` worst samples and `count` random ones, whole or not at all.

    The worst have the lowest IoU and, among equals, the largest object, or the largest mask where
    nothing is meant; one a photo. The same seed chooses the same random samples.
    """
    worst = worst_records(evaluation.records, count)
    chosen = random_records(evaluation.records, count, seed)
    shown = f"of {len(evaluation.records)} samples, mIoU {100 * evaluation.scores.miou:.1f}"
    sections = [
        _heading(f"The worst {len(worst)} {shown}", legend=True),
        *_rows(worst),
        _heading(f"{len(chosen)} at random (seed {seed})", legend=False),
        *_rows(chosen),
    ]
    write_image(path, np.vstack(sections))


def worst_records(records: Sequence[Record], count: int) -> list[Record]:
    """The lowest IoUs, the largest objects first among equals, at most one of each photo.

    Where nothing is meant, the mask that should not be counts as the object.
    """
    found: dict[Path, Record] = {}
    for record in sorted(records, key=lambda r: (r.iou, -(r.truth_share or r.coverage))):
        found.setdefault(record.sample.photo.path, record)
    return list(found.values())[:count]


def random_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """A choice without repetition, in the records' order; equal seeds choose equally."""
    rng = np.random.default_rng(seed)
    indices = rng.choice(len(records), min(count, len(records)), replace=False)
    return [records[index] for index in sorted(indices)]


def _rows(records: Sequence[Record]) -> Iterable[_Picture]:
    for start in range(0, len(records), COLUMNS):
        tiles = [_tile(record) for record in records[start : start + COLUMNS]]
        height = tiles[0].shape[0]
        while len(tiles) < COLUMNS:
            tiles.append(_blank(height, _PHOTO[0]))
        gap = _blank(height, _GAP)
        spaced = [gap, *(part for tile in tiles for part in (tile, gap))]
        yield np.hstack(spaced)


def _blank(height: int, width: int, colour: _Colour = _PAPER) -> _Picture:
    return np.full((height, width, 3), colour, np.uint8)


def _write(
    canvas: _Picture, text: str, at: tuple[int, int], colour: _Colour = _INK, size: float = 0.5
) -> None:
    # OpenCV's font has no letters beyond ASCII.
    plain = text.encode("ascii", "replace").decode("ascii")
    cv2.putText(canvas, plain, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _heading(text: str, legend: bool) -> _Picture:
    canvas = _blank(_HEADING, COLUMNS * (_PHOTO[0] + _GAP) + _GAP)
    _write(canvas, text, (_GAP, 30), size=0.65)
    if legend:
        x = canvas.shape[1] - 330
        for name, colour in (("prediction", _PREDICTION), ("truth", _TRUTH)):
            cv2.rectangle(canvas, (x, 16), (x + 26, 32), _INK, 3)
            cv2.rectangle(canvas, (x, 16), (x + 26, 32), colour, -1 if name != "truth" else 1)
            _write(canvas, name + (" (tint)" if name != "truth" else " (line)"), (x + 36, 29))
            x += 180
    return canvas


def _tile(record: Record) -> _Picture:
    """Photo, tint and outline above; phrase, IoU and kind below."""
    width, height = _PHOTO
    canvas = _blank(height + _CAPTION, width)
    canvas[:height] = _MAT
    picture = _overlay(record)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    good = _GOOD if record.iou > 0.5 else _FAIR if record.iou > 0.2 else _POOR
    cv2.rectangle(canvas, (0, height + 6), (66, height + 25), good, -1)
    _write(canvas, f"IoU {100 * record.iou:.0f}", (6, height + 20), _PAPER, 0.45)
    kind = f"{record.sample.kind}, {record.sample.instance.category}"
    _write(canvas, kind, (76, height + 20), _FAINT, 0.45)
    lines = textwrap.wrap(f'"{record.phrase}"', _LETTERS, max_lines=2, placeholder=" ...")
    for row, line in enumerate(lines):
        _write(canvas, line, (0, height + 44 + 20 * row), size=0.5)
    return canvas


def _overlay(record: Record) -> _Picture:
    """The photo at the tile's size with the prediction tinted and the truth outlined."""
    photo = record.sample.photo.read()
    scale = min(_PHOTO[0] / photo.shape[1], _PHOTO[1] / photo.shape[0])
    size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(photo, size, interpolation=shrink), np.uint8)
    predicted, truth = (_fit(m, size) for m in (record.mask(), record.sample.instance.mask()))
    inside = predicted > 0
    tinted = 0.5 * picture[inside] + 0.5 * np.array(_PREDICTION)
    picture[inside] = tinted.astype(np.uint8)
    _outline(picture, predicted, _PREDICTION, 1)
    _outline(picture, truth, (0, 0, 0), 3)
    _outline(picture, truth, _TRUTH, 1)
    return picture


def _fit(mask: NDArray[np.bool_], size: tuple[int, int]) -> _Picture:
    fitted = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(fitted, np.uint8)


def _outline(picture: _Picture, mask: _Picture, colour: _Colour, width: int) -> None:
    lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, lines, -1, colour, width, cv2.LINE_AA)
