"""`python -m training.evaluate MODEL --data DIR`: how well a checkpoint or a bundle segments.

MODEL is a checkpoint (.safetensors, run by torch), a bundle (a folder or a zip, run by one of the
runtime's engines), or with --official a checkpoint of the CRIS authors' code. All go through the
runtime's own preparation of photos and phrases and its own way back, so the figures are of the
masks that a user gets. DIR is a data folder, or a reference set that training.prepare wrote. What
comes from different sources or splits is reported apart. Under torchrun several processes share
the photos; the first one reports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_edge import Segmenter
from cris_edge.engines import CHOICES
from cris_edge.engines.base import OFFERED
from cris_edge.errors import CrisEdgeError
from cris_edge.files import whole_file
from training.arguments import (
    at_least,
    documented,
    file_to_write,
    image_to_write,
    refusal,
)
from training.baselines import (
    Ellipse,
    best_ellipse,
    fit_ellipse,
    score_ellipse,
    score_nothing,
    score_whole_photo,
    shuffled_phrases,
)
from training.convert import SHORTEST
from training.data.references import Sentences
from training.data.samples import Sample
from training.distributed import agree, start, stop, world
from training.evaluation import Evaluation, Pair, evaluate_pairs
from training.judged import add_data, add_selection, data_of
from training.metrics import Scores
from training.predictor import open_official, open_segmenter
from training.report import Baselines, Part, Report
from training.selection import Data, Selection, select
from training.sheet import draw_sheet, sheet_of

PICKLES = (".pth", ".pt")
"""Endings of what torch.save wrote; our own checkpoints and bundles have others."""


def evaluate(
    segmenter: Segmenter,
    data: Data,
    splits: Sequence[str] = (),
    *,
    sentences: Sentences | None = None,
    limit: int | None = None,
    baselines: bool = False,
    progress: bool = True,
) -> list[Part]:
    """Evaluate on every selection of samples that is asked for, in one pass over the photos.

    Args:
        segmenter: what predicts.
        data: from `training.selection.open_data`.
        splits, sentences, limit: as `training.selection.select` takes them.
        baselines: predict shuffled phrases too, and fit ellipses to these samples and to those of
            the training split, if there is one.
        progress: show a bar.

    Raises:
        DataError: the data are missing or not as they should be, or too few.
    """
    selections = agree(lambda: select(data, splits, sentences, limit))
    learned = agree(lambda: _learn(data, selections)) if baselines else {}
    pairs: list[Pair] = []
    for selection in selections:
        pairs += [(sample, sample.text) for sample in selection.samples]
        if baselines:
            pairs += zip(selection.samples, shuffled_phrases(selection.samples), strict=True)
    records = iter(evaluate_pairs(segmenter, pairs, progress))
    parts: list[Part] = []
    for selection in selections:
        evaluation = Evaluation(tuple(next(records) for _ in selection.samples))
        blind = None
        if baselines:
            shuffled = Scores.of(next(records).overlap for _ in selection.samples)
            ellipse = learned.get(selection.name)
            blind = _baselines(selection.samples, ellipse, shuffled)
        parts.append(Part(selection, evaluation, blind))
    return parts


def _learn(data: Data, selections: Sequence[Selection]) -> dict[str, Ellipse]:
    """By selection, the ellipse that is best on its training samples, if there are any.

    Fitted once for all selections that share them.
    """
    fitted: dict[str, Ellipse] = {}
    learned: dict[str, Ellipse] = {}
    for selection in selections:
        if not (training := data.training(selection)):
            continue
        source = training[0].source
        if source not in fitted:
            fitted[source] = best_ellipse(training)
        learned[selection.name] = fitted[source]
    return learned


def _baselines(samples: Sequence[Sample], learned: Ellipse | None, shuffled: Scores) -> Baselines:
    fitted, best = fit_ellipse(samples)
    fit_something = all(sample.instance.objects for sample in samples)
    return Baselines(
        training_ellipse=learned,
        training=score_ellipse(samples, learned) if learned else None,
        fitted_ellipse=fitted,
        fitted=best,
        shuffled=shuffled,
        whole_photo=score_whole_photo(samples),
        nothing=None if fit_something else score_nothing(samples),
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate; in the first process, print and write what was asked for."""
    segmenter = agree(lambda: _open(arguments))
    if arguments.threshold is not None:
        segmenter.threshold = arguments.threshold
    data = agree(lambda: data_of(arguments))
    parts = evaluate(
        segmenter,
        data,
        arguments.split,
        sentences=arguments.sentences,
        limit=arguments.limit,
        baselines=arguments.baselines,
    )
    rank, _ = world()
    if rank > 0:
        return
    report = Report(
        model=str(arguments.model),
        info=segmenter.info,
        data=data.name,
        threshold=segmenter.threshold,
        parts=parts,
    )
    print(report.text())
    if arguments.json:
        with whole_file(arguments.json) as file:
            file.write_text(report.json(), encoding="utf-8")
    if arguments.sheet:
        for part in parts:
            path = sheet_of(arguments.sheet, part.source)
            draw_sheet(path, part.evaluation)
            print(f"\nsheet of overlays, {part.source} expressions: {path}")


