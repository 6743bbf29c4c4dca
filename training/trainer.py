"""Model, optimiser and schedule of one run: steps, and the state that a run goes on from."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import checkpoint
from training.ahead import ahead
from training.allocator import keep_freed_memory
from training.batch_norm import synchronise
from training.data.batches import TrainingData
from training.distributed import agree, world
from training.errors import CheckpointError, DataError, RecipeError, TrainingError
from training.model import CRIS
from training.model.config import THRESHOLD
from training.objective import Batch, Objective, recompute
from training.optimiser import MovingAverage, build_optimiser
from training.recipe import BYSTANDERS, Recipe
from training.schedule import factor
from training.told import Told
from training.weights import build_model, origin

log = logging.getLogger(__name__)

SMALLEST_SCALE = 1.0
"""Below it a float16 loss is not scaled any more but broken."""


def _check_parts(recipe: Recipe) -> None:
    """Refuse a batch that cannot be shared by the processes, or whose parts are too small."""
    _, size = world()
    if recipe.photos % (size * recipe.accumulate):
        raise RecipeError(
            f"photos: a batch of {recipe.photos} cannot be shared by {size} processes in "
            f"{recipe.accumulate} parts each"
        )
    if size == 1 and recipe.photos // recipe.accumulate * recipe.phrases == 1:
        raise RecipeError(
            "photos: a part of one photo with one phrase has no spread, which batch norm "
            "divides by: take more photos, more phrases, or a smaller accumulate"
        )


class Trainer:
    """One process's part of a run."""

    epoch = 0
    """Epochs that are over."""
    step = 0
    """Steps that are over in all."""
    best = -1.0
    """Mean of the sources' mIoU of the best model so far, below 0 before there is one."""
    threshold = THRESHOLD
    """Where masks end when the model is judged, and in what is kept of it."""
    judged_as: str | None = None
    """What is judged, where it is not the very model that is kept."""
    teacher: str | None = None
    """Hash of the model that is learnt from; a run goes on with the same one alone."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        device: torch.device,
        *,
        build: Callable[[Recipe, TrainingData], CRIS] = build_model,
        teach: Callable[[CRIS, Recipe], Objective] = Objective,
    ):
        """Build what is trained.

        Args:
            recipe: what to train, and how.
            data: of the recipe.
            device: of this process.
            build: gives the model with the weights it starts from.
            teach: gives the model together with its losses.

        Raises:
            CheckpointError: the weights to start from cannot be had.
            RecipeError: the batch cannot be shared by the processes, or its parts are too small.
        """
        _check_parts(recipe)
        torch.manual_seed(recipe.seed)
        # Inputs have one size, for which the fastest convolutions are worth a search.
        torch.backends.cudnn.benchmark = True
        keep_freed_memory(device)
        self.recipe, self.data, self.device = recipe, data, device
        self.model = agree(lambda: build(recipe, data))
        self.origin = agree(lambda: origin(recipe, data))
        """What is told of all that the weights have learned from, by name."""
        self.objective = teach(self.model, recipe).to(device).train()
        if recipe.channels_last:
            self.objective.to(memory_format=torch.channels_last)
        self.average = MovingAverage(self.model, recipe.ema) if recipe.ema else None
        # From here on the model differs from its average, in how it computes and not in what.
        self.wrapped = self._wrap()
        self.optimiser = build_optimiser(self.objective, recipe, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.steps_per_epoch = data.steps(recipe)
        self.sums: dict[str, float] = {}
        """Losses added up over the epoch's steps so far."""
        self.copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.behind = device.type == "cuda"
        """Whether a step is heard of in the next one."""
        self.heard: dict[str, float] = {}
        """Losses of the last step that was heard of."""
        self._unheard: Told | None = None

    def _wrap(self) -> nn.Module:
        if not self.recipe.frozen_statistics:
            synchronise(self.model.image_encoder, self.device)
        for part in (self.model.neck, self.model.projector):
            synchronise(part, self.device)
        if self.recipe.recompute:
            recompute(self.model)
        if self.recipe.compile:
            # What normalises and adds up takes as long as the products: the fastest way is sought.
            self.objective.compile(options={"max_autotune_pointwise": True})
        if world()[1] == 1:
            return self.objective
        return DistributedDataParallel(self.objective, broadcast_buffers=False)

    @property
    def step_in_epoch(self) -> int:
        """Steps of this epoch that are over."""
        return self.step - self.epoch * self.steps_per_epoch

    def batches(self) -> Iterator[list[Batch]]:
        """What is left of the run: for each step the parts that this process takes of it.

        Raises:
            DataError: a photo cannot be read.
            RuntimeError: from torch, a process that loads photos died.
        """
        batches = self.data.batches(self.recipe, self.step)
        parts: list[Batch] = []
        try:
            for batch in ahead(iter(batches)):
                parts.append(batch)
                if len(parts) == self.recipe.accumulate:
                    yield parts
                    parts = []
        except DataError as error:
            # From a worker it comes with that process's traceback before it.
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.removeprefix(f"{DataError.__module__}.DataError: ")) from error

    def learn(self, parts: Sequence[Batch]) -> Told:
        """One step of the optimiser; the losses of the whole batch.

        On a GPU the step is under way then, and what the one before came to is heard of meanwhile:
        if each step were waited for, a GPU would stand still until the next one is on its way.

        Raises:
            TrainingError: losses or gradients are no numbers any more; on a CPU, where it is this
                step's, the weights are untouched.
        """
        # Of its own for each step, so that dropout after --resume is as if never stopped, and
        # another one in each process.
        rank, _ = world()
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * 4096 + rank)
        self.optimiser.zero_grad(set_to_none=True)
        found = [self._backward(part, last=part is parts[-1]) for part in parts]
        self.scaler.unscale_(self.optimiser)
        told = self._tell(found, self._clip())
        self.hear()
        self._unheard = told
        if not self.behind:
            self.hear()
        self._update()
        return told

    def _backward(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        """Add a part's gradients; processes exchange them after the last part alone."""
        batch = self._hand_over(batch)
        alone: AbstractContextManager[None] = nullcontext()
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            alone = self.wrapped.no_sync()
        with alone:
            losses: dict[str, Tensor] = self.wrapped(batch)
            total = torch.stack(list(losses.values())).sum() / self.recipe.accumulate
            self.scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _hand_over(self, batch: Batch) -> Batch:
        """A batch on the device; to a GPU it is copied beside what that computes."""
        with torch.cuda.stream(self.copying):
            moved = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        if self.copying is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.copying)
            for tensor in moved.values():
                tensor.record_stream(computing)
        return moved

    def _clip(self) -> Tensor:
        """Shorten the gradient where the recipe wants it; its norm before."""
        learning = [p for p in self.objective.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(cast("Tensor", p.grad) for p in learning)
        if self.recipe.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(learning, self.recipe.clip_norm, norm)
        return norm

    def _tell(self, found: Sequence[dict[str, Tensor]], norm: Tensor) -> Told:
        """Mean losses over the parts and the processes, which share equally, and the norm."""
        names = list(found[0])
        mean = torch.stack([torch.stack([part[n] for n in names]) for part in found]).mean(0)
        if world()[1] > 1:
            dist.all_reduce(mean)
            mean /= world()[1]
        return Told(self.step, names, mean, norm)

    def hear(self) -> None:
        """Look at what the last step came to, if nobody has yet.

        Raises:
            TrainingError: it came to what is no number.
        """
        if self._unheard is None:
            return
        told, self._unheard = self._unheard, None
        self.heard = dict(told)
        loss, norm = sum(self.heard.values()), told.norm
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._scaled_down()):
            raise TrainingError(
                f"the loss is {loss} and its gradient {norm} at step {told.step}. A lower "
                "learning_rate, clip_norm=1.0 or precision=float32 usually helps"
            )
        for name, value in self.heard.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _scaled_down(self) -> bool:
        """Whether a gradient that is no number is one of float16 that was scaled too much.

        They overflow now and then; the scaler then skips the step and halves its scale.
        """
        scale = self.scaler.get_scale()
        if self.behind:
            # Halved already since the step that is heard of.
            scale /= self.scaler.get_backoff_factor()
        return self.scaler.is_enabled() and scale > SMALLEST_SCALE

    def _update(self) -> None:
        """Let the optimiser take its step."""
        rate = factor(self.recipe, self.step, self.steps_per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    def end_epoch(self) -> dict[str, float]:
        """Go on to the next epoch; the mean losses of this one.

        Raises:
            TrainingError: the last step's are no numbers.
        """
        self.hear()
        means = {name: value / self.steps_per_epoch for name, value in self.sums.items()}
        self.epoch += 1
        self.sums = {}
        return means

    @property
    def judged(self) -> CRIS:
        """The model to judge and to keep, in evaluation mode: the moving average, if there is."""
        if self.average is None:
            return self.model.eval()
        return cast("CRIS", self.average.module).eval()

    def _helpers(self) -> dict[str, Tensor]:
        """What learns beside the model and is dropped in the end."""
        state = self.objective.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith("model.")}

    def save(self, path: Path) -> None:
        """Write the whole state, from which `load` goes on.

        Raises:
            TrainingError: the last step came to what is no number; nothing is written.
        """
        self.hear()
        extra = checkpoint.optimiser_tensors(self.optimiser)
        if self.average is not None:
            extra |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        extra |= {f"helpers.{k}": v for k, v in self._helpers().items()}
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "best": self.best,
            "data": self.data.mark,
            "judged": self.data.judged_mark,
            "teacher": self.teacher,
            "scaler": self.scaler.state_dict(),
        }
        metadata = {"recipe": json.dumps(dataclasses.asdict(self.recipe))}
        metadata["state"] = json.dumps(state)
        checkpoint.save(path, self.model, self.data.tokenizer, metadata, extra)

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            CheckpointError: it is damaged, or of another recipe, other data, another vocabulary or
                another teacher.
        """
        kept = checkpoint.load(path)
        check_recipe(path, kept.metadata.get("recipe", "{}"), self.recipe)
        state = json.loads(kept.metadata["state"])
        if state.get("data") != self.data.mark:
            raise CheckpointError(
                f"{path}: of other data than the {self.data.sources} that are there now; resume "
                "with the same photos and phrases, or choose another --out"
            )
        if kept.tokenizer.to_json() != self.data.tokenizer.to_json():
            raise CheckpointError(
                f"{path}: of another vocabulary than the run would start with now; has the file at "
                "start_from changed?"
            )
        if state.get("teacher") != self.teacher:
            raise CheckpointError(
                f"{path}: taught by another model than the teacher that is there now; resume with "
                "the same one, or choose another --out"
            )
        model = {f"model.{name}": tensor for name, tensor in kept.model.state_dict().items()}
        self.objective.load_state_dict(model | _part(kept.extra, "helpers."))
        if self.average is not None:
            self.average.load_state_dict(_part(kept.extra, "average."))
        checkpoint.restore_optimiser(self.optimiser, kept.extra)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.sums = state["sums"]
        if state.get("judged", self.data.judged_mark) != self.data.judged_mark:
            log.warning("%s: judged by other samples than now, so the best counts anew", path)
            self.best = -1.0
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def check_recipe(path: Path, kept: str, recipe: Recipe) -> None:
    """Refuse to go on with a recipe under which the run would not be the same."""
    before, now = json.loads(kept), dataclasses.asdict(recipe)
    names = sorted(before.keys() | now.keys())
    changed = [n for n in names if n not in BYSTANDERS and before.get(n) != now.get(n)]
    if changed:
        differences = ", ".join(f"{n}: {before.get(n)!r}, now {now.get(n)!r}" for n in changed)
        raise CheckpointError(
            f"{path}: of another recipe ({differences}); resume with the very same config and "
            "overrides, or choose another --out"
        )
