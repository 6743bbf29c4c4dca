"""Twins in other colours, and what is said of people's clothes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from training.data.clothes import UPPER_BODY, said_of_clothes
from training.data.coco import Instance, Photo
from training.data.colours import COLOURS, alike, dominant, pixel_colours
from training.data.cutouts import Cutout
from training.data.painting import PAINTABLE, in_colours
from training.data.pasted import Paster

WIDTH, HEIGHT = 320, 240
SKIN, RED, BLUE, GREEN = (
    (120, 160, 220), (30, 30, 200), (200, 60, 30), (40, 170, 40),
)  # fmt: skip
"""Blue, green, red."""
PLAIN = {"car": GREEN, "cup": RED, "zebra": (130, 130, 130)}
SEEDS = range(80)

Mask = NDArray[np.bool_]


def instance(key: int, category: str, mask: Mask) -> Instance:
    rle = dict(rle_codec.encode(np.asfortranarray(mask.astype(np.uint8))))
    x, y, w, h = (float(value) for value in rle_codec.toBbox(rle))
    return Instance(key, category, (x, y, x + w, y + h), float(mask.sum()), segmentation=rle)


def box(x1: int, y1: int, x2: int, y2: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def people(folder: Path, *shirts: tuple[int, int, int], wide: bool = False) -> Photo:
    """People side by side: a third of each is a head, the next the shirt, then grey trousers."""
    picture = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
    instances = []
    for number, shirt in enumerate(shirts):
        x, width = 10 + 100 * number, 90 if wide else 36
        mask = box(x, 30, x + width, 110 if wide else 150)
        height = 80 if wide else 120
        picture[mask] = (100, 100, 100)
        picture[30 : 30 + height // 5, x : x + width] = SKIN
        picture[30 + height // 5 : 30 + height // 2, x : x + width] = shirt
        instances.append(instance(number + 1, "person", mask))
    path = folder / f"{len(list(folder.iterdir()))}.png"
    cv2.imwrite(str(path), picture)
    return Photo(1, path, WIDTH, HEIGHT, False, tuple(instances))


def things(folder: Path, key: int, *categories: str) -> Photo:
    picture = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
    instances = []
    for number, category in enumerate(categories):
        mask = box(20 + 90 * number, 40, 80 + 90 * number, 90)
        picture[mask] = PLAIN[category]
        instances.append(instance(10 * key + number, category, mask))
    path = folder / f"things_{key}.png"
    cv2.imwrite(str(path), picture)
    return Photo(key, path, WIDTH, HEIGHT, False, tuple(instances))


def cutout(category: str, height: int = 120, width: int = 60) -> Cutout:
    """Stripes of all shades of grey, with a border that is not inside; a person has a head."""
    bgra = np.zeros((height, width, 4), np.uint8)
    bgra[4:-4, 4:-4, :3] = np.linspace(30, 250, width - 8, dtype=np.uint8)[None, :, None]
    bgra[4:-4, 4:-4, 3] = 255
    if category == "person":
        bgra[4:20, 4:-4, :3] = SKIN
        bgra[20:-4, 4:12, :3] = SKIN
    return Cutout(category, bgra, 0.1, None)


def seen(bgra: NDArray[np.uint8], where: Mask) -> str | None:
    return dominant(pixel_colours(np.ascontiguousarray(bgra[..., :3]))[where])


# --- painting ---


@pytest.mark.parametrize("count", [2, 3])
def test_a_thing_comes_in_colours_that_are_plain_to_see(count: int) -> None:
    plain, colours = cutout("car"), set()
    for seed in SEEDS:
        twins = in_colours(plain, count, np.random.default_rng(seed))
        assert len(twins) == count
        for twin in twins:
            inside = twin.bgra[..., 3] == 255
            assert seen(twin.bgra, inside) == twin.colour
            np.testing.assert_array_equal(twin.bgra[~inside], plain.bgra[~inside])
            np.testing.assert_array_equal(twin.bgra[..., 3], plain.bgra[..., 3])
            assert (twin.category, twin.share) == (plain.category, plain.share)
        names = [str(twin.colour) for twin in twins]
        assert not any(alike(a, b) for i, a in enumerate(names) for b in names[:i])
        colours |= set(names)
    assert len(colours) >= 7
    assert colours <= set(COLOURS)


def test_of_a_person_the_upper_body_is_painted_and_no_skin() -> None:
    plain = cutout("person")
    twins = in_colours(plain, 2, np.random.default_rng(0))
    assert len(twins) == 2
    changed = np.any([(twin.bgra != plain.bgra).any(-1) for twin in twins], axis=0)
    rows = np.flatnonzero(changed.any(1))
    height = plain.bgra.shape[0]
    assert rows[0] >= round(0.42 * height)
    assert rows[-1] < round(0.8 * height)
    assert not changed[:, :12].any()
    assert changed[rows[0] : rows[-1], 13:-4].all()
    assert [twin.colour for twin in twins] == [None, None]
    first, second = (seen(twin.bgra, changed) for twin in twins)
    assert first
    assert second
    assert not alike(first, second)


def test_of_who_lies_nothing_is_painted() -> None:
    lying = cutout("person", height=60, width=120)
    assert in_colours(lying, 2, np.random.default_rng(0)) == []


# --- clothes ---


def test_clothes_tell_people_apart(tmp_path: Path) -> None:
    photo, texts = people(tmp_path, RED, BLUE, GREEN), set()
    for seed in range(30):
        said = said_of_clothes(photo, seed)
        assert said == said_of_clothes(photo, seed)
        assert [(e.instance_id, e.kind) for e in said] == [(n, "colour") for n in (1, 2, 3)]
        for expression, colour in zip(said, ("red", "blue", "green"), strict=True):
            assert colour in expression.text.split()
        texts |= {expression.text for expression in said}
    assert len(texts) > 15


@pytest.mark.parametrize(
    "shirts", [(RED, RED), (RED, (20, 110, 240)), (SKIN, SKIN), ((100, 100, 100),)],
    ids=["the same", "alike", "skin", "grey"],
)  # fmt: skip
def test_clothes_that_tell_nobody_are_not_named(
    shirts: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    assert said_of_clothes(people(tmp_path, *shirts)) == []


def test_one_of_three_may_be_told(tmp_path: Path) -> None:
    said = said_of_clothes(people(tmp_path, RED, BLUE, RED))
    assert [expression.instance_id for expression in said] == [2]


def test_nothing_is_said_where_it_is_not_sure(tmp_path: Path) -> None:
    photo = people(tmp_path, RED, BLUE)
    first, second = photo.instances
    for other in (
        dataclasses.replace(second, crowd=True),
        dataclasses.replace(second, segmentation=None),
    ):
        assert said_of_clothes(dataclasses.replace(photo, instances=(first, other))) == []
    assert said_of_clothes(people(tmp_path, RED, BLUE, wide=True)) == []
    assert said_of_clothes(things(tmp_path, 2, "car")) == []
    assert all(0 < top < bottom < 1 for top, bottom in UPPER_BODY.values())


# --- pasted ---


def test_colours_that_are_said_of_pasted_twins_are_true(tmp_path: Path) -> None:
    photos = [
        people(tmp_path, RED),
        things(tmp_path, 2, "car", "cup"),
        things(tmp_path, 3, "zebra"),
    ]
    paster, told = Paster(photos), {"car": set(), "cup": set(), "person": set()}
    for sample in (
        s for seed in SEEDS for s in paster.samples(photos[2], np.random.default_rng(seed))
    ):
        if sample.kind != "colour":
            continue
        mask, target = sample.instance.mask(), sample.instance
        (colour,) = set(sample.text.split()) & set(COLOURS)
        if target.category == "person":
            y1, y2 = (
                round(target.box[1] + s * (target.box[3] - target.box[1])) for s in (0.2, 0.48)
            )
            mask[:y1], mask[y2:] = False, False
        assert seen(sample.photo.read(), mask) == colour
        told[target.category].add(colour)
    assert all(len(colours) > 3 for colours in told.values())
    assert "zebra" not in PAINTABLE
