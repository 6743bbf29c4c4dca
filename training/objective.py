"""A model with what it is taught: a batch in, the losses out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from training import losses
from training.autocast import Float32WhereFaster, autocast
from training.model import CRIS
from training.model.cris import each
from training.recipe import Recipe

Batch = dict[str, Tensor]

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Objective(nn.Module):
    """The losses of a recipe; what is wrapped for many processes, and compiled."""

    def __init__(self, model: CRIS, recipe: Recipe):
        super().__init__()
        self.model, self.recipe = model, recipe
        channels, width = model.image_encoder.channels, model.config.embed_dim
        self.nouns = losses.NounHead(channels, width) if recipe.naming else None

    def train(self, mode: bool = True) -> Objective:
        """Switch to training mode, but for statistics that the recipe freezes."""
        super().train(mode)
        if self.recipe.frozen_statistics:
            self.model.image_encoder.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a batch by name, weighted: their sum is what is minimised.

        Args:
            batch: as `training.data.batches.Batches` gives it.
        """
        with self.autocast(batch):
            logits, named = self._predict(batch)
        return self._losses(batch, logits[:, 0].float(), named)

    def autocast(self, batch: Batch) -> AbstractContextManager[Any]:
        """Products of matrices in the recipe's precision."""
        return autocast(batch["image"].device.type, AUTOCAST[self.recipe.precision])

    def image(self, batch: Batch, model: CRIS) -> Tensor:
        """A batch's frames as a model wants them, laid out as the recipe wants them."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return model.normalise(batch["image"]).contiguous(memory_format=layout)

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits of the phrases, and of the nouns where they are taught."""
        model = self.model
        c3, c4, c5 = model.encode_image(self.image(batch, model))
        photo = each(model.look(c3, c4, c5), len(batch["tokens"]))
        if self.nouns is None:
            return model.pair(*photo, *model.phrase(batch["tokens"])), None
        phrases = len(batch["tokens"])
        # Phrases and nouns share one pass through the text encoder.
        words, sentence, padding = model.encode_text(torch.cat([batch["tokens"], batch["nouns"]]))
        phrase = model.read(words[:phrases], sentence[:phrases], padding[:phrases])
        logits = model.pair(*photo, *phrase)
        return logits, self.nouns(c4, c5, sentence[phrases:]).float()

    def _losses(self, batch: Batch, logits: Tensor, named: Tensor | None) -> dict[str, Tensor]:
        recipe, masks, weight = self.recipe, batch["masks"], batch["weight"]
        photos = (len(batch["image"]), -1)
        valid = (~batch["ignore"]).float()
        said = valid.repeat_interleave(len(logits) // len(valid), dim=0)
        found = {"mask": (losses.cross_entropy(logits, masks, said) * weight).mean()}
        if recipe.dice:
            found["dice"] = recipe.dice * (losses.dice(logits, masks, said) * weight).mean()
        if recipe.quiet:
            found["quiet"] = recipe.quiet * losses.quiet(logits, masks, said).mean()
        apart = batch["distinct"].unflatten(0, photos)
        trust = weight.unflatten(0, photos)
        groups = logits.unflatten(0, photos), masks.unflatten(0, photos), valid, apart, trust
        if recipe.which:
            found["which"] = recipe.which * losses.which(*groups)
        if recipe.referent:
            instances = batch["instance"].unflatten(0, photos)
            found["referent"] = recipe.referent * losses.referent(*groups, instances)
        if named is not None:
            found["naming"] = recipe.naming * losses.naming(named, batch["categories"])
        return found


def recompute(model: CRIS) -> None:
    """Gradient checkpointing: forget what the big parts computed, compute it again going back.

    A third more work for the memory of activations. Statistics of batch norm are taken once, not
    twice, so that a run is the same with and without.
    """
    for module in (
        *model.image_encoder.stages,
        *model.decoder.layers,
        model.projector.stride8,
        model.projector.stride4,
    ):
        module.forward = partial(_checkpointed, module, module.forward)


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *inputs: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _again(module, inputs[0].device.type)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _again(module: nn.Module, device: str) -> Iterator[None]:
    # torch brings its own autocast back, and knows nothing of what is beside it.
    amended = Float32WhereFaster() if device == "cpu" else nullcontext()
    with _untracked(module), amended:
        yield


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise as ever and keep their running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = cast("Tensor", norm.num_batches_tracked).clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
