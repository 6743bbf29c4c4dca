"""`python -m training.train --config training/configs/refcoco_r50.yaml`: train a model by a recipe.

On GPUs where there are any, in one process or as many as torchrun starts. A run's folder holds:

    best.safetensors            the best model by validation mIoU
    state-00012345.safetensors  whole states, the newest few; `--resume` goes on from the last
    log.jsonl                   losses, rates, throughput, memory, figures, a line each
    tensorboard/                the same as curves, and the sheets
    sheet-*.png                 overlays of the last validation
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from cris_edge.errors import CrisEdgeError
from training import checkpoint, distributed
from training.arguments import documented
from training.data.batches import TrainingData, build_data
from training.distributed import agree, gather_objects
from training.errors import CheckpointError, DataError, TrainingError
from training.evaluation import Evaluation, evaluate_samples
from training.objective import Batch
from training.pace import Pace
from training.predictor import torch_segmenter
from training.recipe import Recipe, read_recipe
from training.run_log import LOG, RunLog, peak_memory
from training.sheet import draw_sheet, sheet_of
from training.trainer import Trainer

log = logging.getLogger(__name__)

BEST = "best.safetensors"

_Kind = TypeVar("_Kind", bound=Recipe)


def train(
    recipe: Recipe,
    out: Path,
    resume: bool,
    device: torch.device,
    start: Callable[[Recipe, TrainingData, torch.device], Trainer] = Trainer,
) -> None:
    """Train to the recipe's last epoch.

    Args:
        recipe: what to train, on what, and how.
        out: folder of the run.
        resume: go on from the newest state in `out`, if there is one.
        device: of this process.
        start: gives the trainer of a recipe with its data.

    Raises:
        CrisEdgeError: data, recipe or state are not as they should be, or the run broke down.
        OSError: files cannot be written, as on a full disk; the states before are whole.
    """
    warn_of_slow_precision(recipe, device)
    data = agree(lambda: build_data(recipe))
    trainer = start(recipe, data, device)
    agree(lambda: begin(trainer, out, resume))
    check_together(trainer, out)
    run_log = None
    if distributed.world()[0] == 0:
        out.mkdir(parents=True, exist_ok=True)
        clear_leftovers(out)
        run_log = RunLog(out, trainer.step, trainer.epoch)
    try:
        steps = trainer.batches()
        while trainer.epoch < recipe.epochs:
            train_epoch(trainer, steps, out, run_log)
            finish_epoch(trainer, out, run_log)
    except (CheckpointError, DataError) as error:
        # A file that cannot be written, or a photo that cannot be read.
        raise TrainingError(str(error)) from error
    except RuntimeError as error:
        # torch tells of a dead loader by a signal, wherever the run is at that moment.
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(f"a process that loads photos died: {reason}") from error
    finally:
        if run_log:
            run_log.close()


def warn_of_slow_precision(recipe: Recipe, device: torch.device) -> None:
    """Say so where bfloat16 is computed in software, which takes ten times as long and more."""
    if device.type == "cpu" and recipe.precision == "bfloat16":
        capability = torch.backends.cpu.get_cpu_capability()
        if capability in ("DEFAULT", "AVX2"):
            log.warning(
                "this CPU (%s) has no bfloat16 and computes it slowly: give precision=float32",
                capability,
            )


def train_epoch(
    trainer: Trainer, steps: Iterator[list[Batch]], out: Path, run_log: RunLog | None
) -> None:
    """The rest of an epoch, with lines in the log and states as the recipe wants them."""
    recipe, total = trainer.recipe, trainer.steps_per_epoch
    pace = Pace(recipe.photos)
    title = f"epoch {trainer.epoch + 1}/{recipe.epochs}"
    done = trainer.step_in_epoch
    # What was judged last may be the very model.
    trainer.objective.train()
    with tqdm(total=total, initial=done, desc=title, mininterval=5, disable=run_log is None) as bar:
        for parts in pace.waiting_for(islice(steps, total - done)):
            losses = trainer.learn(parts)
            bar.update()
            bar.set_postfix(loss=f"{sum(trainer.heard.values()):.3f}")
            if run_log and trainer.step % recipe.log_every == 0:
                record = {"step": trainer.step, "epoch": trainer.epoch, "losses": dict(losses)}
                run_log.write(record | progress(trainer) | pace.so_far())
            within = trainer.step_in_epoch
            if recipe.save_every and within < total and within % recipe.save_every == 0:
                save_state(trainer, out)


def finish_epoch(trainer: Trainer, out: Path, run_log: RunLog | None) -> None:
    """Validate where it is time to, keep what is best, and write the state."""
    recipe, epoch = trainer.recipe, trainer.epoch + 1
    judged = epoch % recipe.validate_every == 0 or epoch == recipe.epochs
    if judged:
        # Validation takes a while, and may fail: the epoch is not lost by it.
        save_state(trainer, out)
    record: dict = {"step": trainer.step, "epoch": epoch}
    record["epoch_losses"] = trainer.end_epoch()
    if judged:
        segmenter = torch_segmenter(trainer.judged, trainer.data.tokenizer, trainer.threshold)
        found = {
            name: evaluate_samples(segmenter, samples)
            for name, samples in trainer.data.validation.items()
        }
        record["val"] = {name: evaluation.scores.as_dict() for name, evaluation in found.items()}
        if run_log:
            keep_best(trainer, found, out)
            for name, evaluation in found.items():
                sheet = sheet_of(out / "sheet.png", name)
                draw_sheet(sheet, evaluation)
                run_log.picture(sheet, trainer.step)
    if run_log:
        # The log first: what it says beyond the last whole state is taken out again.
        run_log.write(record)
        tqdm.write(json.dumps(record))
    save_state(trainer, out)


def keep_best(trainer: Trainer, found: dict[str, Evaluation], out: Path) -> None:
    """Write the model as `best.safetensors` when it is the best by validation mIoU."""
    figures = {name: evaluation.scores.miou for name, evaluation in found.items()}
    score = sum(figures.values()) / len(figures)
    if score <= trainer.best:
        return
    trainer.best = score
    split = trainer.data.judged_split
    accuracy = {"split": split, "metric": "mIoU", "epoch": trainer.epoch} | figures
    if trainer.judged_as is not None:
        accuracy["of"] = trainer.judged_as
    metadata = trainer.origin | {
        "accuracy": json.dumps(accuracy),
        "recipe": json.dumps(dataclasses.asdict(trainer.recipe)),
        "torch": torch.__version__,
    }
    model, tokenizer = trainer.judged, trainer.data.tokenizer
    checkpoint.save(out / BEST, model, tokenizer, metadata, threshold=trainer.threshold)


# --- states ---


def states(out: Path) -> list[Path]:
    """The states in a run's folder, the newest last."""
    return sorted(out.glob("state-*.safetensors"))


