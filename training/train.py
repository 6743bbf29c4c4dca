"""`python -m training.train --config training/configs/cris_edge_s.yaml data=DIR`: train a model.

Reads top to bottom: data, model, optimiser, then epochs. After each epoch the whole state is
written to `last.safetensors`; `--resume` goes on from there. The best model by validation is kept
in `best.safetensors`, figures in `log.jsonl`, and sheets of overlays in `sheet-*.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError
from training import checkpoint, losses
from training.data.batches import TrainingData, build_data
from training.errors import CheckpointError
from training.evaluate import Evaluation, evaluate_samples
from training.model import CRIS
from training.model.pretrained import load_clip, load_imagenet
from training.predictor import torch_segmenter
from training.recipe import Recipe, read_recipe
from training.sheet import draw_sheet

Batch = dict[str, Tensor]
Tensors = list[Tensor] | tuple[Tensor, ...]


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential moving average that forgets faster while it is young.

    After n steps it decays by (1 + n) / (10 + n) at most; else the random start would weigh on it
    for 1 / (1 - decay) steps and more.
    """

    def update(average: Tensors, current: Tensors, count: Tensor | int) -> None:
        young = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, young))(average, current, count)

    return update


class Trainer:
    """Model, optimiser and schedule of one run."""

    def __init__(self, recipe: Recipe, data: TrainingData, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.device = recipe, data, device
        config = dataclasses.replace(recipe.config(), vocab_size=data.tokenizer.vocab_size)
        self.model = CRIS(config)
        if recipe.pretrained == "imagenet":
            load_imagenet(self.model)
        else:
            load_clip(self.model, recipe.pretrained)
        self.nouns = losses.NounHead(self.model.image_encoder.channels, config.embed_dim)
        # Twice as fast on a CPU.
        self.model.to(memory_format=torch.channels_last).to(device)
        self.nouns.to(device)
        self.average = AveragedModel(
            self.model, multi_avg_fn=moving_average(recipe.ema), use_buffers=True
        )
        self.optimiser = torch.optim.AdamW(
            self.parameter_groups(), weight_decay=recipe.weight_decay
        )
        self.steps_per_epoch = len(data.loader(recipe, epoch=0))
        self.epoch = self.step = 0
        self.best = -1.0

    def parameter_groups(self) -> list[dict]:
        """The trained image encoder at a fraction of the rate; no decay for vectors and scalars."""
        rate = self.recipe.learning_rate
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        named = [*self.model.named_parameters(), *self.nouns.named_parameters()]
        for name, parameter in named:
            if parameter.requires_grad:
                scale = self.recipe.image_encoder_rate if name.startswith("image_encoder") else 1.0
                groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
        return [
            {"params": group, "base_lr": rate * scale} | ({} if decayed else {"weight_decay": 0.0})
            for (scale, decayed), group in groups.items()
        ]

    def set_learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to nothing at the last step."""
        total = self.steps_per_epoch * self.recipe.epochs
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.warmup_steps))
        factor = warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / total)))
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        return self.recipe.learning_rate * factor

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a batch by name, weighted, so that their sum is what is minimised."""
        recipe, model = self.recipe, self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            c3, c4, c5 = model.encode_image(batch["image"])
            phrases = len(batch["tokens"])
            # Phrases and nouns share one pass through the text encoder.
            words, sentence, padding = model.encode_text(
                torch.cat([batch["tokens"], batch["nouns"]])
            )
            count = phrases // len(batch["image"])
            c3s, c4s, c5s = (f.repeat_interleave(count, dim=0) for f in (c3, c4, c5))
            logits = model.decode(
                c3s, c4s, c5s, words[:phrases], sentence[:phrases], padding[:phrases]
            )
            named = self.nouns(c4, c5, sentence[phrases:])
        logits, masks = logits[:, 0].float(), batch["masks"]
        valid = (~batch["ignore"]).float()
        each = valid.repeat_interleave(count, dim=0)
        weight = batch["weight"]
        photos = (-1, count)
        return {
            "mask": (losses.cross_entropy(logits, masks, each) * weight).mean(),
            "dice": recipe.dice * (losses.dice(logits, masks, each) * weight).mean(),
            "which": recipe.which
            * losses.which(
                logits.unflatten(0, photos),
                masks.unflatten(0, photos),
                valid,
                batch["distinct"].unflatten(0, photos),
            ),
            "naming": recipe.naming * losses.naming(named.float(), batch["categories"]),
        }

    def train_epoch(self) -> dict[str, float]:
        """One pass over the data; mean losses."""
        # Of its own for each epoch, so that dropout after --resume is as if never stopped.
        torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)
        self.model.train()
        # The image encoder's running statistics stay ImageNet's: batches are too small for better.
        self.model.image_encoder.eval()
        loader = self.data.loader(self.recipe, self.epoch)
        sums: dict[str, float] = {}
        learned = [*self.model.parameters(), *self.nouns.parameters()]
        progress = tqdm(loader, desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}", mininterval=5)
        for batch in progress:
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            rate = self.set_learning_rate()
            parts = self.losses(batch)
            total = torch.stack(list(parts.values())).sum()
            self.optimiser.zero_grad(set_to_none=True)
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(learned, self.recipe.clip_norm)
            if not torch.isfinite(total + norm):
                raise CheckpointError(
                    f"the loss is {total.item()} and its gradient {norm.item()} at step "
                    f"{self.step}; the last whole state is in last.safetensors. A lower "
                    "learning_rate or bf16=false usually helps."
                )
            self.optimiser.step()
            self.average.update_parameters(self.model)
            self.step += 1
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item()
            progress.set_postfix(loss=f"{total.item():.3f}", rate=f"{rate:.1e}")
        self.epoch += 1
        return {name: value / len(loader) for name, value in sums.items()}

    @property
    def averaged(self) -> CRIS:
        """The model whose weights are the moving average, in evaluation mode."""
        return cast("CRIS", self.average.module).eval()

    def validate(self) -> dict[str, Evaluation]:
        """The averaged model on the validation photos; derived and written expressions apart."""
        segmenter = torch_segmenter(self.averaged, self.data.tokenizer)
        return {
            name: evaluate_samples(segmenter, samples)
            for name, samples in self.data.validation.items()
        }

    def save(self, path: Path) -> None:
        """Write the whole state, from which `load` goes on."""
        extra = {f"average.{k}": v for k, v in self.average.state_dict().items()}
        extra |= {f"nouns.{k}": v for k, v in self.nouns.state_dict().items()}
        extra |= checkpoint.optimiser_tensors(self.optimiser)
        state = {"epoch": self.epoch, "step": self.step, "best": self.best}
        metadata = {"recipe": json.dumps(dataclasses.asdict(self.recipe))}
        metadata["state"] = json.dumps(state)
        checkpoint.save(path, self.model, self.data.tokenizer, metadata, extra)

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            CheckpointError: it is of another recipe or another vocabulary.
        """
        kept = checkpoint.load(path)
        if json.loads(kept.metadata.get("recipe", "{}")) != dataclasses.asdict(self.recipe):
            raise CheckpointError(
                f"{path}: of another recipe; resume with the very same config and overrides, "
                "or choose another --out"
            )
        if kept.tokenizer.to_json() != self.data.tokenizer.to_json():
            raise CheckpointError(
                f"{path}: of another vocabulary; the phrases in the data folder have changed since"
            )
        self.model.load_state_dict(kept.model.state_dict())

        def part(prefix: str) -> dict[str, Tensor]:
            tensors = kept.extra.items()
            return {k.removeprefix(prefix): v for k, v in tensors if k.startswith(prefix)}

        self.average.load_state_dict(part("average."))
        self.nouns.load_state_dict(part("nouns."))
        checkpoint.restore_optimiser(self.optimiser, kept.extra)
        state = json.loads(kept.metadata["state"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]


def keep_best(trainer: Trainer, evaluations: dict[str, Evaluation], out: Path) -> None:
    """Write the averaged model as `best.safetensors` when it is the best by validation mIoU."""
    figures = {name: e.scores.miou for name, e in evaluations.items()}
    score = sum(figures.values()) / len(figures)
    if score <= trainer.best:
        return
    trainer.best = score
    metadata = {
        "training_data": trainer.data.sources,
        "accuracy": json.dumps(
            {"split": "val", "metric": "mIoU", "epoch": trainer.epoch} | figures
        ),
        "recipe": json.dumps(dataclasses.asdict(trainer.recipe)),
        "torch": torch.__version__,
    }
    checkpoint.save(out / "best.safetensors", trainer.averaged, trainer.data.tokenizer, metadata)


def append_line(path: Path, record: dict) -> None:
    """Add one JSON object as a line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def train(recipe: Recipe, out: Path, resume: bool) -> None:
    """Train to the recipe's last epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = build_data(recipe)
    trainer = Trainer(recipe, data, device)
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.safetensors"
    if resume:
        trainer.load(last)
    elif last.exists():
        raise CheckpointError(f"{out} holds a run already: give --resume, or another --out")
    while trainer.epoch < recipe.epochs:
        begun = time.perf_counter()
        record: dict = {"losses": trainer.train_epoch()}
        record |= {"epoch": trainer.epoch, "seconds": round(time.perf_counter() - begun, 1)}
        if trainer.epoch % recipe.validate_every == 0 or trainer.epoch == recipe.epochs:
            evaluations = trainer.validate()
            record["val"] = {name: e.scores.as_dict() for name, e in evaluations.items()}
            keep_best(trainer, evaluations, out)
            for name, evaluation in evaluations.items():
                draw_sheet(out / f"sheet-{name}.png", evaluation)
        trainer.save(last)
        append_line(out / "log.jsonl", record)
        tqdm.write(json.dumps(record))


EXAMPLE = """example:
  python -m training.train --config training/configs/cris_edge_s.yaml --out runs/s data=/photos

The names that a recipe has, their defaults and reasons are in training/recipe.py; docs/data.md
tells how the data folder is laid out.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train a model by a recipe; on the GPU where there is one.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = arguments.add_argument
    add("--config", required=True, help="a recipe, see training/configs/")
    add("--out", type=Path, default=Path("runs/train"), help="default: %(default)s")
    add("--resume", action="store_true", help="go on from OUT/last.safetensors")
    add("overrides", nargs="*", help="name=value, e.g. data=/photos epochs=5")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    arguments = parser().parse_args(argv)
    try:
        train(read_recipe(arguments.config, arguments.overrides), arguments.out, arguments.resume)
    except (CrisEdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
