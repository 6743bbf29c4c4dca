"""References to train on, as the paper does: a photo, and one random sentence of what is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from training.data.augment import flipped
from training.data.items import ItemMaker, Phrase, Place
from training.data.mirror import mirror
from training.data.references import Reference


class ReferenceDataset(Dataset[dict[str, Any]]):
    """References with K of their sentences; an item depends on (seed, epoch, index, draw) alone.

    See `training.data.items.ItemMaker` for what an item holds.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        items: ItemMaker,
        *,
        phrases: int = 1,
        mirror_share: float = 0.0,
        seed: int = 0,
    ):
        """Read references as they are needed.

        Args:
            references: of a training split.
            items: makes photos and phrases into items.
            phrases: K; sentences come twice only where a reference has fewer.
            mirror_share: how often a photo is mirrored and its sentences reworded (left, right);
                where that is not safe for one of them, the photo stays as it is.
            seed: of everything that is drawn.
        """
        self._references, self._items, self._phrases = references, items, phrases
        self._mirror_share, self._seed = mirror_share, seed

    def __len__(self) -> int:
        """Number of references."""
        return len(self._references)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Load a reference's photo and draw its sentences."""
        rng = np.random.default_rng((self._seed, *place))
        reference = self._references[place[1]]
        photo, sentences = reference.photo, reference.sentences
        order = np.resize(rng.permutation(len(sentences)), self._phrases)
        texts = [sentences[i] for i in order]
        matrix = self._items.letterbox.matrix(photo.height, photo.width)
        if rng.random() < self._mirror_share:
            mirrored = [text for text in map(mirror, texts) if text is not None]
            if len(mirrored) == len(texts):
                texts, matrix = mirrored, flipped(matrix, photo.width)
        phrases = [Phrase(text, reference.target) for text in texts]
        return self._items(photo, photo.read(), phrases, matrix)