def _open(arguments: argparse.Namespace) -> Segmenter:
    model, engine, threads = arguments.model, arguments.engine, arguments.threads
    if not arguments.official:
        return open_segmenter(model, engine, threads, arguments.precision)
    return open_official(
        model,
        word_len=arguments.word_len,
        decoder_heads=arguments.decoder_heads or 8,
        engine=engine,
        threads=threads,
    )


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {value:g}")
    return value


EXAMPLE = """examples:
  python -m training.evaluate runs/s/best.safetensors --data data --baselines
  python -m training.evaluate bundles/s --data data/prepared/refcoco --split val --split testA
  python -m training.evaluate best_model.pth --official --word-len 17 --data data/prepared/refcoco
  python -m training.evaluate runs/scenes/best.safetensors --scenes 100 --baselines
  torchrun --nproc-per-node 4 -m training.evaluate cris_r50.safetensors --data data/prepared/refcoco

docs/evaluation.md tells what the figures mean.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.evaluate", __doc__, EXAMPLE)
    add, number = arguments.add_argument, at_least(1)
    add("model", type=Path, help="a checkpoint (.safetensors) or a bundle (folder or zip)")
    add_data(arguments)
    add_selection(arguments, "val of a data folder, all but train of a reference set")
    add(
        "--sentences",
        choices=("first", "all"),
        help="of each reference; default: first on val, all on other splits",
    )
    add("--threshold", type=_probability, help="of the mask; default: the model's own")
    add("--baselines", action="store_true", help="add blind baselines on the same samples")
    add("--engine", default="auto", choices=CHOICES, help="of a bundle")
    add("--threads", type=number, help="processor threads; default: the engine's choice")
    add(
        "--precision",
        choices=OFFERED,
        help="of a bundle: to compute in, where the processor has it; default: the bundle's own",
    )
    add(
        "--json", type=file_to_write, help="write figures, every sample, versions and machine there"
    )
    add("--sheet", type=image_to_write, help="write sheets of overlays there: NAME-derived.png, …")
    official = arguments.add_argument_group("a checkpoint of the CRIS authors' code")
    add = official.add_argument
    add("--official", action="store_true", help="MODEL is one: best_model.pth")
    add(
        "--word-len",
        type=at_least(SHORTEST),
        help="ids of a phrase: 17 for RefCOCO and RefCOCO+, 22 for G-Ref",
    )
    add("--decoder-heads", type=number, help="of --official; default: 8, as published")
    return arguments


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.official and options.word_len is None:
        arguments.error(
            "--official needs --word-len, which the checkpoint does not tell: "
            "17 for RefCOCO and RefCOCO+, 22 for G-Ref"
        )
    if options.word_len is not None and not options.official:
        arguments.error("--word-len is for --official; other models know theirs")
    if options.decoder_heads is not None and not options.official:
        arguments.error("--decoder-heads is for --official; other models know theirs")
    if options.official and options.precision is not None:
        arguments.error("--precision is for bundles; a checkpoint runs in float32")
    if options.model.suffix in PICKLES and not options.official:
        arguments.error(
            f"{options.model}: add --official and --word-len for a checkpoint of the CRIS "
            "authors' code"
        )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    arguments = parse(argv)
    try:
        start()
        run(arguments)
    except (CrisEdgeError, OSError) as error:
        rank, _ = world()
        if rank == 0:
            print(refusal(error), file=sys.stderr)
        return 2
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
