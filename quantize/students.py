"""`python -m quantize.students`: all students and full CRIS with ResNet-50, in one table.

Every model is exported as ONNX with weights in float16 and timed on this machine by ONNX Runtime,
one model after the other. Weights are random, which changes neither size nor speed, unless a
checkpoint is given: the bundle made of it is then judged as training.evaluate judges bundles.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from cris_edge import Segmenter
from cris_edge.files import whole_file
from cris_edge.tokenizer import build as build_tokenizer
from export.build import Job, build
from quantize.figures import Figures
from quantize.speed import race
from training import checkpoint
from training.arguments import at_least, documented, file_to_write, refusals
from training.data.vocabulary import student_tokenizer
from training.errors import CheckpointError
from training.evaluate import evaluate
from training.judged import VALIDATION, add_data, add_selection, data_of, splits_of
from training.model import CRIS, CRISConfig
from training.model.config import MODELS, R50, STUDENTS
from training.model.cost import multiply_adds, parameters
from training.report import describe_machine, engine_in_words, today
from training.selection import Data, SceneData, select

NAMES = tuple(config.name for config in (*STUDENTS, R50))
ENGINE = "onnxruntime"
PHOTO = Path(__file__).parents[1] / "samples" / "photos" / "000000000599.jpg"
"""To compare exports on: whether they are right is asked elsewhere, of more photos."""


@dataclass(frozen=True)
class Judge:
    """What checkpoints are judged by, as `training.evaluate.evaluate` takes it."""

    data: Data
    splits: Sequence[str] = VALIDATION
    limit: int | None = None


@dataclass(frozen=True)
class Row:
    """What one model is worth."""

    config: CRISConfig
    checkpoint: Path | None
    """None: weights are random, and nothing was judged."""
    parameters: int
    multiply_adds: dict[str, int]
    """Of one photo with one phrase, by stage."""
    figures: Figures

    def as_dict(self) -> dict[str, Any]:
        """For machines; scores in [0, 1]."""
        return {
            "input_size": self.config.input_size,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            **self.figures.as_dict(),
        }


def measure(
    names: Sequence[str],
    threads: int,
    checkpoints: Mapping[str, Path] | None = None,
    judge: Judge | None = None,
) -> list[Row]:
    """Export, time, and where a checkpoint is given judge models.

    Args:
        names: of `NAMES`, in the order of the table.
        threads: of ONNX Runtime.
        checkpoints: files by the name of their model; others have random weights.
        judge: what the checkpoints are judged by; None where there is none.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or of another model than it is named.
        DataError: the data are not as they should be.
        ExportError: a model cannot be exported, or its export does not agree with torch.
    """
    checkpoints = checkpoints or {}
    for name, path in checkpoints.items():
        if (found := checkpoint.load(path).model.config.name) != name:
            raise CheckpointError(f"{path}: expected a checkpoint of {name}, this is of {found}")
    if judge is not None:
        # What is wrong with the data shows before anything is exported.
        select(judge.data, judge.splits, limit=judge.limit)
    return [_row(name, threads, checkpoints.get(name), judge) for name in names]


def _row(name: str, threads: int, given: Path | None, judge: Judge | None) -> Row:
    with tempfile.TemporaryDirectory(prefix="cris-edge-students-") as workspace:
        kept = given or write_random(name, Path(workspace) / f"{name}.safetensors")
        figures = _figures(kept, Path(workspace) / name, threads, judge if given else None)
        model = checkpoint.load(kept).model
    return Row(model.config, given, parameters(model), multiply_adds(model.config), figures)


def write_random(name: str, path: Path) -> Path:
    """Write a checkpoint with random weights, whose vocabulary is the beginning of CLIP's."""
    torch.manual_seed(0)
    config = MODELS[name]
    merges = config.vocab_size - build_tokenizer(()).vocab_size
    tokenizer = student_tokenizer((), merges)
    checkpoint.save(path, CRIS(config), tokenizer, {"training_data": "none, weights are random"})
    return path


