"""`python -m training.words --config CONFIG --out FILE`: teach the phrase side, on text alone.

A student's text encoder starts at random. Here a sentence encoder, all-MiniLM-L6-v2, teaches it
what words mean and which mean the same: the phrases that the recipe trains on, the names of COCO's
categories, and the lines of the files given. FILE is a checkpoint of the whole model with the
recipe's tokenizer, and `training.train … start_from=FILE` goes on from it. Some phrases are not
taught but judged by, before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from training import checkpoint
from training.arguments import at_least, documented, file_to_write, refusals
from training.data.batches import TrainingData, build_data, encode, photo_phrases, photo_samples
from training.data.nouns import EVERY_NOUN
from training.data.prepared import open_references
from training.errors import RecipeError
from training.model import CRIS
from training.phrases import learn, read_phrases
from training.recipe import Recipe, read_recipe
from training.sentences import NAME, SentenceEncoder, open_encoder, read_words
from training.text_lesson import Lesson, Pupil, divide
from training.weights import build_model


def training_phrases(recipe: Recipe) -> list[str]:
    """What a recipe's training split may say, and the names of COCO's categories.

    Raises:
        RecipeError: its data have no phrases.
        DataError: they are not as they should be.
    """
    if recipe.kind == "scenes":
        raise RecipeError(
            "kind: scenes has no phrases that people say; words are taught for photos or references"
        )
    if recipe.kind == "photos":
        labelled, boxes = photo_samples(recipe)
        return list(photo_phrases(labelled + boxes))
    references = open_references(Path(recipe.data)).split("train")
    return [*(text for one in references for text in one.sentences), *EVERY_NOUN]


def teach_words(
    recipe: Recipe,
    data: TrainingData,
    texts: Iterable[str],
    encoder: SentenceEncoder,
    steps: int,
) -> tuple[CRIS, str, dict[str, str]]:
    """Teach the text encoder of a recipe's model.

    Args:
        recipe: of the model, and the seed.
        data: of the recipe: the tokenizer.
        texts: phrases.
        encoder: the teacher, on the device to train on.
        steps: of the optimiser.

    Returns:
        The model on the CPU in evaluation mode, a table of what was reached, and metadata.

    Raises:
        DataError: too few phrases.
        CheckpointError: the weights to start from cannot be had.
    """
    phrases = divide(texts, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, data)
    length = model.config.word_len
    reading = read_words(phrases.texts, data.tokenizer, length)
    taught = encoder.teach(phrases.texts, reading.words)
    tokens = encode(phrases.texts, data.tokenizer, length)
    pupil = Pupil(model, encoder.width).to(encoder.device).train()
    lesson = Lesson(pupil, phrases, tokens, reading.owners, taught)
    before = lesson.judge()
    losses = learn(pupil, lesson.batches(recipe.seed), lesson.loss, steps)
    after = lesson.judge()
    metadata = {
        "training_data": f"{len(phrases.taught)} phrases, taught by {NAME}",
        "phrases": str(len(phrases.taught)),
        "steps": str(steps),
        "loss": f"{losses[-1]:.4f}",
        "figures": json.dumps({name: value for name, (_, value) in after.items()}),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "torch": torch.__version__,
    }
    return model.cpu().eval(), table(before, after), metadata


def table(before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]]) -> str:
    """Figures of the phrases held out, before and after, a line each."""
    lines = [f"{'held out':<36}{'n':>7}{'before':>9}{'after':>9}"]
    for name, (count, value) in before.items():
        lines.append(f"{name:<36}{count:>7}{value:>9.3f}{after[name][1]:>9.3f}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """What `main` does, with errors left to it.

    Raises:
        CrisEdgeError: recipe, data or phrases are refused, or the teacher is not there.
        OSError: the checkpoint cannot be written.
    """
    recipe = read_recipe(options.config, options.overrides)
    texts = [text for path in options.phrases for text in read_phrases(path)]
    encoder = open_encoder(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    texts = training_phrases(recipe) + texts
    data = build_data(recipe)
    model, figures, metadata = teach_words(recipe, data, texts, encoder, options.steps)
    checkpoint.save(options.out, model, data.tokenizer, metadata)
    said = (f"{name}: {metadata[name]}" for name in ("training_data", "steps", "loss"))
    print("\n".join([*said, figures]))
    print(f"{options.out} is written: training.train … start_from={options.out}")


EXAMPLE = """examples:
  python -m training.words --config training/configs/cris_edge_s.yaml --phrases phrases.txt.gz \\
    --out runs/words.safetensors data=DATA
  python -m training.train --config training/configs/cris_edge_s.yaml --out runs/s data=DATA \\
    start_from=runs/words.safetensors

docs/training.md has what that gave.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.words", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("--config", required=True, help="a recipe, see training/configs/")
    add("--out", type=file_to_write, required=True, help="the checkpoint (.safetensors)")
    add("--phrases", type=Path, action="append", default=[], metavar="FILE",
        help="more phrases, one a line, gzipped or not; may be given several times")  # fmt: skip
    add("--steps", type=at_least(1), default=600, help="default: %(default)s")
    add("overrides", nargs="*", help="name=value, e.g. data=/photos")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_intermixed_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
