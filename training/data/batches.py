"""Photos and phrases of a recipe: batches to train on, samples to validate by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import Tokenizer, build
from training import checkpoint
from training.data import foreign, several
from training.data.augment import Augmentation
from training.data.coco import Instance
from training.data.items import ItemMaker, Place, collate, start_worker
from training.data.nouns import CATEGORIES, EVERY_NOUN, OWN_NOUNS
from training.data.photo_dataset import PhotoDataset
from training.data.prepared import open_references
from training.data.reference_dataset import ReferenceDataset
from training.data.references import samples_of
from training.data.samples import Sample, load_samples, load_sources
from training.data.scene_dataset import SceneDataset
from training.data.scene_phrases import scene_samples, vocabulary
from training.data.scenes import JUDGED_WORLD, find_backgrounds
from training.data.vocabulary import clip_merges, student_tokenizer
from training.distributed import world
from training.errors import DataError
from training.model.config import R50
from training.recipe import Recipe

WORDINGS = 3
"""Ways in which each derived fact is said."""
JUDGED_SCENES = 100


class Drawn(Protocol):
    """A dataset whose items depend on the seed and their place alone."""

    def __len__(self) -> int:
        """Number of photos."""

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """The item of a place."""


@dataclass
class TrainingData:
    """What a run reads."""

    tokenizer: Tokenizer
    dataset: Drawn
    repeats: Sequence[int]
    """Times an epoch sees each photo."""
    validation: dict[str, list[Sample]]
    """By source: never mixed."""
    sources: str
    """In words, for whoever gets the model."""
    mark: str
    """Of the photos, labels and phrases to train on; a run goes on with the same ones alone."""
    judged_split: str = "val"
    """Of which the samples to validate by are."""
    readers: dict[str, tuple[Tokenizer, int]] = field(default_factory=dict)
    """Who else reads the phrases: a batch has `NAME_tokens` by this tokenizer, so many a phrase."""

    def batches(self, recipe: Recipe, first: int = 0) -> Batches:
        """This process's share of a run's batches, from step `first` of it on."""
        return Batches(self, recipe, first)

    @cached_property
    def judged_mark(self) -> str:
        """Of what is validated by: figures of other samples cannot be compared."""
        return _mark(
            (source, sample.photo.path.name, _label(sample.instance), sample.text)
            for source, samples in self.validation.items()
            for sample in samples
        )

    def steps(self, recipe: Recipe) -> int:
        """Steps of an epoch; a last batch that would not be full is left out."""
        return sum(self.repeats) // recipe.photos


class StepSampler(Sampler[list[Place]]):
    """Which photos this process reads: parts of global batches that (seed, epoch) fixes.

    However many processes share a batch, and in however many parts each takes its share, together
    they see the same photos in the same step. It goes on to the run's end, so that a loader's
    processes start once and not in every epoch.
    """

    def __init__(self, repeats: Sequence[int], recipe: Recipe, first: int):
        self.draws = [(photo, draw) for photo, times in enumerate(repeats) for draw in range(times)]
        self.recipe, self.first = recipe, first

    def __iter__(self) -> Iterator[list[Place]]:
        """Lists of places: each draw of a photo has other phrases and changes."""
        steps = len(self.draws) // self.recipe.photos
        for epoch in range(self.recipe.epochs):
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.draws))
            for step in range(max(self.first - epoch * steps, 0), steps):
                for start, end in self.shares(step):
                    yield [(epoch, *self.draws[place]) for place in order[start:end]]

    def shares(self, step: int) -> Iterator[tuple[int, int]]:
        """Where this process's parts of an epoch's step begin and end in the epoch's order."""
        rank, size = world()
        part = self.recipe.photos // (size * self.recipe.accumulate)
        for piece in range(self.recipe.accumulate):
            start = step * self.recipe.photos + (piece * size + rank) * part
            yield start, start + part


