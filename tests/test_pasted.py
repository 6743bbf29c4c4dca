"""Cut-outs pasted onto photos: pictures, masks, phrases, items, and a run that trains on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle_codec
from torch.utils.data import DataLoader

from cris_edge.letterbox import Letterbox
from cris_edge.photo import as_photo
from cris_edge.tokenizer import Tokenizer, build
from tests.scenes import write_folder
from tests.training_run import photos_recipe, refused, run, steps
from training.data import show
from training.data.augment import Augmentation
from training.data.coco import Instance, Photo
from training.data.cutouts import cut_out
from training.data.items import ItemMaker, collate
from training.data.mirror import mirror
from training.data.pasted import COVERED, Paster
from training.data.photo_dataset import PhotoDataset
from training.data.samples import Sample, load_samples
from training.data.vocabulary import clip_merges
from training.errors import DataError

WIDTH, HEIGHT = 280, 210
COLOURS = {"car": (30, 40, 220), "dog": (220, 90, 20), "cat": (30, 200, 60), "zebra": (0, 0, 0)}
PLACES = {
    "car": (6, 20, 56, 60), "dog": (120, 60, 165, 110), "cat": (70, 30, 100, 75),
    "zebra": (20, 80, 90, 140),
}  # fmt: skip
SEEDS = range(60)


def labelled(key: int, category: str, mask: NDArray[np.bool_], weight: float = 1.0) -> Instance:
    rle = dict(rle_codec.encode(np.asfortranarray(mask.astype(np.uint8))))
    x, y, w, h = (float(value) for value in rle_codec.toBbox(rle))
    return Instance(
        key, category, (x, y, x + w, y + h), float(mask.sum()), segmentation=rle, weight=weight
    )


def rectangle(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def write_photo(
    folder: Path, key: int, *categories: str, person_only: bool = False, weight: float = 1.0
) -> Photo:
    """Flat things on grey noise: what is pasted is flat, what is not is the noise it was."""
    rng = np.random.default_rng(key)
    picture = rng.integers(60, 190, (HEIGHT, WIDTH, 1), dtype=np.uint8).repeat(3, axis=2)
    instances = []
    for number, category in enumerate(categories):
        mask = rectangle(*PLACES[category])
        picture[mask] = COLOURS[category]
        instances.append(labelled(10 * key + number, category, mask, weight))
    path = folder / f"{key}.png"
    cv2.imwrite(str(path), picture)
    return Photo(key, path, WIDTH, HEIGHT, person_only, tuple(instances))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    folder = tmp_path_factory.mktemp("photos")
    return [
        write_photo(folder, 1, "car", "dog", "cat"),
        write_photo(folder, 2, "car"),
        write_photo(folder, 3, "dog", "cat"),
        write_photo(folder, 4, "zebra", "car", person_only=True),
        write_photo(folder, 5, "zebra", "car", weight=0.8),
    ]


@pytest.fixture(scope="module")
def paster(photos: list[Photo]) -> Paster:
    return Paster(photos)


def composed(paster: Paster, photo: Photo, seed: int) -> list[Sample]:
    return paster.samples(photo, np.random.default_rng(seed))


def compositions(paster: Paster, photo: Photo) -> list[Photo]:
    """What becomes of a photo; a few times nothing finds a place on it."""
    found = [samples[0].photo for seed in SEEDS if (samples := composed(paster, photo, seed))]
    assert len(found) >= 0.9 * len(SEEDS)
    return found


def split(before: Photo, after: Photo) -> tuple[list[Instance], list[Instance]]:
    """The photo's own instances and what was pasted."""
    own = [i for i in after.instances if i.id in before.by_id]
    return own, [i for i in after.instances if i.id not in before.by_id]


# --- the composed photo ---


def test_masks_are_where_the_picture_changed(paster: Paster, photos: list[Photo]) -> None:
    ring = np.ones((3, 3), np.uint8)
    for pasted in compositions(paster, photos[0]):
        before, after = photos[0].read(), pasted.read()
        _, new = split(photos[0], pasted)
        assert 1 <= len(new) <= 4
        everything = np.any([i.mask() for i in new], axis=0).view(np.uint8)
        # A soft edge fades within two pixels of the outline.
        far = cv2.dilate(everything, ring, iterations=2) == 0
        np.testing.assert_array_equal(after[far], before[far])
        for instance in new:
            inside = cv2.erode(instance.mask().view(np.uint8), ring, iterations=2).astype(bool)
            pixels = after[inside].astype(float)
            assert len(pixels) > 50
            assert pixels.std(axis=0).max() < 3
            assert np.argmax(pixels.mean(0)) == np.argmax(COLOURS[instance.category])


