"""A student with its teacher: the losses of the labels, and of what the teacher shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantize import lessons
from quantize.recipe import DistillRecipe
from quantize.teachers import Teacher, channels, relation_of
from training.model import CRIS
from training.objective import Batch, Objective

TEACHER = "teacher"
"""Whose ids a batch has as `teacher_tokens`."""


class Distillation(Objective):
    """The recipe's losses and the teacher's lessons. The teacher stays as it is."""

    recipe: DistillRecipe

    def __init__(self, model: CRIS, recipe: DistillRecipe, teacher: Teacher):
        """Put a student beside its teacher.

        Args:
            model: the student.
            recipe: with the weights of the lessons.
            teacher: shows enough for the lessons that have a weight.
        """
        super().__init__(model, recipe)
        self.teacher = teacher
        self.adapters = nn.ModuleDict()
        if recipe.features:
            mine, taught = channels(model), teacher.channels
            self.adapters.update({name: self.adapter(mine[name], taught[name]) for name in mine})

    def adapter(self, mine: int, taught: int) -> nn.Module:
        """What translates features of so many channels into the teacher's."""
        return nn.Conv2d(mine, taught, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a batch by name, weighted.

        Args:
            batch: as the labels' losses want it, and `teacher_tokens` (N, M).
        """
        model = self.model
        with self.autocast(batch):
            mine = model.stages(self.image(batch, model), batch["tokens"])
            taught = self.teacher.show(batch["image"], batch[f"{TEACHER}_tokens"])
            named = None
            if self.nouns is not None:
                _, nouns, _ = model.encode_text(batch["nouns"])
                named = self.nouns(mine["c4"], mine["c5"], nouns).float()
            adapted = {name: adapter(mine[name]) for name, adapter in self.adapters.items()}
        labels = self._losses(batch, mine["logits"][:, 0].float(), named)
        return labels | self._lessons(batch, mine, adapted, taught)

    def _lessons(
        self,
        batch: Batch,
        mine: dict[str, Tensor],
        adapted: dict[str, Tensor],
        taught: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        recipe, found = self.recipe, {}
        if recipe.soft_masks:
            logits, soft = mine["logits"][:, 0].float(), taught["logits"][:, 0].float()
            valid = (~batch["ignore"]).float()
            valid = valid.repeat_interleave(len(logits) // len(valid), dim=0)
            lesson = lessons.soft_masks(logits, soft, valid, recipe.temperature)
            found["soft_masks"] = recipe.soft_masks * lesson
        if recipe.relations:
            known = lessons.same_words(batch["tokens"], batch[f"{TEACHER}_tokens"])
            relation = relation_of(self.model, mine)
            lesson = lessons.relations(relation, taught["relation"], known)
            found["relations"] = recipe.relations * lesson
        if recipe.features:
            lesson = torch.stack(
                [lessons.features(adapted[n].float(), taught[n].float()) for n in adapted]
            ).mean()
            found["features"] = recipe.features * lesson
        return found
