"""The phrase side by itself: a student's text encoder learns the teacher's on text alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cris_edge.tokenizer import Tokenizer
from quantize.lessons import same_words
from training.data.batches import encode
from training.model import CRIS
from training.phrases import drawn, learn


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

    def loss_of(texts: list[str]) -> Tensor:
        mine = encode(texts, tokenizer, model.config.word_len).to(device)
        theirs = encode(texts, taught_by, teacher.config.word_len).to(device)
        with torch.no_grad():
            words, sentence, _ = teacher.encode_text(theirs)
        loss: Tensor = pupil(mine, (words, sentence), same_words(mine, theirs))
        return loss

    return learn(pupil, drawn(phrases, batch, seed), loss_of, steps)
