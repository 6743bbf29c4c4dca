"""`python -m training.evaluate MODEL --data DIR`: how well a checkpoint or a bundle segments.

MODEL is a checkpoint (.safetensors, run by torch) or a bundle (a folder or a zip, run by one of
the runtime's engines). Both go through the runtime's own preparation of photos and phrases and its
own way back, so the figures are of the masks that a user gets. Derived and written expressions are
reported apart. `--baselines` adds what blind guesses score on the same samples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cris_edge import Segmenter
from cris_edge.errors import CrisEdgeError
from cris_edge.files import whole_file
from training.baselines import (
    best_ellipse,
    fit_ellipse,
    score_ellipse,
    score_whole_photo,
    shuffled_phrases,
)
from training.data.samples import Sample, load_sources
from training.evaluation import Evaluation, Pair, Record, evaluate_pairs, evaluate_samples
from training.metrics import Scores
from training.predictor import open_segmenter
from training.report import Baselines, Part, Report
from training.sheet import draw_sheet

__all__ = ["Evaluation", "Record", "evaluate", "evaluate_samples"]


def evaluate(
    segmenter: Segmenter,
    data: Path,
    split: Literal["train", "val"] = "val",
    *,
    limit: int | None = None,
    baselines: bool = False,
    progress: bool = True,
) -> list[Part]:
    """Evaluate on every source of expressions that the split has, in one pass over the photos.

    Args:
        segmenter: what predicts.
        data: folder as `training.data.samples.load_samples` reads it.
        split: `train` or `val`.
        limit: at most so many samples of each source, spread evenly; None for all.
        baselines: predict shuffled phrases too, and fit ellipses to these samples and to those of
            the training split.
        progress: show a bar.

    Raises:
        DataError: the data are missing or not as they should be, or too few.
    """
    samples = {s: _spread(found, limit) for s, found in load_sources(data, split).items()}
    pairs: dict[str, list[Pair]] = {}
    for source, chosen in samples.items():
        pairs[source] = [(sample, sample.text) for sample in chosen]
        if baselines:
            pairs[source] += zip(chosen, shuffled_phrases(chosen), strict=True)
    everything = [pair for of_source in pairs.values() for pair in of_source]
    records = iter(evaluate_pairs(segmenter, everything, progress))
    parts: list[Part] = []
    training = load_sources(data, "train") if baselines else {}
    for source, chosen in samples.items():
        evaluation = Evaluation(tuple(next(records) for _ in chosen))
        blind = None
        if baselines:
            shuffled = Scores.of(next(records).overlap for _ in chosen)
            # Where the training split lacks this source, its other one has objects too.
            known = training.get(source) or next(iter(training.values()))
            blind = _baselines(chosen, known, shuffled)
        parts.append(Part(source, evaluation, blind))
    return parts


def _spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, limit).round().astype(int)]


def _baselines(
    samples: Sequence[Sample], training: Sequence[Sample], shuffled: Scores
) -> Baselines:
    learned = best_ellipse(training)
    fitted, best = fit_ellipse(samples)
    return Baselines(
        training_ellipse=learned,
        training=score_ellipse(samples, learned),
        fitted_ellipse=fitted,
        fitted=best,
        shuffled=shuffled,
        whole_photo=score_whole_photo(samples),
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print, and write what was asked for."""
    segmenter = open_segmenter(arguments.model, arguments.engine, arguments.threads)
    parts = evaluate(
        segmenter,
        arguments.data,
        arguments.split,
        limit=arguments.limit,
        baselines=arguments.baselines,
    )
    report = Report(
        model=str(arguments.model),
        info=segmenter.info,
        data=str(arguments.data),
        split=arguments.split,
        threshold=segmenter.threshold,
        parts=parts,
    )
    print(report.text())
    if arguments.json:
        with whole_file(arguments.json) as file:
            file.write_text(report.json(), encoding="utf-8")
    if arguments.sheet:
        for path, part in zip(_sheet_paths(arguments.sheet, parts), parts, strict=True):
            draw_sheet(path, part.evaluation)
            print(f"\nsheet of overlays, {part.source} expressions: {path}")


def _sheet_paths(path: Path, parts: Sequence[Part]) -> list[Path]:
    """One sheet a source, `name-derived.png` and `name-written.png`."""
    return [path.with_name(f"{path.stem}-{part.source}.png") for part in parts]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {number}")
    return number


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=summary.partition(": ")[2], epilog=details
    )
    add = parser.add_argument
    add("model", type=Path, help="a checkpoint (.safetensors) or a bundle (folder or zip)")
    add("--data", type=Path, required=True, help="folder laid out as docs/data.md tells")
    add("--split", choices=("val", "train"), default="val", help="default: %(default)s")
    add("--baselines", action="store_true", help="add blind baselines on the same samples")
    add("--limit", type=_positive, help="at most so many samples of each source, spread evenly")
    add("--engine", default="auto", help="of a bundle: auto, onnxruntime, openvino")
    add("--threads", type=_positive, help="processor threads; default: the engine's choice")
    add("--json", type=Path, help="write figures, every sample, versions and machine there")
    add("--sheet", type=Path, help="write sheets of overlays there: NAME-derived.png, …")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    try:
        run(parse(argv))
    except CrisEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
