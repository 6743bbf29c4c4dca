"""What a step reads of photos: pictures, phrases and masks that stay true to each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.mask import encode
from torch.utils.data import DataLoader

from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import build
from tests.photo_folder import HEIGHT, WIDTH, write_photos
from training.data.augment import Augmentation
from training.data.choose import choose, survives_crop
from training.data.coco import Instance, Photo
from training.data.items import ItemMaker, collate, start_worker
from training.data.labels import Labels
from training.data.nouns import CATEGORY_INDEX
from training.data.photo_dataset import PhotoDataset
from training.data.samples import load_samples
from training.data.vocabulary import clip_merges
from training.errors import DataError
from training.metrics import iou
from training.model.config import THRESHOLD

SIZE, WORD_LEN = 64, 12


@pytest.fixture(scope="module")
def tokenizer():
    return build(clip_merges()[:2000])


LETTERBOX = Letterbox(SIZE, (0.5, 0.5, 0.5))


def dataset(samples, tokenizer, **options):
    items = ItemMaker(tokenizer, LETTERBOX, WORD_LEN, categories=True)
    return PhotoDataset(samples, items, **options)


def test_item_shapes_and_types(photo_folder, tokenizer):
    item = dataset(load_samples(photo_folder, "train"), tokenizer, phrases=4)[0, 0, 0]
    mask = SIZE // 4
    kinds = {
        "image": ((SIZE, SIZE, 3), torch.uint8), "tokens": ((4, WORD_LEN), torch.int64),
        "masks": ((4, mask, mask), torch.float32), "ignore": ((mask, mask), torch.bool),
        "weight": ((4,), torch.float32),
        "instance": ((4,), torch.int64), "categories": ((SIZE // 8, SIZE // 8), torch.int64),
    }  # fmt: skip
    assert {key: (tuple(item[key].shape), item[key].dtype) for key in kinds} == kinds
    assert (item["masks"].min(), item["masks"].max()) == (0, 1)
    assert len(item["texts"]) == 4


def test_without_augmentation_an_item_is_the_letterbox(photo_folder, tokenizer):
    samples = load_samples(photo_folder, "train")
    item = dataset(samples, tokenizer, absent_share=0.0, phrases=3)[0, 0, 0]
    photo = samples[0].photo
    np.testing.assert_array_equal(item["image"].numpy(), LETTERBOX.frame(photo.read()))
    assert set(item["instance"].tolist()) == {i.id for i in photo.instances if not i.crowd}
    for mask, key in zip(item["masks"], item["instance"], strict=True):
        # A model that gives just what it is taught gives the mask back.
        logits = torch.special.logit(mask, eps=1e-4).numpy()
        back, drawn = LETTERBOX.restore(logits, HEIGHT, WIDTH) > THRESHOLD, photo.by_id[int(key)]
        assert iou(back, drawn.mask()) > 0.85


def at(map_, x, y, stride):
    """The map's value where a point of the letterboxed photo lies."""
    scale = SIZE / WIDTH
    return map_[
        round((y * scale + (SIZE - HEIGHT * scale) / 2) / stride), round(x * scale / stride)
    ]


def named_at(categories, x, y):
    """The category of the cell in which a point of the letterboxed photo lies."""
    scale = SIZE / WIDTH
    return categories[int((y * scale + (SIZE - HEIGHT * scale) / 2) / 8), int(x * scale / 8)]


def test_categories_and_crowds(photo_folder, tokenizer):
    item = dataset(load_samples(photo_folder, "train"), tokenizer)[0, 0, 0]
    categories = item["categories"]
    assert named_at(categories, 30, 60) == CATEGORY_INDEX["car"]
    assert named_at(categories, 80, 100) == CATEGORY_INDEX["dog"]
    assert named_at(categories, 80, 40) == 0
    assert named_at(categories, 20, 8) == -1
    assert at(item["ignore"], 20, 8, 4)
    assert not at(item["ignore"], 30, 60, 4)


