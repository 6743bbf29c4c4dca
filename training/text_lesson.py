"""What a text encoder learns of a sentence encoder's features, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cris_edge.tokenizer import clean
from training.data.mirror import mirror
from training.errors import DataError
from training.model import CRIS
from training.phrases import drawn
from training.sentences import WORD, Taught, word_means

BATCH = 256
HELD_OUT = 0.05
"""Share of the phrases that are not taught but judged by."""
TEMPERATURE = 0.05
"""Of the choice between the batch's sentences."""
PARTS = 4
"""Each step's phrases are encoded in so many parts, by length, each without needless padding."""


@dataclass(frozen=True)
class Phrases:
    """What is taught and what is judged by.

    A phrase and the same with left and right swapped stand on the same side of the two.
    """

    texts: list[str]
    """All, cleaned, each once; swapped ones that nobody said come last."""
    swapped: list[int]
    """Of each its place with left and right swapped; its own where that changes nothing."""
    taught: list[int]
    held_out: list[int]


def divide(texts: Iterable[str], seed: int) -> Phrases:
    """Add what becomes of phrases with left and right swapped, and hold some back.

    Raises:
        DataError: too few to hold any back.
    """
    said = [text for text in dict.fromkeys(map(clean, texts)) if WORD.search(text)]
    others = [mirror(text) or text for text in said]
    every = list(dict.fromkeys(said + others))
    places = {text: place for place, text in enumerate(every)}
    swapped = [places[mirror(text) or text] for text in every]
    pairs = sorted({min(place, swapped[place]) for place in range(len(said))})
    order = np.random.default_rng(seed).permutation(pairs)
    held = set(order[: round(HELD_OUT * len(pairs))].tolist())
    if not held:
        raise DataError(f"{len(said)} phrases are too few to learn words from, and to judge by")
    kinds: tuple[list[int], list[int]] = ([], [])
    for place in range(len(said)):
        kinds[min(place, swapped[place]) in held].append(place)
    return Phrases(every, swapped, *kinds)


class Pupil(nn.Module):
    """A text encoder with the adapters that translate its features into the teacher's."""

    def __init__(self, model: CRIS, width: int):
        super().__init__()
        self.encoder = model.text_encoder
        self.words = nn.Linear(model.config.text_width, width)
        self.sentence = nn.Linear(model.config.embed_dim, width)

    def forward(self, tokens: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adapted features.

        Args:
            tokens: (N, L) int64, best in the order of their lengths.
            owners: (N, L) int64, see `training.sentences.Reading`.

        Returns:
            Sentences (N, E) of length 1, the words that occur (W,), and their features (W, E) of
            length 1.
        """
        found = []
        for part, owned in zip(tokens.chunk(PARTS), owners.chunk(PARTS), strict=True):
            length = int(part.argmax(1).max()) + 1
            states, sentence, _ = self.encoder(part[:, :length])
            found.append((self.sentence(sentence), *word_means(states, owned[:, :length])))
        sentences, names, means = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return F.normalize(sentences), names, F.normalize(self.words(means))


class Lesson:
    """A pupil's phrases, what the teacher makes of them, and how far the pupil is from that."""

    def __init__(
        self, pupil: Pupil, phrases: Phrases, tokens: Tensor, owners: Tensor, taught: Taught
    ):
        """Gather what is needed.

        Args:
            pupil: on the device to train on.
            phrases: P of them.
            tokens: their ids (P, L) int64.
            owners: (P, L) int64, see `training.sentences.Reading`.
            taught: the teacher's features of all of them.
        """
        self.pupil, self.phrases, self.tokens, self.owners = pupil, phrases, tokens, owners
        self.taught = taught
        self.lengths = tokens.argmax(1)
        self.device = next(pupil.parameters()).device
        # What all have in common says nothing, and would be most of a cosine.
        own = owners[phrases.taught]
        self.sentence_mean = taught.sentences[phrases.taught].float().mean(0)
        self.word_mean = taught.words[own[own >= 0]].float().mean(0)

    def batches(self, seed: int) -> Iterator[list[int]]:
        """Places of phrases, those with left and right swapped beside them, by length."""
        for batch in drawn(self.phrases.taught, BATCH, seed):
            pairs = {place for one in batch for place in (one, self.phrases.swapped[one])}
            yield sorted(pairs, key=lambda place: (int(self.lengths[place]), place))

    def features(self, places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The pupil's sentences (N, E), and the cosines of its sentences (N,) and words (W,)."""
        chosen = list(places)
        sentences, names, words = self.pupil(
            self.tokens[chosen].to(self.device), self.owners[chosen].to(self.device)
        )
        of_words = F.normalize(self.taught.words[names.cpu()].float() - self.word_mean)
        of_sentences = self.sentences(chosen).to(self.device)
        words = (words * of_words.to(self.device)).sum(1)
        return sentences, (sentences * of_sentences).sum(1), words

    def sentences(self, places: Sequence[int]) -> Tensor:
        """The teacher's (N, E), of length 1 without what all have in common."""
        return F.normalize(self.taught.sentences[list(places)].float() - self.sentence_mean)

    def loss(self, places: list[int]) -> Tensor:
        """One minus the cosines of sentences and words, and the choice between sentences.

        The last is InfoNCE (arXiv 1807.03748): to the teacher "left" and "right" are close, and a
        cosine hardly tells them apart.
        """
        sentences, cosines, words = self.features(places)
        likely = sentences @ self.sentences(places).to(self.device).T / TEMPERATURE
        right = torch.arange(len(places), device=self.device)
        return (1 - cosines.mean()) + (1 - words.mean()) + F.cross_entropy(likely, right)

    @torch.inference_mode()
    def judge(self) -> dict[str, tuple[int, float]]:
        """Number and figure, by name, of the phrases held out."""
        held, swapped = self.phrases.held_out, self.phrases.swapped
        found = [self.features(held[i : i + BATCH]) for i in range(0, len(held), BATCH)]
        mine, cosines, words = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        nearest = (mine @ self.sentences(held).T).argmax(1)
        figures = {
            "cosine of sentences": cosines,
            "cosine of words": words,
            "own sentence is the nearest": nearest == torch.arange(len(held)),
        }
        sided = torch.tensor([swapped[place] != place for place in held])
        if sided.any():
            other = self.sentences([swapped[place] for place in held])
            figures["own side is nearer than the other"] = (cosines > (mine * other).sum(1))[sided]
        return {name: (len(each), float(each.float().mean())) for name, each in figures.items()}