def save_state(trainer: Trainer, out: Path) -> None:
    """Write a state beside the others, then take the oldest away."""
    if distributed.world()[0]:
        return
    trainer.save(out / f"state-{trainer.step:08d}.safetensors")
    for old in states(out)[: -trainer.recipe.keep]:
        old.unlink()


def clear_leftovers(out: Path) -> None:
    """Take away what a run that was killed while it wrote a file has left of it."""
    for name in ("*.safetensors", "sheet-*.png", LOG):
        for unfinished in out.glob(f".{name}.*"):
            unfinished.unlink()


def begin(trainer: Trainer, out: Path, resume: bool) -> None:
    """Go on from the newest state; without one, from the start, so that one command always does.

    Raises:
        CheckpointError: it is damaged or does not fit, or there is one that was not asked for.
    """
    found = states(out)
    if found and not resume:
        raise CheckpointError(f"{out} holds a run already: give --resume, or another --out")
    if not found and (out / BEST).exists():
        raise CheckpointError(
            f"{out} holds {BEST} and no state to go on from, and would lose it: give another --out"
        )
    if found:
        trainer.load(found[-1])
    elif resume:
        log.warning("%s: no state to go on from, so this starts with the first step", out)


def check_together(trainer: Trainer, out: Path) -> None:
    """See to it that all processes go on from the same step.

    Raises:
        CheckpointError: they found different states, as on machines with folders of their own.
    """
    steps = gather_objects(trainer.step)
    if len(set(steps)) > 1:
        found = ", ".join(f"process {rank}: step {step}" for rank, step in enumerate(steps))
        raise CheckpointError(
            f"the processes would go on from different states ({found}): {out} must be one folder "
            "that all machines share, or hold the same newest state on each"
        )


# --- what the log tells of a step ---


def progress(trainer: Trainer) -> dict[str, float]:
    """The rate of what has the whole of it, and memory."""
    rates = [group["lr"] for group in trainer.optimiser.param_groups]
    return {"learning_rate": max(rates), "memory_gib": round(peak_memory(trainer.device), 3)}


EXAMPLE = """examples:
  python -m training.train --config training/configs/cris_edge_s.yaml --out runs/s data=/photos
  torchrun --nproc-per-node 8 -m training.train --config training/configs/refcoco_r50.yaml
  python -m training.train --config training/configs/refcoco_r50.yaml --resume

The names that a recipe has, their defaults and reasons are in training/recipe.py. docs/training.md
leads from the data to figures, docs/data.md tells how data folders are laid out.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.train", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("--config", required=True, help="a recipe, see training/configs/")
    add("--out", type=Path, default=Path("runs/train"), help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest state in OUT, if there is one")
    add("overrides", nargs="*", help="name=value, e.g. data=/photos epochs=5")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_intermixed_args(argv)
    return launch(options, options.overrides, Recipe, train)


def launch(
    options: argparse.Namespace,
    overrides: Sequence[str],
    kind: type[_Kind],
    run: Callable[[_Kind, Path, bool, torch.device], None],
) -> int:
    """Train as a command line says; one line on stderr and 2 where something is refused.

    Args:
        options: with `config`, `out` and `resume`.
        overrides: of the recipe.
        kind: of recipe.
        run: trains one into a folder, goes on if told to.
    """
    out: Path = options.out
    try:
        device = distributed.start()
        recipe = agree(lambda: read_recipe(options.config, overrides, kind))
        run(recipe, out, options.resume, device)
    except (CrisEdgeError, OSError) as error:
        # What is refused at the start is refused by all processes alike; later one may fail alone.
        if distributed.world()[0] == 0 or isinstance(error, (TrainingError, OSError)):
            print(f"error: {error}{whole_state(error, out)}", file=sys.stderr)
        return 2
    finally:
        distributed.stop()
    return 0


def whole_state(error: Exception, out: Path) -> str:
    """Where to go on from, after a run that broke down."""
    found = states(out)
    if not found or not isinstance(error, (TrainingError, OSError)):
        return ""
    return f". The last whole state is {found[-1]}: --resume goes on from it"


if __name__ == "__main__":
    sys.exit(main())