def test_a_cell_is_named_by_what_is_in_its_middle():
    def thing(key, category, columns):
        mask = np.zeros((16, 32), np.uint8, order="F")
        mask[:, columns] = 1
        return Instance(key, category, (0, 0, 1, 1), float(mask.sum()), False, encode(mask))

    things = (
        thing(1, "car", slice(1, 7)),
        thing(2, "dog", slice(8, 11)),
        thing(3, "cat", slice(18, 26)),
    )
    labels = Labels(Photo(1, Path("made-up.jpg"), 32, 16, False, things), np.eye(3)[:2])
    row = [CATEGORY_INDEX["car"], 0, CATEGORY_INDEX["cat"], 0]
    assert labels.categories(4)[:2].tolist() == [row, row]


def test_what_is_unlabelled_has_no_known_category(photo_folder, tokenizer):
    item = dataset(load_samples(photo_folder, "boxes"), tokenizer, absent_share=1.0)[0, 0, 0]
    assert named_at(item["categories"], 30, 60) == CATEGORY_INDEX["person"]
    assert named_at(item["categories"], 80, 40) == -1
    assert named_at(item["categories"], 130, 60) == -1
    assert item["categories"][0, 0] == 0
    assert (item["instance"] >= 0).all()
    assert sorted({round(float(w), 3) for w in item["weight"]}) == [0.3, 0.7]


def test_absent_phrases_have_empty_masks(photo_folder, tokenizer):
    data = dataset(load_samples(photo_folder, "train"), tokenizer, absent_share=1.0, phrases=3)
    for epoch in range(8):
        item = data[epoch, 0, 0]
        assert (item["instance"] < 0).tolist() == [False, False, True]
        assert item["masks"][2].sum() == 0
        assert item["masks"][:2].flatten(1).sum(1).min() > 0
        assert "car" not in item["texts"][2].split()


def test_several_are_one_mask_and_compete_with_none(photo_folder, tokenizer):
    data = dataset(
        load_samples(photo_folder, "train"),
        tokenizer,
        absent_share=1.0,
        several_share=1.0,
        phrases=4,
    )
    texts = set()
    for epoch in range(20):
        item = data[epoch, 0, 0]
        assert (item["instance"] < 0).tolist() == [False, False, True, True]
        cars = [
            mask
            for mask, key in zip(item["masks"], item["instance"], strict=True)
            if key in (11, 12)
        ]
        both, nothing = item["masks"][2:]
        assert nothing.sum() == 0
        assert cars
        assert all((both >= car).all() for car in cars)
        assert both.sum() > 1.2 * max(car.sum() for car in cars)
        texts.add(item["texts"][2])
    assert len(texts) > 5


def test_items_are_fixed_by_seed_epoch_index_and_draw(photo_folder, tokenizer):
    samples = load_samples(photo_folder, "train", wordings=3)

    def item(seed, epoch, draw=0):
        data = dataset(samples, tokenizer, augmentation=Augmentation(), seed=seed)
        return data[epoch, 0, draw]

    first, again = item(1, 2), item(1, 2)
    assert first["texts"] == again["texts"]
    assert torch.equal(first["image"], again["image"])
    for other in (item(1, 3), item(2, 2), item(1, 2, 1)):
        assert not torch.equal(first["image"], other["image"])


