"""Learning on phrases alone: text files of them, draws without end, and the optimiser's steps."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.errors import DataError

LEARNING_RATE = 1e-3
WARMUP = 0.1
"""Share of the steps in which the rate grows."""

_Phrase = TypeVar("_Phrase")


def read_phrases(path: str | Path) -> list[str]:
    """Phrases of a text file, one a line, UTF-8, gzipped or not; empty lines are left out.

    Raises:
        DataError: it cannot be read, or has no phrase.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: expected phrases, one a line, in UTF-8: {error}") from error
    if not (phrases := [line.strip() for line in text.splitlines() if line.strip()]):
        raise DataError(f"{path}: expected phrases, one a line, found none")
    return phrases


def rate(step: int, steps: int) -> float:
    """Up to the whole learning rate, then by a cosine down to nothing."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def drawn(phrases: Sequence[_Phrase], batch: int, seed: int) -> Iterator[list[_Phrase]]:
    """Batches without end: all phrases in a random order, then in another one."""
    rng = np.random.default_rng(seed)
    order = (phrases[i] for _ in itertools.count() for i in rng.permutation(len(phrases)))
    while True:
        yield list(itertools.islice(order, batch))


def learn(
    pupil: nn.Module,
    batches: Iterator[list[_Phrase]],
    loss_of: Callable[[list[_Phrase]], Tensor],
    steps: int,
) -> list[float]:
    """Let a module take the optimiser's steps.

    Args:
        pupil: in training mode, on the device to train on.
        batches: at least `steps` of them.
        loss_of: a batch's loss, of the pupil.
        steps: of AdamW.

    Returns:
        The loss of each step.
    """
    learning = [p for p in pupil.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    losses = []
    with tqdm(itertools.islice(batches, steps), "phrases", steps) as bar:
        for batch in bar:
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses
