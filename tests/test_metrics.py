"""IoU and what is made of it, by its definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.metrics import Overlap, Scores, iou, overlap

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)


@st.composite
def two_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    return draw(arrays.arrays(bool, shape)), draw(arrays.arrays(bool, shape))


OVERLAPS = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(lambda p: Overlap(min(p), max(p))),
    min_size=1,
    max_size=20,
)


@given(two_masks())
def test_iou_is_symmetric_and_between_0_and_1(masks: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = masks
    assert iou(first, second) == iou(second, first)
    assert 0 <= iou(first, second) <= 1
    assert iou(first, first) == 1


@given(two_masks())
def test_iou_agrees_with_counting_sets_of_pixels(masks: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = ({tuple(p) for p in np.argwhere(mask).tolist()} for mask in masks)
    expected = len(first & second) / len(first | second) if first | second else 1.0
    assert iou(*masks) == expected


@given(two_masks(), st.integers(2, 4))
def test_iou_does_not_depend_on_scale(masks: tuple[np.ndarray, np.ndarray], factor: int) -> None:
    block = np.ones((factor, factor), bool)
    larger = [np.kron(mask, block).astype(bool) for mask in masks]
    assert iou(*larger) == pytest.approx(iou(*masks))


def test_two_empty_masks_agree_and_one_empty_mask_does_not() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert iou(empty, empty) == 1
    assert iou(empty, full) == iou(full, empty) == 0


@pytest.mark.parametrize(
    "other", [np.ones((1, 4), bool), np.ones((3, 4), np.uint8), np.ones((4, 3), bool)]
)
def test_masks_of_other_shapes_or_types_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="two bool masks of one shape"):
        overlap(np.ones((3, 4), bool), other)


def test_counts_that_no_masks_have_are_refused() -> None:
    with pytest.raises(ValueError, match="intersection 3 and union 2"):
        Overlap(3, 2)


def test_scores_of_known_overlaps() -> None:
    scores = Scores.of([Overlap(1, 2), Overlap(90, 100), Overlap(0, 898), Overlap(55, 100)])
    assert scores.count == 4
    assert scores.miou == pytest.approx((0.5 + 0.9 + 0 + 0.55) / 4)
    assert scores.oiou == pytest.approx(146 / 1100)
    # 0.5 does not lie above 0.5, nor 0.9 above 0.9.
    assert scores.precision == (0.5, 0.25, 0.25, 0.25, 0.0)
    named = scores.as_dict()
    assert list(named) == ["count", "mIoU", "oIoU", "Pr@50", "Pr@60", "Pr@70", "Pr@80", "Pr@90"]
    assert named["Pr@50"] == 0.5


@given(OVERLAPS)
def test_precision_falls_as_the_limit_rises_and_bounds_the_mean(each: list[Overlap]) -> None:
    scores = Scores.of(each)
    assert list(scores.precision) == sorted(scores.precision, reverse=True)
    assert min(o.iou for o in each) - 1e-12 <= scores.miou <= max(o.iou for o in each) + 1e-12
    assert 0 <= scores.oiou <= 1


@given(OVERLAPS, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(each: list[Overlap], random) -> None:
    shuffled = list(each)
    random.shuffle(shuffled)
    first, second = Scores.of(each), Scores.of(shuffled)
    assert first.miou == pytest.approx(second.miou)
    assert (first.oiou, first.precision) == (second.oiou, second.precision)


@given(OVERLAPS)
def test_overall_iou_weighs_samples_by_their_pixels(each: list[Overlap]) -> None:
    huge = Overlap(0, 10**9)
    assert Scores.of([*each, huge]).oiou < 1e-4
    assert Scores.of([*each, huge]).miou == pytest.approx(
        Scores.of(each).miou * len(each) / (len(each) + 1)
    )


def test_no_samples_have_no_scores() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Scores.of([])