def colour_inside(item, mask):
    """Mean RGB of the picture, 0 … 1, where the mask is."""
    inside = (mask > 0.5).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return (item["image"] / 255)[inside].mean(0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_phrases_stay_true_however_the_photo_is_changed(street_samples, tokenizer, seed):
    data = dataset(street_samples, tokenizer, augmentation=Augmentation(), seed=seed, phrases=4)
    item = data[0, 0, 0]
    centres = {
        int(place): float(mask.nonzero()[:, 1].float().mean())
        for mask, place in zip(item["masks"], item["instance"], strict=True)
        if place >= 0
    }
    for text, mask, place in zip(item["texts"], item["masks"], item["instance"], strict=True):
        if place < 0:
            continue
        colour = colour_inside(item, mask)
        if "red" in text.lower():
            assert colour[0] > colour[2] + 0.2
        if "blue" in text:
            assert colour[2] > colour[0] + 0.2
        rivals = [x for other, x in centres.items() if {other, int(place)} == {11, 12}]
        if "car" in text.split() and rivals:
            side = centres[int(place)] - rivals[0]
            assert side <= 0 or "left" not in text.split()
            assert side >= 0 or "right" not in text.split()


@pytest.fixture(scope="module")
def street_samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    return load_samples(write_photos(folder), "train", wordings=30)


def test_flips_turn_sides_and_words(street_samples, tokenizer):
    left = [s for s in street_samples if s.text == "left car"]
    still = Augmentation(
        flip=1.0, crop=0.0, zoom_out=1.0, zoom_in=1.0, brightness=0.0, contrast=0.0, saturation=0.0
    )
    options = {"absent_share": 0.0, "phrases": 1}
    plain = dataset(left, tokenizer, **options)[0, 0, 0]
    flipped = dataset(left, tokenizer, augmentation=still, **options)[0, 0, 0]
    assert (plain["texts"], flipped["texts"]) == (["left car"], ["right car"])
    for item in (plain, flipped):
        red, _, blue = colour_inside(item, item["masks"][0])
        assert red > blue + 0.5
    before, after = (i["masks"][0].nonzero()[:, 1].float().mean() for i in (plain, flipped))
    assert float(after) == pytest.approx(SIZE / 4 - 1 - float(before), abs=0.3)
    assert not torch.equal(plain["tokens"], flipped["tokens"])
    assert plain["masks"][0, :, : SIZE // 8].sum() == plain["masks"].sum()
    assert flipped["masks"][0, :, SIZE // 8 :].sum() == flipped["masks"].sum()


def test_phrases_that_cannot_be_mirrored_keep_the_photo_as_it_is(street_samples, tokenizer):
    sample = street_samples[0]
    numbered = type(sample)(sample.photo, sample.instance, "car number 5", "written", "written")
    data = dataset(
        [numbered], tokenizer, augmentation=Augmentation(flip=1.0, zoom_out=1.0, crop=0.0)
    )
    assert data[0, 0, 0]["masks"][0, :, : SIZE // 8].sum() == data[0, 0, 0]["masks"][0].sum()


def test_rivals_come_together_and_told_by_the_same_kind(street_samples):
    both = 0
    for seed in range(40):
        chosen = choose(street_samples, 2, np.random.default_rng(seed), written=0.0)
        assert len({s.instance.id for s in chosen}) == 2
        if {s.instance.category for s in chosen} == {"car"}:
            both += 1
            assert len({s.kind for s in chosen}) == 1
    assert both > 20


def test_a_lone_things_place_does_not_survive_a_crop(street_samples):
    dog = next(s for s in street_samples if s.instance.category == "dog")
    lone = type(dog)(dog.photo, dog.instance, "dog at the bottom", "location", "derived")
    assert not survives_crop(lone)
    assert all(survives_crop(s) for s in street_samples if s.text in ("left car", "dog"))


def test_batches(photo_folder, tokenizer):
    samples = load_samples(photo_folder, "train") + load_samples(photo_folder, "boxes")
    loader = DataLoader(
        dataset(samples, tokenizer, phrases=3), collate_fn=collate,
        batch_sampler=[[(0, 0, 0), (0, 1, 0)]], worker_init_fn=start_worker, num_workers=1,
    )  # fmt: skip
    (batch,) = list(loader)
    assert batch["image"].shape == (2, SIZE, SIZE, 3)
    assert batch["tokens"].shape == (6, WORD_LEN)
    assert batch["masks"].shape == (6, SIZE // 4, SIZE // 4)
    assert batch["ignore"].shape == (2, SIZE // 4, SIZE // 4)
    assert batch["categories"].shape == (2, SIZE // 8, SIZE // 8)
    assert len(batch["texts"]) == 6


def test_a_dataset_wants_samples_and_a_fitting_size(street_samples, tokenizer):
    with pytest.raises(DataError, match="at least one sample"):
        dataset([], tokenizer)
    with pytest.raises(DataError, match="multiple of 8"):
        ItemMaker(tokenizer, Letterbox(60, (0, 0, 0)), WORD_LEN)
    with pytest.raises(DataError, match="at least 1, but are 0"):
        dataset(street_samples, tokenizer, phrases=0)