def test_covered_pixels_are_the_front_ones_alone(paster: Paster, photos: list[Photo]) -> None:
    covered = 0
    for pasted in compositions(paster, photos[0]):
        own, new = split(photos[0], pasted)
        assert [i.id for i in own] == [i.id for i in photos[0].instances]
        assert len({i.id for i in pasted.instances}) == len(pasted.instances)
        assert np.sum([i.mask() for i in pasted.instances], axis=0).max() == 1
        front = np.any([i.mask() for i in new], axis=0)
        for instance in own:
            whole = photos[0].by_id[instance.id].mask()
            np.testing.assert_array_equal(instance.mask(), whole & ~front)
            assert instance.mask().sum() >= (1 - COVERED) * whole.sum()
            covered += bool((whole & front).any())
        for instance in pasted.instances:
            mask = instance.mask()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert instance.box == pytest.approx(edges)
            assert instance.area == mask.sum()
    assert covered > 5


def test_a_photo_depends_on_its_numbers_alone(paster: Paster, photos: list[Photo]) -> None:
    again = Paster(photos)
    seen = set()
    for seed in range(8):
        ours, theirs = composed(paster, photos[2], seed), composed(again, photos[2], seed)
        assert [(s.text, s.instance.id) for s in ours] == [(s.text, s.instance.id) for s in theirs]
        np.testing.assert_array_equal(ours[0].photo.read(), theirs[0].photo.read())
        seen.add(ours[0].photo.read().tobytes())
    assert len(seen) == 8
    np.testing.assert_array_equal(photos[2].read(), cv2.imread(str(photos[2].path)))


def test_phrases_are_true_of_the_composed_photo(paster: Paster, photos: list[Photo]) -> None:
    told = dict.fromkeys(("alone", "left", "right", "bigger", "second"), 0)
    for sample in (s for seed in SEEDS for p in photos[:3] for s in composed(paster, p, seed)):
        meant, words = sample.instance, sample.text.split()
        kin = [i for i in sample.photo.instances if i.category == meant.category]
        if meant.category not in words:
            continue  # by a name that other classes share
        order = [i.id for i in sorted(kin, key=_middle)]
        if sample.kind == "category":
            assert kin == [meant]
            told["alone"] += 1
        if sample.kind == "ordinal" and "second" in words:
            assert meant.id == order[1 if words[-1] == "left" else -2]
            told["second"] += 1
        for side, end in (("left", 0), ("right", -1)):
            if sample.kind == "location" and side in words and len(kin) == 2:
                assert meant.id == order[end]
                told[side] += 1
        if "bigger" in words:
            areas = sorted(i.mask().sum() for i in kin)
            assert meant.mask().sum() == areas[1] > 1.4 * areas[0]
            told["bigger"] += 1
    assert min(told.values()) > 3


def test_twins_are_pasted_and_told_by_their_place(photos: list[Photo]) -> None:
    paster, told = Paster(photos[:2]), 0  # with one dog and one cat
    for seed in range(240):
        for sample in composed(paster, photos[1], seed):
            _, new = split(photos[1], sample.photo)
            twins = [i for i in new if i.category == sample.instance.category]
            if len(twins) != 2 or twins[0].category == "car" or twins[0].area != twins[1].area:
                continue
            first, second = (_pixels(sample.photo, twin) for twin in twins)
            # Each over another noise, which the soft edge lets through.
            assert np.abs(first - second).max() < 128
            assert np.abs(first - second)[3:-3, 3:-3].max() < 3
            if sample.kind == "location" and "left" in sample.text.split():
                assert sample.instance.id == min(twins, key=_middle).id
                told += 1
    assert told > 3


def _pixels(photo: Photo, instance: Instance) -> NDArray[np.float64]:
    x1, y1, x2, y2 = (round(edge) for edge in instance.box)
    return photo.read()[y1:y2, x1:x2].astype(float)


def _middle(instance: Instance) -> float:
    return float(np.nonzero(instance.mask())[1].mean())


# --- what is cut out, and what is left alone ---


def test_where_labels_are_incomplete_or_predicted_nothing_is_cut_or_pasted(
    paster: Paster, photos: list[Photo]
) -> None:
    for seed in range(10):
        assert composed(paster, photos[3], seed) == []
        assert composed(paster, photos[4], seed) == []
    for pasted in compositions(paster, photos[0]):
        assert "zebra" not in {i.category for i in pasted.instances}
    with pytest.raises(DataError, match="none of these 2"):
        Paster(photos[3:])


