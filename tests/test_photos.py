"""From a COCO folder to training items: reading, samples, datasets, vocabulary, sheets."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cris_edge.errors import CrisEdgeError
from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import build
from training.data import show
from training.data.augment import Augmentation
from training.data.choose import choose, survives_crop
from training.data.coco import read_photos
from training.data.items import ItemMaker, collate, start_worker
from training.data.nouns import CATEGORIES, CATEGORY_INDEX, NOUNS
from training.data.photo_dataset import PhotoDataset
from training.data.samples import load_samples
from training.data.vocabulary import clip_merges, student_tokenizer
from training.errors import DataError
from training.metrics import iou
from training.model.config import THRESHOLD

WIDTH, HEIGHT = 160, 120
CATEGORY_IDS = {name: index * 3 for index, name in enumerate(CATEGORIES, start=1)}
BACKGROUND = (90, 90, 90)
RED, BLUE = (0, 0, 230), (230, 60, 0)
SIZE, WORD_LEN = 64, 12


def rectangle(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def entry(key, image, category, box, **more):
    x1, y1, x2, y2 = box
    return {
        "id": key,
        "image_id": image,
        "category_id": CATEGORY_IDS[category],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": rectangle(*box),
    } | more


def image(key, name, **more):
    return {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def crowd_rle(x1, y1, x2, y2):
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[y1:y2, x1:x2] = 1
    flat = drawn.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts_inside = [0] if flat[0] else []  # the first count is of pixels outside
    counts = starts_inside + np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


CAR_LEFT, CAR_RIGHT, DOG = (8, 40, 48, 80), (104, 40, 152, 84), (64, 84, 92, 112)
CROWD = (0, 0, 60, 20)


def write(folder, name, images, annotations):
    categories = [{"id": key, "name": category} for category, key in CATEGORY_IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    """A data folder of three photos: cars and a dog with a crowd; PennFudan; predicted masks."""
    for folder in ("photos", "boxes"):
        (tmp_path / folder).mkdir()
    picture = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    for (x1, y1, x2, y2), colour in ((CAR_LEFT, RED), (CAR_RIGHT, BLUE), (DOG, (20, 20, 20))):
        picture[y1:y2, x1:x2] = colour
    for name in ("photos/street.png", "photos/pf_people.png", "boxes/park.png"):
        cv2.imwrite(str(tmp_path / name), picture)
    annotations = [
        entry(11, 1, "car", CAR_LEFT),
        entry(12, 1, "car", CAR_RIGHT),
        entry(13, 1, "dog", DOG),
        entry(14, 1, "person", CROWD, iscrowd=1, segmentation=crowd_rle(*CROWD)),
        entry(15, 2, "person", CAR_LEFT),
    ]
    images = [image(1, "street.png"), image(2, "pf_people.png", person_only=True)]
    for split in ("train", "val"):
        write(tmp_path, f"instances_{split}.json", images, annotations)
    predicted = [
        entry(21, 3, "person", CAR_LEFT, source="pseudo", has_mask=True, quality=0.7),
        entry(22, 3, "person", CAR_RIGHT, source="box", has_mask=False, segmentation=[]),
        entry(23, 3, "dog", DOG, source="pseudo", has_mask=True, quality=0.1),
    ]
    write(tmp_path, "boxes_pseudo_instances.json", [image(3, "park.png")], predicted)
    written = [
        {"image_id": 1, "annotation_id": 11, "expressions": ["red car on left", "RED one"]},
        {"image_id": 99, "annotation_id": 1, "expressions": ["of another photo"]},
    ]
    for split in ("train", "val"):
        (tmp_path / f"expressions_written_{split}.json").write_text(json.dumps(written))
    of_boxes = [
        {"image_id": 3, "annotation_id": 23, "expressions": ["black dog"]},
        {"image_id": 3, "annotation_id": 22, "expressions": ["has no mask"]},
    ]
    (tmp_path / "expressions_written_boxes.json").write_text(json.dumps(of_boxes))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    return build(clip_merges()[:2000])


LETTERBOX = Letterbox(SIZE, (0.5, 0.5, 0.5))


def dataset(samples, tokenizer, **options):
    items = ItemMaker(tokenizer, LETTERBOX, WORD_LEN, categories=True)
    return PhotoDataset(samples, items, **options)


def read(root, split="train", **options):
    return read_photos(root / f"instances_{split}.json", root / "photos", **options)


# --- reading ---


def test_masks_boxes_and_crowds_are_read(root):
    (street,) = read(root)
    assert (street.width, street.height, street.person_only) == (WIDTH, HEIGHT, False)
    car = street.by_id[11]
    assert car.category == "car"
    assert car.box == CAR_LEFT
    assert car.weight == 1.0
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[40:80, 8:48] = True
    np.testing.assert_array_equal(car.mask(), expected)
    crowd = street.by_id[14]
    assert crowd.crowd
    assert crowd.mask()[:20, :60].all()
    assert crowd.mask().sum() == 1200


def test_photos_that_may_not_ship_are_read_only_when_asked(root):
    assert [p.path.name for p in read(root)] == ["street.png"]
    both = read(root, exclude_prefixes=())
    assert [p.path.name for p in both] == ["street.png", "pf_people.png"]
    assert both[1].person_only


def test_predicted_masks_weigh_less_and_only_people_are_complete(root):
    (park,) = {s.photo.id: s.photo for s in load_samples(root, "boxes")}.values()
    assert park.person_only
    assert [i.weight for i in park.instances] == [0.7, 1.0, 0.3]
    assert [i.has_mask for i in park.instances] == [True, False, True]
    with pytest.raises(DataError, match="has_mask"):
        park.by_id[22].mask()


def test_polygons_unite_and_a_double_line_cuts_a_hole(root):
    ring = [10, 10, 50, 10, 50, 50, 10, 50, 10, 10, 20, 20, 20, 40, 40, 40, 40, 20, 20, 20]
    shape = [ring, *rectangle(60, 10, 80, 30), *rectangle(70, 10, 90, 30)]
    whole = entry(1, 1, "car", (10, 10, 90, 50), segmentation=shape)
    write(root, "instances_train.json", [image(1, "street.png")], [whole])
    mask = read(root)[0].instances[0].mask()
    assert mask[12, 12]
    assert not mask[30, 30]
    assert mask[20, 75]
    assert mask[20, 85]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("bbox"), "bbox"),
        (lambda e: e.update(category_id=5), "5"),
        (lambda e: e.update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd count"),
        (lambda e: e.update(segmentation={"size": [3, 3], "counts": [9]}), "size"),
    ],
)
def test_what_is_not_coco_is_refused(root, change, message):
    bad = entry(1, 1, "car", CAR_LEFT)
    change(bad)
    write(root, "instances_train.json", [image(1, "street.png")], [bad])
    with pytest.raises(DataError, match=message):
        read(root)


def test_missing_and_broken_files_are_refused(root):
    with pytest.raises(DataError, match=r"nowhere\.json is missing"):
        read_photos(root / "nowhere.json", root / "photos")
    (root / "instances_val.json").write_text("{")
    with pytest.raises(CrisEdgeError, match="should be a JSON file"):
        read(root, "val")
    (root / "photos/street.png").unlink()
    with pytest.raises(DataError, match=r"street\.png is missing"):
        read(root)


def test_a_broken_or_resized_photo_is_refused(root):
    (street,) = read(root)
    street.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be decoded"):
        street.read()
    cv2.imwrite(str(street.path), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="8 x 8"):
        street.read()


# --- samples ---


def test_derived_and_written_samples(root):
    samples = load_samples(root, "train", wordings=6)
    texts = {(s.text, s.instance.id, s.source) for s in samples}
    assert ("red car on left", 11, "written") in texts
    assert ("left car", 11, "derived") in texts
    assert ("blue car", 12, "derived") in texts
    assert ("dog", 13, "derived") in texts
    assert not [s for s in samples if s.instance.category == "person"]
    assert len({(s.text, s.instance.id, s.source) for s in samples}) == len(samples)
    assert {s.source for s in load_samples(root, "train", "derived")} == {"derived"}
    assert [s.text for s in load_samples(root, "train", "written")] == [
        "red car on left",
        "RED one",
    ]


def test_samples_are_fixed_by_the_seed(root):
    def texts(seed):
        return [s.text for s in load_samples(root, "train", "derived", seed=seed)]

    assert texts(1) == texts(1)
    assert len({tuple(texts(seed)) for seed in range(6)}) > 1


def test_boxes_give_expressions_of_people_and_what_was_written(root):
    samples = load_samples(root, "boxes")
    assert {s.instance.category for s in samples if s.source == "derived"} == {"person"}
    assert {s.instance.id for s in samples if s.source == "derived"} == {21}
    assert [s.text for s in samples if s.source == "written"] == ["black dog"]


def test_an_expression_for_an_unknown_instance_is_refused(root):
    wrong = [{"image_id": 1, "annotation_id": 777, "expressions": ["x"]}]
    (root / "expressions_written_val.json").write_text(json.dumps(wrong))
    with pytest.raises(DataError, match="777"):
        load_samples(root, "val")
    with pytest.raises(DataError, match="split"):
        load_samples(root, "test")


# --- what a step reads ---


def test_item_shapes_and_types(root, tokenizer):
    item = dataset(load_samples(root, "train"), tokenizer, phrases=4)[0, 0, 0]
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


def test_without_augmentation_an_item_is_the_letterbox(root, tokenizer):
    samples = load_samples(root, "train")
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


def test_categories_and_crowds(root, tokenizer):
    item = dataset(load_samples(root, "train"), tokenizer)[0, 0, 0]
    categories = item["categories"]
    assert at(categories, 30, 60, 8) == CATEGORY_INDEX["car"]
    assert at(categories, 80, 100, 8) == CATEGORY_INDEX["dog"]
    assert at(categories, 80, 40, 8) == 0
    assert at(categories, 20, 8, 8) == -1
    assert at(item["ignore"], 20, 8, 4)
    assert not at(item["ignore"], 30, 60, 4)


def test_what_is_unlabelled_has_no_known_category(root, tokenizer):
    item = dataset(load_samples(root, "boxes"), tokenizer, absent_share=1.0)[0, 0, 0]
    assert at(item["categories"], 30, 60, 8) == CATEGORY_INDEX["person"]
    assert at(item["categories"], 80, 40, 8) == -1
    assert at(item["categories"], 130, 60, 8) == -1
    assert item["categories"][0, 0] == 0
    assert (item["instance"] >= 0).all()
    assert sorted({round(float(w), 3) for w in item["weight"]}) == [0.3, 0.7]


def test_absent_phrases_have_empty_masks(root, tokenizer):
    data = dataset(load_samples(root, "train"), tokenizer, absent_share=1.0, phrases=3)
    for epoch in range(8):
        item = data[epoch, 0, 0]
        assert (item["instance"] < 0).tolist() == [False, False, True]
        assert item["masks"][2].sum() == 0
        assert item["masks"][:2].flatten(1).sum(1).min() > 0
        assert "car" not in item["texts"][2].split()


def test_several_are_one_mask_and_compete_with_none(root, tokenizer):
    data = dataset(
        load_samples(root, "train"), tokenizer, absent_share=1.0, several_share=1.0, phrases=4
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


def test_items_are_fixed_by_seed_epoch_index_and_draw(root, tokenizer):
    samples = load_samples(root, "train", wordings=3)

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
    return load_samples(root.__wrapped__(folder), "train", wordings=30)


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


def test_batches(root, tokenizer):
    samples = load_samples(root, "train") + load_samples(root, "boxes")
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


# --- vocabulary ---


def pieces(tokenizer, merges, text):
    """The text's tokens as strings, from ids by CLIP's order of the vocabulary."""
    ids = [int(i) for i in tokenizer.encode(text, 64)]
    inner = ids[1 : ids.index(tokenizer.end_id)]
    return ["".join(merges[i - 512]) if i >= 512 else i for i in inner]


def test_a_small_vocabulary_splits_as_clip_does():
    merges = clip_merges()
    assert len(merges) == 48_894
    texts = [noun for nouns in NOUNS.values() for noun in nouns]
    texts += ["second rhinoceros from the left", "café's  naïve &amp; ünïcode ☕ 42nd", "zzyzx"]
    small, full = student_tokenizer(texts, first=300), build(merges)
    assert small.vocab_size < 1500
    kept = small_merges(small, merges)
    for text in texts:
        assert pieces(small, kept, text) == pieces(full, merges, text)
    assert student_tokenizer([], first=300).vocab_size == 512 + 300 + 2


def small_merges(small, merges):
    """The kept merges in order, read from the tokenizer's saved file."""
    rank = {merge: i for i, merge in enumerate(merges)}
    content = json.loads(small.to_json())["model"]["merges"]
    kept = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in content]
    assert kept == sorted(kept, key=rank.__getitem__)
    return kept


# --- the sheet ---


def test_show_draws_a_sheet(root, capsys):
    target = root / "sheet.png"
    assert show.main(["--data", str(root), "--split", "train", "-o", str(target)]) == 0
    assert "samples" in capsys.readouterr().out
    drawn = cv2.imread(str(target))
    assert drawn.shape[1] == 4 * show.TILE
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5


def test_show_says_what_is_missing(tmp_path, capsys):
    assert show.main(["--data", str(tmp_path), "-o", str(tmp_path / "x.png")]) == 2
    assert "instances_val.json is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_show_refuses_a_format_it_cannot_write(root, capsys):
    assert show.main(["--data", str(root), "-o", str(root / "sheet.nonsense")]) == 2
    assert ".png or .jpg" in capsys.readouterr().err
    assert not (root / "sheet.nonsense").exists()
