"""Training on references, as the paper does, from a prepared data set to a model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from cris_edge.letterbox import Letterbox
from tests.scenes import small_tokenizer
from tests.training_run import (
    epochs,
    references_recipe,
    refused,
    run,
    steps,
)
from training import checkpoint
from training.data.batches import TrainingData, build_data
from training.data.coco import Photo, join
from training.data.items import ItemMaker, collate
from training.data.prepared import open_references
from training.data.reference_dataset import ReferenceDataset
from training.data.references import Reference
from training.recipe import read_recipe
from training.trainer import Trainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of gRefCOCO's kind: 12 references, some of which mean several things and some nothing."""
    return references_recipe(tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def data(recipe: Path) -> TrainingData:
    return build_data(read_recipe(recipe))


@pytest.fixture(scope="module")
def references(recipe: Path) -> list[Reference]:
    return list(open_references(recipe.parent / "prepared").split("train"))


# --- end to end ---


def test_a_model_is_trained_and_judged(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(recipe, out, "epochs=2", "workers=1") == 0
    assert list(steps(out)) == [1, 2, 3, 4, 5, 6]
    for losses in steps(out).values():
        assert set(losses) == {"mask"}
        assert 0 < losses["mask"] < 5
    for record in epochs(out):
        assert set(record["val"]) == {"grefcoco val"}
        # The first sentence of each reference, as the field does.
        assert record["val"]["grefcoco val"]["count"] == 12
    assert (out / "sheet-grefcoco-val.png").stat().st_size > 10_000
    notes = checkpoint.load(out / "best.safetensors").metadata
    assert notes["training_data"] == "12 references of grefcoco"
    assert "grefcoco val" in json.loads(notes["accuracy"])


def test_a_few_are_learnt_by_heart(recipe: Path, tmp_path: Path) -> None:
    # The small rates at the end are for batch norm, whose running statistics lag behind.
    options = ["overfit=2", "train_repeats=4", "photos=8", "epochs=60", "milestones=[25, 35]"]
    assert run(recipe, tmp_path, *options, "learning_rate=4.0e-3", "validate_every=60") == 0
    first, *_, last = (record["epoch_losses"]["mask"] for record in epochs(tmp_path))
    assert last < 0.05 * first
    scores = epochs(tmp_path)[-1]["val"]
    assert set(scores) == {"grefcoco train"}
    assert scores["grefcoco train"]["count"] == 2
    notes = checkpoint.load(tmp_path / "best.safetensors").metadata
    assert json.loads(notes["accuracy"])["split"] == "train"
    # A mask of the whole photo reaches 0.12 here.
    assert scores["grefcoco train"]["mIoU"] > 0.5


def test_what_is_not_prepared_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, recipe, tmp_path / "out", f"data={recipe.parent / 'data'}")
    assert "nothing that training.prepare wrote" in line
    assert not (tmp_path / "out").exists()


# --- sentences ---


def test_an_epoch_says_one_sentence_of_each_reference(
    data: TrainingData, references: list[Reference]
) -> None:
    assert len(data.dataset) == len(references) == 12
    assert data.repeats == [1] * 12
    said: list[Counter[str]] = [Counter() for _ in references]
    for epoch in range(40):
        for index, reference in enumerate(references):
            (text,) = data.dataset[epoch, index, 0]["texts"]
            assert text in reference.sentences
            said[index][text] += 1
    for counts, reference in zip(said, references, strict=True):
        # All get their turn, about as often.
        assert set(counts) == set(reference.sentences)
        fair = 40 / len(reference.sentences)
        assert all(0.3 * fair <= count <= 2 * fair for count in counts.values())
    assert max(len(reference.sentences) for reference in references) == 3


def test_equal_seeds_say_the_same_and_others_something_else(recipe: Path) -> None:
    def told(seed: int, epoch: int) -> list[str]:
        dataset = build_data(read_recipe(recipe, [f"seed={seed}"])).dataset
        return [dataset[epoch, index, 0]["texts"][0] for index in range(len(dataset))]

    assert told(0, 0) == told(0, 0)
    assert told(0, 0) != told(0, 1)
    assert told(0, 0) != told(1, 0)


def test_several_sentences_differ_where_there_are_as_many(
    recipe: Path, references: list[Reference]
) -> None:
    read = read_recipe(recipe, ["phrases=2"])
    data = build_data(read)
    for index, reference in enumerate(references):
        item = data.dataset[0, index, 0]
        assert len(set(item["texts"])) == min(2, len(reference.sentences))
        assert item["tokens"].shape == (2, 17)
        assert item["masks"].shape == (2, 16, 16)
        assert torch.equal(item["masks"][0], item["masks"][1])
    batch = next(iter(data.batches(read)))
    assert batch["image"].shape == (4, 64, 64, 3)
    assert batch["tokens"].shape == (8, 17)


def test_full_models_keep_clips_vocabulary(recipe: Path) -> None:
    own = build_data(read_recipe(recipe))
    whole = build_data(read_recipe(recipe, ["model=cris_r50"]))
    assert whole.tokenizer.vocab_size == 49408
    assert own.tokenizer.vocab_size < 10_000
    for text in ("a plush pink bear", "middle case"):
        assert len(set(own.tokenizer.encode(text, 17))) == len(
            set(whole.tokenizer.encode(text, 17))
        )


# --- masks ---


def test_masks_are_as_published(data: TrainingData, references: list[Reference]) -> None:
    letterbox = Letterbox(64, (0.5, 0.5, 0.5))
    between = 0
    for index, reference in enumerate(references):
        item = data.dataset[0, index, 0]
        height, width = reference.photo.height, reference.photo.width
        # The mask goes through the warp of the photo at its full size, and every fourth pixel is
        # taken, linear edges and all.
        full = reference.target.mask().astype(np.uint8) * 255
        warped = linear(full, letterbox.matrix(height, width), 64)
        assert np.allclose(item["masks"][0], warped[::4, ::4] / 255, atol=1 / 255)
        between += int(((item["masks"] > 0.01) & (item["masks"] < 0.99)).sum())
        # Crowds are background like everything else.
        assert not item["ignore"].any()
        assert item["weight"].tolist() == [1.0]
    assert between > 0


def linear(mask: NDArray[np.uint8], matrix: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Each pixel's own place in the photo, and the mean of the four around it by their shares."""
    scale, shift = matrix[0, 0], matrix[:, 2]
    x = (np.arange(size) - shift[0]) / scale
    y = (np.arange(size) - shift[1]) / scale
    padded = np.pad(mask.astype(float), 2)
    result = np.zeros((size, size))
    for row, across in enumerate(y):
        for column, along in enumerate(x):
            left, top = math.floor(along), math.floor(across)
            if -1 <= left < mask.shape[1] and -1 <= top < mask.shape[0]:
                part = padded[top + 2 : top + 4, left + 2 : left + 4]
                u, v = along - left, across - top
                result[row, column] = np.array([1 - v, v]) @ part @ np.array([1 - u, u])
    return result


def test_what_means_nothing_has_an_empty_mask_and_trains(
    recipe: Path, data: TrainingData, references: list[Reference]
) -> None:
    nothing = [i for i, reference in enumerate(references) if not reference.target.objects]
    assert len(nothing) == 2
    items = [data.dataset[0, index, 0] for index in nothing]
    for item in items:
        assert not item["masks"].any()
        assert item["instance"].tolist() == [-1]
        assert item["weight"].tolist() == [1.0]
    several = next(i for i, reference in enumerate(references) if reference.target.objects == 3)
    assert data.dataset[0, several, 0]["masks"].sum() > max(
        data.dataset[0, i, 0]["masks"].sum()
        for i, r in enumerate(references)
        if r.target.objects == 1
    )
    read = read_recipe(recipe, ["dice=1.0", "which=1.0", "photos=2"])
    trainer = Trainer(read, data, torch.device("cpu"))
    trainer.objective.train()
    batch = collate(items)
    del batch["texts"]
    batch["distinct"] = torch.zeros(2, dtype=torch.bool)
    found = [trainer.learn([batch]) for _ in range(12)]
    assert all(math.isfinite(value) for losses in found for value in losses.values())
    # Nothing is learnt to be nothing.
    assert found[-1]["mask"] < 0.7 * found[0]["mask"]
    assert {losses["dice"] for losses in found} == {0.0}


# --- mirroring ---

SENTENCES = ("man on the left", "RIGHT one", "second from right", "the dog", "number 20 at left")
MIRRORED = {
    "man on the left": "man on the right",
    "RIGHT one": "LEFT one",
    "second from right": "second from left",
    "the dog": "the dog",
}
MASK = np.zeros((64, 64), np.uint8)
MASK[8:40, 4:24] = 1
MASK[30:60, 20:30] = 1


class Square(Photo):
    """A photo of the input's own size, so that a mirrored input is its pixels in reverse."""

    def read(self) -> NDArray[np.uint8]:
        return np.random.default_rng(self.id).integers(0, 255, (64, 64, 3), np.uint8)


def mirroring(share: float) -> ReferenceDataset:
    encoded = dict(rle_codec.encode(np.asfortranarray(MASK)))
    target = dataclasses.replace(join([], 64, 64), id=3, objects=1, segmentation=encoded)
    photo = Square(1, Path("none"), 64, 64, False, ())
    said = [Reference(number, photo, target, (text,)) for number, text in enumerate(SENTENCES)]
    letterbox = Letterbox(64, (0.5, 0.5, 0.5))
    items = ItemMaker(small_tokenizer(), letterbox, 17, as_published=True)
    return ReferenceDataset(said, items, mirror_share=share)


def test_a_mirrored_photo_has_its_mask_and_its_words_mirrored() -> None:
    never, always = mirroring(0.0), mirroring(1.0)
    for index, sentence in enumerate(SENTENCES):
        plain, turned = never[0, index, 0], always[0, index, 0]
        assert plain["texts"] == [sentence]
        assert np.array_equal(plain["masks"][0], MASK[::4, ::4])
        if sentence in MIRRORED:
            assert turned["texts"] == [MIRRORED[sentence]]
            assert torch.equal(turned["image"], plain["image"].flip(1))
            assert np.array_equal(turned["masks"][0], MASK[:, ::-1][::4, ::4])
        else:
            # The writing on a shirt would be mirrored too.
            assert turned["texts"] == [sentence]
            assert torch.equal(turned["image"], plain["image"])
            assert torch.equal(turned["masks"], plain["masks"])
        tokens = small_tokenizer().encode(turned["texts"][0], 17)
        assert np.array_equal(turned["tokens"][0], tokens)


def test_a_share_of_the_photos_is_mirrored() -> None:
    dataset = mirroring(0.3)
    turned = 0
    for epoch in range(200):
        turned += dataset[epoch, 0, 0]["texts"] == ["man on the right"]
    assert 35 < turned < 90


def test_the_recipe_mirrors(recipe: Path) -> None:
    plain, turned = (build_data(read_recipe(recipe, [f"mirror={share}"])) for share in (0, 1))
    pairs = [(plain.dataset[0, index, 0], turned.dataset[0, index, 0]) for index in range(12)]
    mirrored = [one["texts"] for one, two in pairs if not torch.equal(one["image"], two["image"])]
    assert ["all the apples"] in mirrored or len(mirrored) > 6
