"""`python -m quantize.distill --teacher T --config CONFIG`: train a student with a teacher.

Trains a student as `training.train` does, from the same recipes and into the same kind of folder,
and beside the labels from a teacher: a checkpoint of any size, full CRIS or a larger student, or a
bundle, of which the masks alone are learnt. With `texts=FILE` the phrase side learns from a
checkpoint by itself first, on text alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cris_edge.bundle import Bundle
from quantize.distillation import TEACHER, Distillation
from quantize.phrases import teach_phrases
from quantize.recipe import DistillRecipe
from quantize.teachers import (
    CheckpointTeacher,
    check_lessons,
    fingerprint,
    is_checkpoint,
    open_teacher,
)
from training import checkpoint
from training.arguments import documented
from training.data.batches import TrainingData
from training.distributed import agree
from training.errors import RecipeError
from training.model import CRIS
from training.phrases import read_phrases
from training.recipe import Recipe, as_override
from training.train import launch, states, train
from training.trainer import Trainer
from training.weights import build_model, told_of_all


def distil(recipe: DistillRecipe, out: Path, resume: bool, device: torch.device) -> None:
    """Train a student to the recipe's last epoch, with its teacher if it has one.

    Raises:
        CrisEdgeError: teacher, data, recipe or state are not as they should be, or the run broke
            down.
        OSError: files cannot be written; the states before are whole.
    """
    path = recipe.teacher
    if path is None:
        train(recipe, out, resume, device)
        return
    if not (recipe.soft_masks or recipe.relations or recipe.features or recipe.texts):
        raise RecipeError(
            "a teacher, and nothing to learn from it: soft_masks, relations and features are 0, "
            "and there are no texts"
        )
    teacher = agree(lambda: open_teacher(path, device))
    check_lessons(recipe, teacher)
    begun = resume and bool(states(out))

    def build(_: Recipe, data: TrainingData) -> CRIS:
        model = build_model(recipe, data)
        # A state that is gone on from has learnt its phrases already.
        if recipe.texts and not begun:
            # Others give no such lesson and were refused.
            assert isinstance(teacher, CheckpointTeacher)
            teach_phrases(
                model, data.tokenizer, teacher.model, teacher.tokenizer, read_phrases(recipe.texts),
                steps=recipe.text_steps, batch=recipe.text_batch, seed=recipe.seed,
            )  # fmt: skip
        return model

    def teach(model: CRIS, _: Recipe) -> Distillation:
        return Distillation(model, recipe, teacher)

    def start(_: Recipe, data: TrainingData, device: torch.device) -> Trainer:
        if not (recipe.soft_masks or recipe.relations or recipe.features):
            # Phrases alone: the teacher need not see the photos.
            trainer = Trainer(recipe, data, device, build=build)
        else:
            data.readers[TEACHER] = (teacher.tokenizer, teacher.word_len)
            trainer = Trainer(recipe, data, device, build=build, teach=teach)
        trainer.origin = taught(trainer.origin, path)
        trainer.teacher = agree(lambda: fingerprint(path))
        return trainer

    train(recipe, out, resume, device, start)


def taught(origin: dict[str, str], teacher: str) -> dict[str, str]:
    """What is told of a model's origin, with what its teacher had learned from.

    Args:
        origin: as `Trainer.origin`.
        teacher: a checkpoint or a bundle.

    Raises:
        CrisEdgeError: it is neither.
    """
    notes = checkpoint.notes(teacher) if is_checkpoint(teacher) else Bundle.open(teacher).about
    learned = notes.get("training_data", "what it does not tell")
    told = {"training_data": f"{origin['training_data']}; taught by a model of: {learned}"}
    return origin | told | told_of_all("licence", (origin, notes))


EXAMPLE = """examples:
  python -m quantize.distill --teacher runs/r50/best.safetensors \\
    --config training/configs/cris_edge_s.yaml --out runs/s data=DATA texts=phrases.txt.gz
  python -m quantize.distill --teacher runs/scenes/best.safetensors \\
    --config training/configs/scenes.yaml --out runs/small data=PHOTOS \\
    'sizes={input_size: 128, text_width: 64}'
  python -m quantize.distill --teacher bundles/r50 --config training/configs/cris_edge_s.yaml \\
    --out runs/s data=DATA relations=0 features=0

docs/distillation.md tells what is learnt, and from where.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("quantize.distill", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("--teacher", required=True, help="a checkpoint (.safetensors) or a bundle")
    add("--config", required=True, help="the student's recipe, see training/configs/")
    add("--student", metavar="MODEL", help="the student's sizes; default: as the recipe has it")
    add("--out", type=Path, default=Path("runs/distill"), help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest state in OUT, if there is one")
    add(
        "overrides",
        nargs="*",
        help="name=value, e.g. data=/photos soft_masks=0.5 (quantize/recipe.py has the names)",
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_intermixed_args(argv)
    student = [as_override("model", options.student)] if options.student else []
    overrides = [as_override("teacher", options.teacher), *student, *options.overrides]
    return launch(options, overrides, DistillRecipe, distil)


if __name__ == "__main__":
    sys.exit(main())