def test_good_things_alone_are_cut_out(tmp_path: Path) -> None:
    fence = rectangle(0, 0, WIDTH, HEIGHT) & False
    fence[100:148, 5:60:3] = True
    masks = {
        "car": rectangle(30, 20, 80, 60),
        "cup": rectangle(40, 30, 60, 45),  # lies on the car
        "dog": rectangle(240, 20, 280, 60),  # cut by the border
        "bird": rectangle(100, 20, 115, 35),  # tiny
        "bench": fence,
        "cat": rectangle(100, 70, 140, 120),
    }
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    picture[masks["cat"]] = COLOURS["cat"]
    cv2.imwrite(str(tmp_path / "photo.png"), picture)
    instances = tuple(labelled(k, name, mask) for k, (name, mask) in enumerate(masks.items()))
    photo = Photo(1, tmp_path / "photo.png", WIDTH, HEIGHT, False, instances)
    (cat,), colours = cut_out(photo)
    assert (cat.category, cat.colour) == ("cat", "green")
    assert colours[5] == "green"
    inside = cat.bgra[..., 3] == 255
    # A pixel inside the outline, so that none of the background comes along.
    assert inside.sum() == 38 * 48
    assert (cat.bgra[inside][:, :3] == COLOURS["cat"]).all()
    assert cat.side == pytest.approx((38 * 48) ** 0.5)


# --- items and runs ---


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build(clip_merges()[:2000])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return load_samples(write_folder(tmp_path_factory.mktemp("folder")), "train", wordings=3)


def dataset(samples: list[Sample], tokenizer: Tokenizer, share: float) -> PhotoDataset:
    items = ItemMaker(tokenizer, Letterbox(64, (0.5, 0.5, 0.5)), 12, categories=True)
    return PhotoDataset(
        samples, items, phrases=4, augmentation=Augmentation(), pasted_share=share, seed=3
    )


def same(first: dict[str, object], second: dict[str, object]) -> bool:
    return first["texts"] == second["texts"] and all(
        torch.equal(value, second[key])  # type: ignore
        for key, value in first.items()
        if isinstance(value, torch.Tensor)
    )


def test_a_share_of_the_items_is_pasted_and_the_others_are_as_without(
    samples: list[Sample], tokenizer: Tokenizer
) -> None:
    plain, some, every = (dataset(samples, tokenizer, share) for share in (0.0, 0.5, 1.0))
    written = {s.text for s in samples if s.source == "written"}
    written |= {mirror(text) for text in written if mirror(text)}  # type: ignore
    places = [(0, index, draw) for index in range(len(plain)) for draw in range(10)]
    untouched = 0
    for place in places:
        unpasted, item, pasted = plain[place], some[place], every[place]
        untouched += same(unpasted, item)
        assert same(item, unpasted) or same(item, pasted)
        assert not same(pasted, unpasted)
        assert not written & set(pasted["texts"])
    assert 8 < untouched < len(places) - 8


def test_loading_processes_give_the_same_items(samples: list[Sample], tokenizer: Tokenizer) -> None:
    data = dataset(samples, tokenizer, 1.0)
    places = [(0, index, draw) for index in range(len(data)) for draw in range(2)]
    loader: DataLoader[dict[str, object]] = DataLoader(
        data,
        sampler=places,  # type: ignore
        batch_size=1,
        collate_fn=collate,
        num_workers=1,
    )
    other = dataset(samples, tokenizer, 1.0)
    for place, batch in zip(places, loader, strict=True):
        assert same(batch, collate([other[place]]))


def test_a_recipe_with_pasted_photos_trains(tmp_path: Path) -> None:
    recipe = photos_recipe(tmp_path, epochs=2)
    assert run(recipe, tmp_path / "plain") == 0
    assert run(recipe, tmp_path / "pasted", "pasted=0.5") == 0
    plain, pasted = steps(tmp_path / "plain"), steps(tmp_path / "pasted")
    assert len(pasted) == len(plain) == 4
    assert pasted != plain
    assert all(np.isfinite(list(losses.values())).all() for losses in pasted.values())


def test_more_than_all_photos_cannot_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, photos_recipe(tmp_path), tmp_path / "out", "pasted=1.5")
    assert "pasted: expected a number from 0 to 1, got 1.5" in error


# --- the sheet ---


def test_a_sheet_shows_pasted_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    shape = ["--columns", "2", "--rows", "1", "-o", str(out)]
    command = ["--data", str(write_folder(tmp_path)), "--split", "train", *shape]
    assert show.main(command) == 0
    plain = as_photo(out)
    assert show.main([*command, "--pasted"]) == 0
    pasted = as_photo(out)
    assert pasted.shape == plain.shape
    assert (pasted != plain).any()
    assert show.main(["--scenes", "--pasted", *shape]) == 2
    assert "--pasted wants a data folder" in capsys.readouterr().err
