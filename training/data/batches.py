"""Photos and phrases of a recipe: batches to train on, samples to validate by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import Tokenizer, build
from training.data.augment import Augmentation
from training.data.dataset import PhotoDataset, collate, start_worker
from training.data.nouns import CATEGORIES, NOUNS
from training.data.samples import Sample, load_samples, load_sources
from training.data.vocabulary import clip_merges, student_tokenizer
from training.errors import DataError
from training.model.config import R50
from training.recipe import Recipe

WORDINGS = 3
"""Ways in which each derived fact is said."""


class EpochSampler(Sampler[tuple[int, int]]):
    """Every photo once, some several times, in an order that (seed, epoch) fixes."""

    def __init__(self, repeats: Sequence[int], seed: int, epoch: int):
        draws = [(photo, draw) for photo, times in enumerate(repeats) for draw in range(times)]
        order = np.random.default_rng((seed, epoch)).permutation(len(draws))
        self.draws = [draws[place] for place in order]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(photo, draw): each draw of a photo has other phrases and changes."""
        return iter(self.draws)

    def __len__(self) -> int:
        """Photos in an epoch."""
        return len(self.draws)


@dataclass
class TrainingData:
    """What a run reads."""

    tokenizer: Tokenizer
    dataset: PhotoDataset
    repeats: list[int]
    """Times an epoch sees each photo."""
    validation: dict[str, list[Sample]]
    """`derived` and `written`: never mixed."""
    sources: str
    """In words, for whoever gets the model."""

    def loader(self, recipe: Recipe, epoch: int) -> _Batches:
        """The batches of an epoch."""
        return _Batches(self, recipe, epoch)


class _Batches:
    """A loader's batches with the nouns and the bookkeeping that the losses want."""

    def __init__(self, data: TrainingData, recipe: Recipe, epoch: int):
        data.dataset.set_epoch(epoch)
        self.loader = DataLoader(
            data.dataset,
            batch_size=recipe.photos,
            sampler=EpochSampler(data.repeats, recipe.seed, epoch),
            num_workers=recipe.workers,
            collate_fn=collate,
            worker_init_fn=start_worker,
            drop_last=True,
        )
        self.tokenizer, self.recipe = data.tokenizer, recipe
        self.word_len = recipe.config().word_len
        self.rng = np.random.default_rng((recipe.seed, epoch, 1))

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            del batch["texts"]
            instances = batch["instance"].unflatten(0, (-1, self.recipe.phrases))
            yield batch | {"distinct": distinct(instances).flatten(), "nouns": self.nouns()}

    def nouns(self) -> Tensor:
        """Token ids of the 80 categories, each by one of its names."""
        texts = [str(self.rng.choice(NOUNS[category])) for category in CATEGORIES]
        return torch.from_numpy(
            np.stack([self.tokenizer.encode(text, self.word_len) for text in texts])
        )


def distinct(instances: Tensor) -> Tensor:
    """Whether a phrase names something that none before it names.

    Args:
        instances: (B, K) int64, equal for the same instance, -1 where nothing fits.

    Returns:
        (B, K) bool; False where nothing fits.
    """
    same = instances[:, :, None] == instances[:, None, :]
    earlier = same & torch.ones_like(same).tril(-1)
    return ~earlier.any(2) & (instances >= 0)


def build_data(recipe: Recipe) -> TrainingData:
    """Read what a recipe trains on.

    Raises:
        DataError: files are missing or not as they should be, or too few photos for one batch.
    """
    config = recipe.config()
    root = Path(recipe.data)
    labelled = load_samples(root, "train", seed=recipe.seed, wordings=WORDINGS)
    boxes: list[Sample] = []
    if (root / "boxes_pseudo_instances.json").exists():
        boxes = load_samples(root, "boxes", seed=recipe.seed, wordings=WORDINGS)
    samples = labelled + boxes
    if config.vocab_size == R50.vocab_size:
        tokenizer = build(clip_merges())
    else:
        nouns = [noun for names in NOUNS.values() for noun in names]
        tokenizer = student_tokenizer([sample.text for sample in samples] + nouns)
    dataset = PhotoDataset(
        samples,
        tokenizer,
        Letterbox(config.input_size, config.mean, config.std),
        config.word_len,
        phrases=recipe.phrases,
        augmentation=Augmentation(),
        absent_share=recipe.absent,
        seed=recipe.seed,
    )
    whole = {str(sample.photo.path) for sample in labelled}
    repeats = [recipe.train_repeats if path in whole else 1 for path in dataset.paths]
    if sum(repeats) < recipe.photos:
        raise DataError(
            f"an epoch has {sum(repeats)} photos, fewer than the {recipe.photos} of one batch: "
            "nothing would be trained"
        )
    sources = f"{len(dataset)} photos with {len(samples)} referring expressions"
    return TrainingData(tokenizer, dataset, repeats, load_sources(root, "val"), sources)
