"""`python -m training.probe MODEL --data DIR`: does a model listen to its phrases?

MODEL is a checkpoint (.safetensors, run by torch) or a bundle (a folder or a zip, run by one of the
runtime's engines). DIR is a data folder, whose validation photos are predicted: each by its own
phrases, by the category alone, with left and right swapped, by phrases of other photos … A model
that hears but half of what is said has a fair mIoU too; here it is found out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_edge import Segmenter
from cris_edge.engines import CHOICES
from cris_edge.files import whole_file
from cris_edge.segmenter import Info
from training import checkpoint
from training.arguments import at_least, documented, file_to_write, image_to_write, refusals
from training.errors import DataError
from training.evaluation import Evaluation
from training.hearing import FULL, SIDE, SWAPPED, WRONG, Hearing, listen
from training.model.cost import parameters
from training.predictor import open_segmenter
from training.probes import PROBES, Figure
from training.report import VERSIONS, describe_machine, provenance, today
from training.selection import FolderData, open_data
from training.sheet import draw_sheet, sheet_of


@dataclass(frozen=True)
class Report:
    """Everything that one run of `training.probe` found."""

    model: str
    info: Info
    data: str
    threshold: float
    figures: Mapping[str, Sequence[Figure]]
    """By the heading of their probe."""

    def text(self) -> str:
        """One table for a terminal."""
        info = self.info
        lines = [
            f"model      {self.model}: {info.model}, {info.precision}, {info.input_size} px",
            *provenance(info, self.data, ("val",), self.threshold),
            "mIoU, Pr@50 and shares in per cent, differences in points.",
            f"\n{'':<52}{'n':>7}{'value':>12}{'chance':>9}",
        ]
        for heading, figures in self.figures.items():
            lines += [heading, *map(_row, figures)]
        return "\n".join(lines)

    def json(self) -> str:
        """The same for machines; shares in [0, 1], differences in [-1, 1]."""
        content = {
            "model": self.model,
            "runtime": dataclasses.asdict(self.info),
            "data": self.data,
            "split": "val",
            "threshold": self.threshold,
            "date": today(),
            "machine": describe_machine(),
            "versions": VERSIONS,
            "probes": {
                heading: {figure.name: _figure_dict(figure) for figure in figures}
                for heading, figures in self.figures.items()
            },
        }
        return json.dumps(content, indent=1) + "\n"


def _row(figure: Figure) -> str:
    count = "" if figure.count is None else figure.count
    chance = "" if figure.chance is None else _said(figure.chance, figure.unit)
    value = _said(figure.value, figure.unit)
    return f"  {figure.name:<50}{count:>7}{value:>12}{chance:>9}".rstrip()


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "number":
        return f"{value:.3f}"
    return f"{100 * value:+.1f}" if unit == "difference" else f"{100 * value:.1f}"


def _figure_dict(figure: Figure) -> dict[str, Any]:
    found = {"n": figure.count, "value": figure.value, "chance": figure.chance}
    return found | {"unit": figure.unit}


def size_of(path: Path, segmenter: Segmenter) -> list[Figure]:
    """Parameters of a model, and bytes of its files: of a bundle's, unpacked, or of a checkpoint.

    A bundle may not say how many parameters it has.
    """
    if segmenter.bundle:
        count, size = segmenter.bundle.about.get("parameters"), segmenter.bundle.size
    else:
        count, size = parameters(checkpoint.load(path).model), path.stat().st_size
    return [
        Figure("parameters", None, count, unit="count"),
        Figure("bytes", None, size, unit="count"),
    ]


def draw_sheets(path: Path, hearing: Hearing) -> list[Path]:
    """Write a sheet for each phrasing of what says left or right; none where nothing does.

    It is of written expressions, or of derived ones where there are no others.

    Each shows the worst samples by that phrasing, and the same random ones as the other sheets.
    """
    sheets: list[Path] = []
    among = [h for h in hearing.written or hearing.derived if WRONG in h.records]
    for phrasing in (FULL, SWAPPED, SIDE, WRONG) if among else ():
        sheets.append(sheet_of(path, phrasing))
        draw_sheet(sheets[-1], Evaluation(tuple(heard.records[phrasing] for heard in among)))
    return sheets


def run(options: argparse.Namespace) -> None:
    """Probe, print, and write what was asked for.

    Raises:
        CrisEdgeError: the model or the data are missing or not as they should be.
    """
    segmenter = open_segmenter(options.model, options.engine, options.threads)
    data = open_data(options.data)
    if not isinstance(data, FolderData):
        raise DataError(
            f"expected a data folder, which tells every object of its photos; {options.data} is "
            "a prepared set: python -m training.evaluate is for that"
        )
    hearing = listen(segmenter, data)
    figures = {heading: probe(hearing) for heading, probe in PROBES.items()}
    figures["Size"] = size_of(options.model, segmenter)
    report = Report(str(options.model), segmenter.info, data.name, segmenter.threshold, figures)
    print(report.text())
    if options.json:
        with whole_file(options.json) as file:
            file.write_text(report.json(), encoding="utf-8")
    if options.sheet:
        for sheet in draw_sheets(options.sheet, hearing):
            print(f"\nsheet of overlays: {sheet}")


EXAMPLE = """examples:
  python -m training.probe runs/s/best.safetensors --data data
  python -m training.probe bundles/s --data data --engine openvino --json probe.json

docs/evaluation.md tells what the figures mean.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.probe", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("model", type=Path, help="a checkpoint (.safetensors) or a bundle (folder or zip)")
    add("--data", type=Path, required=True, help="a data folder: docs/data.md")
    add("--engine", default="auto", choices=CHOICES, help="of a bundle")
    add("--threads", type=at_least(1), help="processor threads; default: the engine's choice")
    add("--json", type=file_to_write, help="write figures, versions and machine there")
    add(
        "--sheet",
        type=image_to_write,
        help="write sheets of what says left or right there: NAME-left-and-right-swapped.png, …",
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