class Batches:
    """A loader's batches with the nouns and the bookkeeping that the losses want."""

    def __init__(self, data: TrainingData, recipe: Recipe, first: int):
        self.loader: DataLoader[dict[str, Any]] = DataLoader(
            data.dataset,  # type: ignore[arg-type]
            batch_sampler=StepSampler(data.repeats, recipe, first),
            num_workers=recipe.workers,
            collate_fn=collate,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        self.tokenizer, self.readers, self.recipe = data.tokenizer, data.readers, recipe
        self.word_len = recipe.config().word_len
        self.first, self.steps_per_epoch = first, data.steps(recipe)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of `recipe.photos` / (processes * `recipe.accumulate`) photos."""
        for part, batch in enumerate(self.loader):
            texts = batch.pop("texts")
            for name, (tokenizer, length) in self.readers.items():
                batch[f"{name}_tokens"] = encode(texts, tokenizer, length)
            instances = batch["instance"].unflatten(0, (-1, self.recipe.phrases))
            batch["distinct"] = distinct(instances).flatten()
            if self.recipe.naming:
                batch["nouns"] = self.nouns(self.first + part // self.recipe.accumulate)
            yield batch

    def nouns(self, step: int) -> Tensor:
        """Token ids of the 80 categories, each by one of its own names that the run's step draws.

        What a pixel is called excludes all other names: "animal", of a dog, would exclude "dog".
        """
        place = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self.recipe.seed, *place))
        texts = [str(rng.choice(OWN_NOUNS[category])) for category in CATEGORIES]
        return encode(texts, self.tokenizer, self.word_len)


def encode(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """Ids of phrases, (N, length) int64."""
    return torch.from_numpy(np.stack([tokenizer.encode(text, length) for text in texts]))


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
        CheckpointError: the checkpoint that is to be fine-tuned is damaged.
    """
    read = {"photos": _photos, "references": _references, "scenes": _scenes}[recipe.kind]
    data = read(recipe)
    if not data.steps(recipe):
        raise DataError(
            f"an epoch has {sum(data.repeats)} photos, fewer than the {recipe.photos} of one "
            "batch: nothing would be trained"
        )
    return data


def _tokenizer(recipe: Recipe, texts: Iterable[str], first: int = 4096) -> Tokenizer:
    """The run's tokenizer; `texts` are read for a student's new one alone."""
    if recipe.start_from is not None:
        return checkpoint.load(recipe.start_from).tokenizer
    if recipe.config().vocab_size == R50.vocab_size:
        return build(clip_merges())
    return student_tokenizer(texts, first)


def _items(recipe: Recipe, tokenizer: Tokenizer) -> ItemMaker:
    config = recipe.config()
    return ItemMaker(
        tokenizer,
        Letterbox(config.input_size, config.mean),
        config.word_len,
        as_published=recipe.outlines == "published",
        categories=bool(recipe.naming),
    )


def photo_samples(recipe: Recipe) -> tuple[list[Sample], list[Sample]]:
    """What a data folder has to train on: fully labelled photos, and those with boxes, if any.

    Raises:
        DataError: files are missing or not as they should be.
    """
    root = Path(recipe.data)
    labelled = load_samples(root, "train", seed=recipe.seed, wordings=WORDINGS)
    boxes: list[Sample] = []
    if (root / "boxes_pseudo_instances.json").exists():
        boxes = load_samples(root, "boxes", seed=recipe.seed, wordings=WORDINGS)
    return labelled, boxes


def photo_phrases(samples: Iterable[Sample]) -> Iterator[str]:
    """All that may be said of photos: what was, what categories are called, phrases by rule."""
    yield from (sample.text for sample in samples)
    yield from EVERY_NOUN
    yield from several.sayings()
    yield from foreign.sayings()


def _photos(recipe: Recipe) -> TrainingData:
    """Photos with instances, and phrases made by rule or written."""
    labelled, boxes = photo_samples(recipe)
    samples = labelled + boxes
    tokenizer = _tokenizer(recipe, photo_phrases(samples))
    dataset = PhotoDataset(
        samples,
        _items(recipe, tokenizer),
        phrases=recipe.phrases,
        augmentation=Augmentation(flip=recipe.mirror),
        absent_share=recipe.absent,
        several_share=recipe.several,
        pasted_share=recipe.pasted,
        seed=recipe.seed,
    )
    whole = {str(sample.photo.path) for sample in labelled}
    times = {True: recipe.train_repeats, False: recipe.box_repeats}
    repeats = [times[path in whole] for path in dataset.paths]
    sources = f"{len(dataset)} photos with {len(samples)} referring expressions"
    validation = load_sources(recipe.data, "val")
    photos = {sample.photo.path: sample.photo for sample in samples}.values()
    labels = ((photo.path.name, *map(_label, photo.instances)) for photo in photos)
    said = ((sample.photo.path.name, str(sample.instance.id), sample.text) for sample in samples)
    mark = _mark(chain(labels, said))
    return TrainingData(tokenizer, dataset, repeats, validation, sources, mark)


def _references(recipe: Recipe) -> TrainingData:
    """References as `training.prepare` wrote them: RefCOCO and its kin, or one's own."""
    prepared = open_references(Path(recipe.data))
    references = prepared.split("train")
    judged, split = (references, "train") if recipe.overfit else (prepared.split("val"), "val")
    if recipe.overfit:
        references = judged = [references[i] for i in range(min(recipe.overfit, len(references)))]
    texts = (sentence for reference in references for sentence in reference.sentences)
    tokenizer = _tokenizer(recipe, texts)
    dataset = ReferenceDataset(
        references,
        _items(recipe, tokenizer),
        phrases=recipe.phrases,
        mirror_share=recipe.mirror,
        seed=recipe.seed,
    )
    source = f"{prepared.name} {split}"
    validation = {source: samples_of(judged, source, "first")}
    sources = f"{len(references)} references of {prepared.name}"
    repeats = [recipe.train_repeats] * len(dataset)
    mark = _mark((one.photo.path.name, _label(one.target), *one.sentences) for one in references)
    return TrainingData(tokenizer, dataset, repeats, validation, sources, mark, split)


def _scenes(recipe: Recipe) -> TrainingData:
    """The made-up world, over the photos of a folder."""
    tokenizer = _tokenizer(recipe, vocabulary(), first=0)
    backgrounds = find_backgrounds(recipe.data)
    dataset = SceneDataset(
        backgrounds,
        recipe.scenes,
        _items(recipe, tokenizer),
        phrases=recipe.phrases,
        world=JUDGED_WORLD + 1 + recipe.seed,
    )
    validation = {"scenes": scene_samples(JUDGED_SCENES)}
    sources = f"made-up scenes over {len(backgrounds)} photos"
    mark = _mark((path.name,) for path in backgrounds)
    return TrainingData(tokenizer, dataset, [1] * len(dataset), validation, sources, mark)


def _mark(what: Iterable[tuple[str, ...]]) -> str:
    """What tells data from others, in any folder: of photos' names, labels and phrases."""
    digest = hashlib.sha256()
    for line in what:
        digest.update("\0".join((*line, "\0")).encode())
    return digest.hexdigest()


def _label(instance: Instance) -> str:
    """All that is learnt from an instance."""
    outline = instance.segmentation and instance.segmentation["counts"]
    return f"{instance.category} {instance.box} {instance.crowd} {instance.weight} {outline}"
