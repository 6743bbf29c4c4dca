"""Photo to input, logits back to probabilities, and what is read and drawn from these."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cris_edge import InputError, Segmentation, draw
from cris_edge.letterbox import Float, Letterbox, cubic_resize, cubic_warp
from cris_edge.segmentation import COLOURS
from tests.scenes import small_model, small_tokenizer
from training.model import CRIS
from training.model.config import CLIP_MEAN

AUTHORS = Path(__file__).parent / "data" / "prepost.npz"
CASES = range(5)
THRESHOLD = 0.35

fixed = settings(derandomize=True, deadline=None, max_examples=60)
sides = st.integers(8, 600)
squares = st.sampled_from([32, 64, 96, 224, 416])
seeds = st.integers(0, 2**32 - 1)


@cache
def authors() -> dict[str, NDArray[np.generic]]:
    with np.load(AUTHORS) as content:
        return dict(content)


def case(number: int) -> tuple[Letterbox, dict[str, NDArray[np.generic]]]:
    start = f"{number}_"
    fields = {k.removeprefix(start): v for k, v in authors().items() if k.startswith(start)}
    return letterbox(int(fields["size"])), fields


def letterbox(size: int) -> Letterbox:
    return Letterbox(size, CLIP_MEAN)


@cache
def model() -> CRIS:
    return small_model(small_tokenizer())


def square_matrix(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])


def inside(box: Letterbox, height: int, width: int, margin: float) -> NDArray[np.bool_]:
    """Pixels of the photo that lie in the square at least `margin` from its border."""
    rows, columns = np.mgrid[:height, :width]
    points = np.stack([columns, rows, np.ones_like(rows)], -1) @ box.matrix(height, width).T
    return ((points >= margin) & (points <= box.size - 1 - margin)).all(-1)


# --- as the authors do it ---


def test_all_cases_of_the_authors_are_covered() -> None:
    assert {key.split("_")[0] for key in authors()} == {str(number) for number in CASES}


@pytest.mark.parametrize("number", CASES)
def test_a_photo_becomes_the_authors_input(number: int) -> None:
    box, fields = case(number)
    frame = box.frame(fields["image_bgr"])
    assert frame.shape == (box.size, box.size, 3)
    assert frame.dtype == np.uint8
    # Normalised by the model, which has the mean and the deviation of CLIP's.
    image = model().normalise(torch.from_numpy(frame[None]))
    np.testing.assert_array_equal(image[0].numpy(), fields["input_chw"])


@pytest.mark.parametrize("number", CASES)
def test_the_matrices_are_the_authors(number: int) -> None:
    box, fields = case(number)
    size = fields["image_bgr"].shape[:2]
    np.testing.assert_allclose(box.matrix(*size), fields["matrix"], atol=1e-6)
    np.testing.assert_allclose(box.inverse(*size), fields["inverse"], atol=1e-6)


@pytest.mark.parametrize("number", CASES)
def test_logits_become_the_authors_probabilities_and_masks(number: int) -> None:
    box, fields = case(number)
    probability = box.restore(fields["logits"], *fields["image_bgr"].shape[:2])
    # Theirs is not clipped where cubic interpolation overshoots.
    np.testing.assert_allclose(probability, np.clip(fields["probability"], 0, 1), atol=1e-4)
    agreement = ((probability > THRESHOLD) == fields["mask"]).mean()
    assert agreement >= 0.999
    assert 0.1 < fields["mask"].mean() < 0.9


# --- where a photo lies in the square ---


@fixed
@given(squares, sides, sides)
def test_there_and_back_is_where_it_was(size: int, height: int, width: int) -> None:
    box = letterbox(size)
    there, back = (square_matrix(m(height, width)) for m in (box.matrix, box.inverse))
    np.testing.assert_allclose(back @ there, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(there @ back, np.eye(3), atol=1e-3)


@fixed
@given(squares, sides, sides)
def test_a_photo_lies_whole_and_centred_in_the_square(size: int, height: int, width: int) -> None:
    matrix = letterbox(size).matrix(height, width)
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ matrix.T
    assert corners.min() >= -1e-3
    assert corners.max() <= size + 1e-3
    np.testing.assert_allclose(corners[0] + corners[3], size, atol=1e-3)
    # The longer side fills the square.
    assert np.ptp(corners, axis=0).max() == pytest.approx(size, abs=1e-3)


@fixed
@given(squares, sides, sides)
def test_a_photo_keeps_its_aspect_and_is_not_turned(size: int, height: int, width: int) -> None:
    (xx, xy, _), (yx, yy, _) = letterbox(size).matrix(height, width)
    assert xx == pytest.approx(yy, rel=1e-4)
    assert xx == pytest.approx(size / max(height, width), rel=1e-4)
    assert abs(xy) < 1e-6
    assert abs(yx) < 1e-6


def test_a_patch_lands_where_the_matrix_says_and_red_comes_first() -> None:
    photo, box = np.zeros((90, 120, 3), np.uint8), letterbox(64)
    photo[30:60, 60:90] = (0, 0, 255)
    colour = box.frame(photo).transpose(2, 0, 1) / 255
    (left, top), (right, bottom) = np.array([[60, 30, 1], [90, 60, 1]]) @ box.matrix(90, 120).T
    y, x = slice(round(top) + 1, round(bottom) - 1), slice(round(left) + 1, round(right) - 1)
    np.testing.assert_allclose(colour[0, y, x], 1, atol=0.05)
    np.testing.assert_allclose(colour[1:, y, x], 0, atol=0.05)
    outside = colour[0].copy()
    outside[round(top) - 2 : round(bottom) + 2, round(left) - 2 : round(right) + 2] = 0
    assert outside[10:54].max() < 0.05


def test_the_photo_is_left_as_it_is() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    before = photo.copy()
    letterbox(64).frame(photo)
    np.testing.assert_array_equal(photo, before)


# --- colours ---


@fixed
@given(squares, sides, sides, st.tuples(*[st.integers(0, 255)] * 3))
def test_a_photo_all_of_the_mean_colour_fills_the_square_with_it(
    size: int, height: int, width: int, rgb: tuple[int, int, int]
) -> None:
    red, green, blue = (value / 255 for value in rgb)
    photo = np.full((height, width, 3), rgb[::-1], np.uint8)
    frame = Letterbox(size, (red, green, blue)).frame(photo)
    assert (frame == rgb).all()


def test_the_border_is_of_clips_mean_colour() -> None:
    photo = np.full((20, 80, 3), 255, np.uint8)
    frame = letterbox(64).frame(photo)
    mean = np.array(CLIP_MEAN) * 255
    np.testing.assert_allclose(frame[:20], np.broadcast_to(mean, (20, 64, 3)), atol=0.5)
    np.testing.assert_allclose(frame[-20:], np.broadcast_to(mean, (20, 64, 3)), atol=0.5)
    assert frame[28:36].min() > 240


# --- from logits to probabilities ---


@fixed
@given(squares, sides, sides, st.floats(-8, 8, width=32))
def test_a_constant_logit_becomes_its_sigmoid(
    size: int, height: int, width: int, logit: float
) -> None:
    box = letterbox(size)
    probability = box.restore(np.full((size // 4, size // 4), logit, np.float32), height, width)
    chosen = probability[inside(box, height, width, margin=2)]
    assert chosen.size
    np.testing.assert_allclose(chosen, 1 / (1 + np.exp(-logit)), atol=1e-5)


@fixed
@given(squares, sides, sides, seeds)
def test_probabilities_have_the_photos_size_and_stay_in_0_to_1(
    size: int, height: int, width: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 20, (size // 4, size // 4)).astype(np.float32)
    probability = letterbox(size).restore(logits, height, width)
    assert probability.shape == (height, width)
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.max() <= 1


@pytest.mark.parametrize(("logit", "wanted"), [(-1000, 0), (1000, 1)])
def test_huge_logits_are_certain_and_warn_nobody(logit: float, wanted: float) -> None:
    box = letterbox(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probability = box.restore(np.full((16, 16), logit, np.float32), 60, 80)
    np.testing.assert_allclose(probability[inside(box, 60, 80, margin=2)], wanted, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 120))
@fixed
def test_cubic_weights_sum_to_1(inputs: int, outputs: int) -> None:
    weights = cubic_resize(inputs, outputs)
    assert weights.shape == (outputs, inputs)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 120)] * 2), seeds)
@fixed
def test_cubic_weights_resize_as_torch_does(
    inputs: tuple[int, int], outputs: tuple[int, int], seed: int
) -> None:
    values = np.random.default_rng(seed).random(inputs, np.float32)
    rows, columns = (cubic_resize(*pair) for pair in zip(inputs, outputs, strict=True))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], outputs, mode="bicubic", align_corners=True
    )
    np.testing.assert_allclose(rows @ values @ columns.T, wanted[0, 0].numpy(), atol=1e-4)


@given(sides, sides, st.floats(0.05, 20), st.floats(-300, 300), seeds)
@fixed
def test_cubic_weights_warp_as_opencv_does(
    inputs: int, outputs: int, scale: float, offset: float, seed: int
) -> None:
    values = np.random.default_rng(seed).random((5, inputs), np.float32)
    matrix = np.array([[scale, 0, offset], [0, 1, 0]])
    wanted = cv2.warpAffine(values, matrix, (outputs, 5), flags=cv2.INTER_CUBIC, borderValue=0)
    weights = cubic_warp(inputs, outputs, scale, offset)
    # OpenCV 4 works to 1/32 of a pixel.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    np.testing.assert_allclose(values @ weights.T, wanted, atol=1e-4 if exact else 0.05)


# --- masks ---


def disc(height: int, width: int) -> NDArray[np.bool_]:
    drawn = np.zeros((height, width), np.uint8)
    cv2.circle(drawn, (width // 2, height // 3), min(height, width) // 4, 1, cv2.FILLED)
    return drawn.astype(bool)


@fixed
@given(squares, sides, sides)
def test_a_mask_of_the_whole_photo_is_1_on_it_and_0_around(
    size: int, height: int, width: int
) -> None:
    box = letterbox(size)
    mask = box.mask(np.ones((height, width), bool))
    assert mask.shape == (size, size)
    assert mask.dtype == np.float32
    rows, columns = np.mgrid[:size, :size]
    points = np.stack([columns, rows, np.ones_like(rows)], -1) @ box.inverse(height, width).T
    x, y = points[..., 0], points[..., 1]
    # Linear interpolation works to 1/32 of a pixel and blends over one at the border.
    well_in = (x >= 0.1) & (y >= 0.1) & (x <= width - 1.1) & (y <= height - 1.1)
    well_out = (x < -1.1) | (y < -1.1) | (x > width + 0.1) | (y > height + 0.1)
    np.testing.assert_array_equal(mask[well_in], 1)
    np.testing.assert_array_equal(mask[well_out], 0)


def test_every_value_but_0_is_in_the_mask() -> None:
    mask, box = disc(120, 90), letterbox(96)
    wanted = box.mask(mask)
    assert 0.05 < wanted.mean() < 0.3
    assert wanted.min() == 0
    assert wanted.max() == 1
    for value in (1, 7, 255):
        np.testing.assert_array_equal(box.mask(np.uint8(value) * mask.astype(np.uint8)), wanted)


@pytest.mark.parametrize(("height", "width"), [(120, 90), (60, 200), (300, 300), (640, 480)])
def test_a_mask_comes_back_as_it_went(height: int, width: int) -> None:
    mask, box = disc(height, width), letterbox(224)
    logits: Float = 16 * box.mask(mask) - 8
    back = box.restore(logits, height, width) > 0.5
    assert (back & mask).sum() / (back | mask).sum() > 0.95


# --- what is read from probabilities ---


def result(values: object, threshold: float = 0.5, phrase: str = "dog") -> Segmentation:
    return Segmentation(phrase, np.array(values, np.float32), threshold)


def test_mask_coverage_score_and_box_are_exact() -> None:
    found = result(
        [[0.0, 0.1, 0.2, 0.0], [0.0, 0.75, 0.5, 0.0], [0.0, 0.0, 1.0, 0.25], [0.0, 0.0, 0.0, 0.0]]
    )
    # What lies at the threshold is not above it.
    np.testing.assert_array_equal(np.argwhere(found.mask), [[1, 1], [2, 2]])
    assert found.mask.dtype == bool
    assert (found.coverage, found.score, found.box) == (0.125, 0.875, (1, 1, 3, 3))


def test_an_empty_mask_has_no_box_and_scores_by_the_best_pixel() -> None:
    found = result([[0.0, 0.25], [0.5, 0.125], [0.0, 0.0]])
    assert not found.mask.any()
    assert (found.coverage, found.score, found.box) == (0, 0.5, None)


def test_a_whole_photo_and_its_last_pixel_have_boxes() -> None:
    assert result(np.ones((3, 7))).box == (0, 0, 7, 3)
    last = np.zeros((3, 7))
    last[2, 6] = 1
    assert result(last).box == (6, 2, 7, 3)


@fixed
@given(st.integers(1, 20), st.integers(1, 20), seeds, st.floats(0, 1))
def test_a_box_is_the_least_that_holds_the_mask(
    height: int, width: int, seed: int, threshold: float
) -> None:
    found = result(np.random.default_rng(seed).random((height, width)) ** 4, threshold)
    if found.box is None:
        assert not found.mask.any()
        return
    x1, y1, x2, y2 = found.box
    inner = found.mask[y1:y2, x1:x2]
    assert inner.sum() == found.mask.sum()
    assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))
    assert threshold < found.score <= 1


# --- what is drawn ---


def patch(y: int, x: int, phrase: str = "dog") -> Segmentation:
    """A mask of 60 x 60 pixels in a photo of 300 x 400."""
    values = np.zeros((300, 400), np.float32)
    values[y : y + 60, x : x + 60] = 0.9
    return result(values, phrase=phrase)


def scene() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (300, 400, 3), dtype=np.uint8)


@pytest.mark.parametrize("opacity", [0.0, 0.45, 1.0])
def test_an_overlay_is_a_new_photo_that_differs_as_drawn(opacity: float) -> None:
    photo, colour = scene(), (10, 200, 90)
    drawn = patch(120, 150).overlay(photo, colour, opacity)
    np.testing.assert_array_equal(photo, scene())
    assert not np.shares_memory(drawn, photo)
    assert (drawn.shape, drawn.dtype) == (photo.shape, np.uint8)
    within = np.s_[125:175, 155:205]
    np.testing.assert_array_equal(
        drawn[within], (photo[within] * (1 - opacity) + np.array(colour) * opacity).round()
    )
    # The outline is anti-aliased, so not quite of its colour.
    assert np.abs(drawn[120, 150:210] - np.array(colour)).max() < 60
    changed = (drawn != photo).any(-1)
    # The outline is a few pixels wide, and the phrase stands right above the mask.
    changed[116:184, 146:214] = False
    assert 100 < changed[90:120, 150:].sum() == changed.sum()


def test_an_overlay_takes_what_predict_takes(tmp_path: Path) -> None:
    photo, path = scene(), tmp_path / "photo.png"
    cv2.imwrite(str(path), photo)
    found = patch(120, 150)
    wanted = found.overlay(photo)
    np.testing.assert_array_equal(found.overlay(path), wanted)
    np.testing.assert_array_equal(found.overlay(np.dstack([photo, photo[..., 0]])), wanted)
    assert found.overlay(photo[..., 0]).shape == (300, 400, 3)


def test_a_photo_of_another_size_is_refused() -> None:
    for photo in (scene().transpose(1, 0, 2), scene()[:299], scene()[:, :399]):
        with pytest.raises(InputError, match=r"the mask is \(300, 400\), the photo \("):
            draw(photo, [patch(120, 150)])


def test_several_masks_have_colours_of_their_own() -> None:
    corners = [(y, x) for y in (60, 200) for x in (20, 150, 300)]
    assert len(corners) > len(COLOURS)
    drawn = draw(np.zeros((300, 400, 3), np.uint8), [patch(*corner) for corner in corners])
    for number, (y, x) in enumerate(corners):
        colour = np.array(COLOURS[number % len(COLOURS)])
        assert (drawn[y + 9 : y + 50, x + 9 : x + 50] == (colour * 0.45).round()).all()
    np.testing.assert_array_equal(draw(scene(), []), scene())


def test_phrases_that_found_nothing_are_listed_down_the_left_border() -> None:
    nothing = [result(np.zeros((300, 400)), phrase=phrase) for phrase in ("dog", "cat")]
    one, both = draw(scene(), nothing[:1]), draw(scene(), nothing)
    rows, columns = ((one != scene()).any(axis=(other, 2)).nonzero()[0] for other in (1, 0))
    assert (rows[0], columns[0]) == (0, 0)
    assert columns[-1] < 390
    added = (both != one).any(axis=(1, 2)).nonzero()[0]
    assert rows[-1] - 1 <= added[0] < added[-1] < 100


@pytest.mark.parametrize("phrase", ["dog", "日本語 ☕", "a very long phrase " * 20])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_any_phrase_fits_on_the_smallest_photo(phrase: str, value: float) -> None:
    found = result(np.full((8, 8), value), phrase=phrase)
    assert found.overlay(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8, 3)
