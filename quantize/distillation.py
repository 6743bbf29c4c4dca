"""A student with its teacher: the losses of the labels, and of what the teacher shows."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize import lessons
from quantize.recipe import DistillRecipe
from training.model import CRIS
from training.model.decoder import DecoderLayer
from training.objective import Batch, Objective

TEACHER = "teacher"
"""Whose ids a batch has as `teacher_tokens`."""


class Distillation(Objective):
    """The recipe's losses and the teacher's lessons. The teacher stays as it is."""

    recipe: DistillRecipe

    def __init__(self, model: CRIS, recipe: DistillRecipe, teacher: CRIS):
        """Put a student beside its teacher.

        Args:
            model: the student.
            recipe: with the weights of the lessons.
            teacher: in evaluation mode, on the device of the training.
        """
        super().__init__(model, recipe)
        # Hidden from torch: no parameter of this module, in no state, exchanged with nobody.
        self._teacher = (teacher.requires_grad_(False),)
        self.adapters = nn.ModuleDict()
        if recipe.features:
            mine, taught = channels(model), channels(teacher)
            self.adapters.update({name: nn.Conv2d(mine[name], taught[name], 1) for name in mine})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a batch by name, weighted.

        Args:
            batch: as the labels' losses want it, and `teacher_tokens` (N, M).
        """
        model, (teacher,) = self.model, self._teacher
        with self.autocast(batch):
            mine = model.stages(self.image(batch, model), batch["tokens"])
            with torch.no_grad():
                seen = seen_by(teacher, self.image(batch, teacher))
                taught = teacher.stages(seen, batch[f"{TEACHER}_tokens"])
            named = None
            if self.nouns is not None:
                _, nouns, _ = model.encode_text(batch["nouns"])
                named = self.nouns(mine["c4"], mine["c5"], nouns).float()
            adapted = {name: adapter(mine[name]) for name, adapter in self.adapters.items()}
        logits = mine["logits"][:, 0].float()
        found = self._losses(batch, logits, named)
        recipe = self.recipe
        if recipe.soft_masks:
            valid = (~batch["ignore"]).float()
            valid = valid.repeat_interleave(len(logits) // len(valid), dim=0)
            soft = taught["logits"][:, 0].float()
            lesson = lessons.soft_masks(logits, soft, valid, recipe.temperature)
            found["soft_masks"] = recipe.soft_masks * lesson
        if recipe.relations:
            known = lessons.same_words(batch["tokens"], batch[f"{TEACHER}_tokens"])
            lesson = lessons.relations(
                relation_of(model, mine), relation_of(teacher, taught), known
            )
            found["relations"] = recipe.relations * lesson
        if recipe.features:
            lesson = torch.stack(
                [lessons.features(adapted[n].float(), taught[n].float()) for n in adapted]
            ).mean()
            found["features"] = recipe.features * lesson
        return found


def channels(model: CRIS) -> dict[str, int]:
    """Stages whose features are learnt, with their channels."""
    return {"c5": model.image_encoder.channels[2], "decoder": model.config.decoder_width}


def seen_by(teacher: CRIS, image: Tensor) -> Tensor:
    """A student's input at the teacher's size.

    The padding keeps the student's colour, and a larger input is no sharper than the student's: a
    teacher of the student's own size shows most.
    """
    side = teacher.config.input_size
    if image.shape[2] == side:
        return image
    return F.interpolate(image, (side, side), mode="bilinear", align_corners=False)


def relation_of(model: CRIS, stages: dict[str, Tensor]) -> Tensor:
    """Pixels of the decoder against what each word would add to them in its last layer."""
    last = cast("DecoderLayer", model.decoder.layers[-1])
    words = last.cross_attention.out_proj(stages["values"][:, -1].float())
    return lessons.relation(stages["decoder"].float(), words)
