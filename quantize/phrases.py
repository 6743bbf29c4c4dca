"""The phrase side by itself: a student's text encoder learns the teacher's on text alone."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cris_edge.tokenizer import Tokenizer
from quantize.lessons import same_words
from training.data.batches import encode
from training.errors import DataError
from training.model import CRIS

LEARNING_RATE = 1e-3
WARMUP = 0.1
"""Share of the steps in which the rate grows."""


def read_phrases(path: str | Path) -> list[str]:
    """Phrases of a text file, one a line, UTF-8, gzipped or not; empty lines are left out.

    Raises:
        DataError: it cannot be read, or has no phrase.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected phrases, one a line, in UTF-8: {error}") from error
    if not (phrases := [line.strip() for line in text.splitlines() if line.strip()]):
        raise DataError(f"{path}: expected phrases, one a line, found none")
    return phrases


class Pupil(nn.Module):
    """A text encoder with the adapters that translate its features into the teacher's."""

    def __init__(self, model: CRIS, teacher: CRIS):
        super().__init__()
        mine, taught = model.config, teacher.config
        self.encoder = model.text_encoder
        self.words = nn.Linear(mine.text_width, taught.text_width)
        self.sentence = nn.Linear(mine.embed_dim, taught.embed_dim)

    def forward(self, tokens: Tensor, taught: Sequence[Tensor], known: Tensor) -> Tensor:
        """One minus the cosine between features, of sentences and of the words that both know.

        Args:
            tokens: (N, L).
            taught: the teacher's words (N, M, C) and sentences (N, E).
            known: (N, L) bool.
        """
        words, sentence, _ = self.encoder(tokens)
        length = min(words.shape[1], taught[0].shape[1])
        apart = 1 - F.cosine_similarity(self.words(words[:, :length]), taught[0][:, :length], dim=2)
        known = known[:, :length]
        of_words = (apart * known).sum() / known.sum().clamp(min=1)
        return of_words + (1 - F.cosine_similarity(self.sentence(sentence), taught[1])).mean()


def teach_phrases(
    model: CRIS,
    tokenizer: Tokenizer,
    teacher: CRIS,
    taught_by: Tokenizer,
    phrases: Sequence[str],
    *,
    steps: int,
    batch: int,
    seed: int,
) -> list[float]:
    """Teach a student's text encoder; the student is left on the teacher's device.

    Args:
        model: the student.
        tokenizer: its own.
        teacher: in evaluation mode, on the device to train on.
        taught_by: the teacher's tokenizer.
        phrases: to draw from.
        steps: of the optimiser.
        batch: phrases in each of them.
        seed: of the draws.

    Returns:
        The loss of each step.
    """
    device = next(teacher.parameters()).device
    torch.manual_seed(seed)
    pupil = Pupil(model, teacher).to(device).train()
    learning = [p for p in pupil.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    losses = []
    with tqdm(itertools.islice(drawn(phrases, batch, seed), steps), "phrases", steps) as bar:
        for texts in bar:
            mine = encode(texts, tokenizer, model.config.word_len).to(device)
            theirs = encode(texts, taught_by, teacher.config.word_len).to(device)
            with torch.no_grad():
                words, sentence, _ = teacher.encode_text(theirs)
            loss = pupil(mine, (words, sentence), same_words(mine, theirs))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def rate(step: int, steps: int) -> float:
    """Up to the whole learning rate, then by a cosine down to nothing."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def drawn(phrases: Sequence[str], batch: int, seed: int) -> Iterator[list[str]]:
    """Batches without end: all phrases in a random order, then in another one."""
    rng = np.random.default_rng(seed)
    order = (phrases[i] for _ in itertools.count() for i in rng.permutation(len(phrases)))
    while True:
        yield list(itertools.islice(order, batch))
