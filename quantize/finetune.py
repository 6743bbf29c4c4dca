"""`python -m quantize.finetune --checkpoint C --config CONFIG`: fine-tune a model for INT8.

Where INT8 misses its budget after training, this trains a little more with all that INT8 rounds
rounded already. The model learns from the labels, and from itself in float: its masks, relations
and features. Weights stay float ones, which lose less when quantize.calibrate rounds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantize.distillation import TEACHER, Distillation
from quantize.recipe import DistillRecipe
from quantize.rounding import Rounding
from quantize.teachers import CheckpointTeacher, fingerprint
from training import checkpoint
from training.arguments import documented
from training.data.batches import TrainingData
from training.distributed import agree
from training.errors import CheckpointError, RecipeError
from training.model import CRIS
from training.objective import Batch
from training.recipe import Recipe, as_override
from training.train import launch, train
from training.trainer import Trainer

REFUSED = {"recompute": "false", "compile": "false", "texts": "null"}
"""Of a recipe, with what they must be. What torch computes again, or compiles, it computes without
rounding; and nothing is learnt from text alone."""


class Finetuning(Distillation):
    """The losses of a model that is rounded, beside its own float self."""

    def __init__(self, model: CRIS, recipe: DistillRecipe, teacher: CheckpointTeacher):
        """Round a model from now on, wherever it is used."""
        super().__init__(model, recipe, teacher)
        self.rounding = Rounding(model)

    def adapter(self, mine: int, taught: int) -> nn.Module:
        """Nothing: channels are the teacher's own."""
        return nn.Identity()

    def train(self, mode: bool = True) -> Finetuning:
        """Switch to training mode, but for batch norms, which are folded into weights at export."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss by name; ranges follow what the batch has."""
        model = self.model
        with self.autocast(batch):
            self.rounding.begin(lambda: model.stages(self.image(batch, model), batch["tokens"]))
        found = super().forward(batch)
        self.rounding.settle()
        return found


def finetune(recipe: DistillRecipe, out: Path, resume: bool, device: torch.device) -> None:
    """Train a rounded model to the recipe's last epoch.

    Args:
        recipe: with the checkpoint as `start_from`.
        out, resume, device: as `training.train.train` takes them.

    Raises:
        CrisEdgeError: checkpoint, recipe, data or state are not as they should be, or the run broke
            down.
        OSError: files cannot be written; the states before are whole.
    """
    if refused := [name for name in REFUSED if getattr(recipe, name)]:
        raise RecipeError(
            f"{', '.join(refused)}: not possible with a model that is rounded: give "
            + " ".join(f"{name}={REFUSED[name]}" for name in refused)
        )
    teacher, threshold = agree(lambda: open_float(recipe, device))

    def teach(model: CRIS, _: Recipe) -> Finetuning:
        return Finetuning(model, recipe, teacher)

    def start(_: Recipe, data: TrainingData, device: torch.device) -> Trainer:
        data.readers[TEACHER] = (teacher.tokenizer, teacher.word_len)
        trainer = Trainer(recipe, data, device, teach=teach)
        # Its masks are to stay what they were.
        trainer.threshold = threshold
        trainer.judged_as = "the model rounded as INT8"
        trainer.teacher = agree(lambda: fingerprint(str(recipe.start_from)))
        return trainer

    train(recipe, out, resume, device, start)


def open_float(recipe: DistillRecipe, device: torch.device) -> tuple[CheckpointTeacher, float]:
    """The model that a recipe starts from, which stays as it is, and where its masks end.

    Raises:
        CheckpointError: it is missing, damaged, of other sizes than the recipe's model, or has
            branches that export merges.
    """
    path = str(recipe.start_from)
    kept = checkpoint.load(path)
    # Its name decides nothing, and the number of its words comes with its tokenizer.
    if differing := recipe.config().differences(kept.model.config, ("name", "vocab_size")):
        raise CheckpointError(
            f"{path} is of other sizes than the recipe's model: {', '.join(differing)}. Give a "
            "recipe of its own sizes, or its model= and sizes="
        )
    if any(hasattr(module, "reparameterize") for module in kept.model.image_encoder.modules()):
        raise CheckpointError(
            f"{path}: its photo side has branches side by side, which export merges into one "
            "convolution and rounds as one: rounding each, as fine-tuning would, is another thing. "
            "Calibrate it as it is: python -m quantize.calibrate"
        )
    for name, tensor in kept.model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds what is no number: it cannot be rounded")
    return CheckpointTeacher(kept.model.to(device), kept.tokenizer), kept.threshold


EXAMPLE = """examples:
  python -m quantize.finetune --checkpoint runs/s/best.safetensors \\
    --config training/configs/int8_s.yaml --out runs/s_int8 data=DATA
  python -m quantize.calibrate --checkpoint runs/s_int8/best.safetensors --data DATA \\
    --target openvino --out bundles/s_int8

The mIoU in the run's log is that of the rounded model. docs/quantize.md tells what is rounded.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("quantize.finetune", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("--checkpoint", required=True, help="a trained model, .safetensors")
    add("--config", required=True, help="a recipe of its sizes: training/configs/int8_s.yaml")
    add("--out", type=Path, default=Path("runs/int8"), help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest state in OUT, if there is one")
    add("overrides", nargs="*", help="name=value, e.g. data=/photos learning_rate=1.0e-5")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_intermixed_args(argv)
    # It is its own teacher, whatever else a recipe names.
    own = [as_override(name, options.checkpoint) for name in ("start_from", "teacher")]
    return launch(options, [*options.overrides, *own], DistillRecipe, finetune)


if __name__ == "__main__":
    sys.exit(main())
