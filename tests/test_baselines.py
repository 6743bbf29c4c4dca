"""Blind baselines: the ellipse that is found, and phrases that land on other photos."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_codec

from training.baselines import (
    Ellipse,
    best_ellipse,
    fit_ellipse,
    score_ellipse,
    score_nothing,
    score_whole_photo,
    shuffled_phrases,
)
from training.data.coco import Instance, Photo
from training.data.samples import Sample
from training.errors import DataError
from training.metrics import Scores, iou, overlap


def sample(photo: int, text: str, mask: np.ndarray | None = None, key: int = 0) -> Sample:
    mask = np.ones((8, 8), bool) if mask is None else mask
    height, width = mask.shape
    shape = rle_codec.encode(np.asfortranarray(mask, np.uint8))
    instance = Instance(key, "dog", (0, 0, width, height), float(mask.sum()), segmentation=shape)
    path = Path(f"{photo}.jpg")
    return Sample(
        Photo(photo, path, width, height, False, (instance,)), instance, text, "k", "derived"
    )


@pytest.mark.parametrize(
    "hidden",
    [Ellipse(0.5, 0.5, 0.3, 0.2), Ellipse(0.3, 0.6, 0.15, 0.35), Ellipse(0.7, 0.35, 0.12, 0.1)],
)
def test_a_hidden_ellipse_is_found_in_photos_of_any_shape(hidden: Ellipse) -> None:
    sizes = ((120, 200), (256, 192), (90, 90))
    samples = [sample(i, "it", hidden.mask(*size)) for i, size in enumerate(sizes)]
    found, scores = fit_ellipse(samples)
    assert scores.miou > 0.88
    for value, wanted in zip(
        (found.cx, found.cy, found.rx, found.ry),
        (hidden.cx, hidden.cy, hidden.rx, hidden.ry),
        strict=True,
    ):
        assert value == pytest.approx(wanted, abs=0.03)
    assert scores == score_ellipse(samples, found)


def test_an_ellipse_has_its_size_at_any_resolution() -> None:
    ellipse = Ellipse(0.5, 0.5, 0.3, 0.2)
    for height, width in ((400, 600), (601, 199)):
        assert ellipse.mask(height, width).mean() == pytest.approx(np.pi * 0.3 * 0.2, rel=0.01)


def test_the_commoner_place_wins() -> None:
    left, right = Ellipse(0.25, 0.5, 0.15, 0.2), Ellipse(0.75, 0.5, 0.15, 0.2)
    places = [left, left, left, right]
    samples = [sample(i, "it", place.mask(100, 100)) for i, place in enumerate(places)]
    assert best_ellipse(samples).cx == pytest.approx(0.25, abs=0.03)
    # One object meant by many phrases counts as often as it is meant.
    samples += [sample(3, f"it {i}", right.mask(100, 100)) for i in range(8)]
    assert best_ellipse(samples).cx == pytest.approx(0.75, abs=0.03)


def test_targets_that_were_joined_are_told_apart_by_their_masks() -> None:
    left, right = Ellipse(0.25, 0.5, 0.15, 0.2), Ellipse(0.75, 0.5, 0.15, 0.2)
    # None of them has an id of its own, and all are of one photo.
    samples = [sample(0, "it", left.mask(100, 100), key=-1)]
    samples += [sample(0, f"it {i}", right.mask(100, 100), key=-1) for i in range(3)]
    assert best_ellipse(samples).cx == pytest.approx(0.75, abs=0.03)


def test_an_ellipse_scores_what_its_pixels_score() -> None:
    rng = np.random.default_rng(3)
    ellipse, sizes = Ellipse(0.4, 0.5, 0.3, 0.25), [(40, 30), (33, 52), (40, 30)]
    samples = [sample(i, "it", rng.random(size) < 0.3) for i, size in enumerate(sizes)]
    pairs = [
        (ellipse.mask(*size), s.instance.mask()) for size, s in zip(sizes, samples, strict=True)
    ]
    assert score_ellipse(samples, ellipse) == Scores.of(overlap(*pair) for pair in pairs)


def test_silence_is_right_where_nothing_fits() -> None:
    empty = np.zeros((8, 8), bool)
    samples = [sample(0, "it"), sample(1, "none", empty), sample(2, "nothing", empty)]
    scores = score_nothing(samples)
    assert scores.miou == pytest.approx(2 / 3)
    assert scores.oiou == 0
    # And an ellipse is always wrong there.
    assert score_ellipse(samples[1:], Ellipse(0.5, 0.5, 0.3, 0.3)).miou == 0
    assert fit_ellipse(samples)[1].miou <= 1 / 3


def test_what_has_no_mask_is_refused() -> None:
    given = sample(0, "it")
    boxed = dataclasses.replace(given, instance=Instance(7, "dog", (0, 0, 1, 1), 1.0))
    with pytest.raises(DataError, match="instance 7 has a box only"):
        score_whole_photo([boxed])


def test_no_random_ellipse_beats_the_fitted_one() -> None:
    rng = np.random.default_rng(5)
    samples = []
    for index in range(12):
        mask = np.zeros((60, 80), bool)
        y, x = rng.integers(5, 35), rng.integers(5, 50)
        mask[y : y + rng.integers(6, 25), x : x + rng.integers(6, 30)] = True
        samples.append(sample(index, "it", mask))
    _, fitted = fit_ellipse(samples)
    for _ in range(300):
        cx, cy, rx, ry = rng.uniform((0.2, 0.2, 0.05, 0.05), (0.8, 0.8, 0.6, 0.6))
        assert score_ellipse(samples, Ellipse(cx, cy, rx, ry)).miou <= fitted.miou + 0.01


def test_the_whole_photo_scores_the_share_that_the_mask_covers() -> None:
    mask = np.zeros((10, 20), bool)
    mask[:5, :4] = True
    assert score_whole_photo([sample(0, "it", mask)]).miou == iou(np.ones_like(mask), mask) == 0.1


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 5))
def test_every_phrase_goes_to_another_photo_and_is_used_once(counts: list[int], seed: int) -> None:
    samples = [
        sample(photo, f"{photo} {i}") for photo, count in enumerate(counts) for i in range(count)
    ]
    if 2 * max(counts) > len(samples):
        with pytest.raises(DataError, match="more than half"):
            shuffled_phrases(samples, seed)
        return
    texts = shuffled_phrases(samples, seed)
    assert Counter(texts) == Counter(one.text for one in samples)
    assert all(int(t.split()[0]) != s.photo.id for s, t in zip(samples, texts, strict=True))
    assert texts == shuffled_phrases(samples, seed)


def test_seeds_shuffle_differently() -> None:
    samples = [sample(photo, str(photo)) for photo in range(20)]
    assert shuffled_phrases(samples, 0) != shuffled_phrases(samples, 1)


def test_nothing_cannot_be_fitted_or_shuffled() -> None:
    with pytest.raises(DataError, match="at least one sample"):
        best_ellipse([])
    with pytest.raises(DataError, match="got 0 samples"):
        shuffled_phrases([])