def _figures(kept: Path, bundle: Path, threads: int, judge: Judge | None) -> Figures:
    build(Job(kept, bundle, precision="float16", photos=(PHOTO,)), say=_say)
    segmenter = Segmenter(bundle, engine=ENGINE, threads=threads)
    parts = evaluate(segmenter, judge.data, judge.splits, limit=judge.limit) if judge else []
    # One and the same photo and phrase for all models, judged or not.
    (scene,) = select(SceneData(1))
    (times,) = race([segmenter], scene.samples[0])
    assert segmenter.bundle is not None
    return Figures(segmenter.bundle.size, times, parts, engine_in_words(segmenter.info))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def table(rows: Sequence[Row]) -> str:
    """Models for people; accuracy in per cent, a column for each source of samples."""
    sources = list(dict.fromkeys(part.source for row in rows for part in row.figures.parts))
    columns = [f"mIoU {source}" for source in sources]
    lines = [
        f"{'':14}{'px':>5}{'M parameters':>14}{'G mult-adds':>13}{'MB':>9}{'ms':>9}"
        + "".join(f"  {column:>7}" for column in columns)
    ]
    for row in rows:
        scores = {part.source: part.evaluation.scores.miou for part in row.figures.parts}
        cells = [f"{100 * scores[s]:.1f}" if s in scores else "-" for s in sources]
        lines.append(
            f"{row.config.name:14}{row.config.input_size:>5}{row.parameters / 1e6:>14.2f}"
            f"{sum(row.multiply_adds.values()) / 1e9:>13.2f}{row.figures.size / 1e6:>9.2f}"
            f"{row.figures.milliseconds['total']:>9.2f}"
            + "".join(
                f"  {cell:>{max(7, len(column))}}"
                for cell, column in zip(cells, columns, strict=True)
            )
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Figures, machine and date as JSON; scores in [0, 1]."""
    content = {
        **about,
        "date": today(),
        "machine": describe_machine(),
        "models": {row.config.name: row.as_dict() for row in rows},
    }
    return json.dumps(content, indent=1) + "\n"


EXAMPLES = """examples:
  # sizes and speed of all, weights random; some minutes, most of them for full CRIS
  python -m quantize.students --threads 2

  # with the accuracy of two that are trained
  python -m quantize.students --checkpoint cris_edge_s=runs/s/best.safetensors \\
      --checkpoint cris_edge_xs=runs/xs/best.safetensors --data data --json students.json

  # a first look at one
  python -m quantize.students --models cris_edge_xs --limit 50 --data data \\
      --checkpoint cris_edge_xs=runs/xs/best.safetensors

MB is the bundle: graphs, tokenizer and description. ms is a new photo with a new phrase, the three
graphs' medians added up; a machine that does other work meanwhile shows it. docs/students.md tells
what the students are.
"""


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (equals and path) or name not in NAMES:
        raise argparse.ArgumentTypeError(
            f"expected NAME=FILE with one of {', '.join(NAMES)}, got {text!r}"
        )
    return name, Path(path)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("quantize.students", __doc__, EXAMPLES)
    add, number = arguments.add_argument, at_least(1)
    add("--models", nargs="+", choices=NAMES, default=NAMES, help="default: all", metavar="NAME")
    add(
        "--checkpoint",
        action="append",
        type=_named_file,
        default=[],
        metavar="NAME=FILE",
        help="weights of a model (.safetensors), to be judged; can be repeated",
    )
    add_data(arguments, required=False)
    add_selection(arguments, VALIDATION[0])
    add(
        "--threads",
        type=number,
        default=os.cpu_count() or 1,
        help="of ONNX Runtime; default: as many as there are cores",
    )
    add("--json", type=file_to_write, help="write the figures there")
    return arguments


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    arguments = parser()
    options = arguments.parse_args(argv)
    judged = bool(options.data or options.scenes)
    if judged != bool(options.checkpoint):
        arguments.error(
            "checkpoints are judged by data: give both --checkpoint and --data, or none"
        )
    if not judged and (options.split or options.limit or options.photos):
        arguments.error("--split, --limit and --photos are of what checkpoints are judged by")
    named = [name for name, _ in options.checkpoint]
    if len(set(named)) < len(named):
        arguments.error(f"--checkpoint: expected one a model, got {', '.join(named)}")
    if unused := [name for name in named if name not in options.models]:
        arguments.error(f"--checkpoint of {', '.join(unused)}, which --models leaves out")
    return options


def run(options: argparse.Namespace) -> None:
    """Measure; print and write what is asked for."""
    judge = None
    if options.checkpoint:
        judge = Judge(data_of(options), splits_of(options), options.limit)
    rows = measure(options.models, options.threads, dict(options.checkpoint), judge)
    print(table(rows))
    machine = "{processor}, {cores} cores, {system}".format(**describe_machine())
    print(
        f"ms: a new photo and phrase, {ENGINE} {onnxruntime.__version__}, threads: "
        f"{options.threads}; mIoU in per cent; {machine}; {today()}"
    )
    if options.json:
        about = {
            "engine": ENGINE,
            "engine_version": onnxruntime.__version__,
            "threads": options.threads,
        }
        if judge:
            about |= {"data": judge.data.name, "splits": list(judge.splits), "limit": judge.limit}
        with whole_file(options.json) as file:
            file.write_text(as_json(rows, about), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parse(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
