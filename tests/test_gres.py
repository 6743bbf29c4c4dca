"""N-acc, T-acc, gIoU and cIoU by the rules of GRES, on cases reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.gres import Answer, GresScores
from training.metrics import Overlap


def answer(shared: int, predicted: int, truth: int, fits: bool = True) -> Answer:
    return Answer(Overlap(shared, predicted + truth - shared), predicted, fits)


def nothing(predicted: int) -> Answer:
    """The answer to an expression that fits nothing."""
    return answer(0, predicted, 0, fits=False)


@st.composite
def targets(draw: st.DrawFn) -> Answer:
    shared = draw(st.integers(0, 200))
    more = st.integers(0, 200)
    return answer(shared, shared + draw(more), shared + draw(more) + 1)


ANSWERS = st.lists(st.one_of(targets(), st.builds(nothing, st.integers(0, 200))), min_size=1)


def test_a_case_reckoned_by_hand() -> None:
    scores = GresScores.of(
        [
            answer(shared=300, predicted=400, truth=500),  # IoU 300 / 600
            answer(shared=40, predicted=50, truth=100),  # emptied: IoU 0, 100 pixels missed
            answer(shared=60, predicted=60, truth=60),  # IoU 1
            nothing(predicted=50),  # rightly called targetless
            nothing(predicted=51),  # not called so: 51 pixels too many
        ]
    )
    assert (scores.count, scores.targetless) == (5, 2)
    assert scores.n_acc == pytest.approx(1 / 2)
    assert scores.t_acc == pytest.approx(2 / 3)
    assert scores.giou == pytest.approx((0.5 + 0 + 1 + 1 + 0) / 5)
    assert scores.ciou == pytest.approx((300 + 60) / (600 + 100 + 60 + 51))
    assert scores.as_dict() == {
        "count": 5,
        "targetless": 2,
        "N-acc": scores.n_acc,
        "T-acc": scores.t_acc,
        "gIoU": scores.giou,
        "cIoU": scores.ciou,
    }


@pytest.mark.parametrize(("pixels", "empty"), [(0, True), (50, True), (51, False), (9000, False)])
def test_a_mask_of_at_most_50_pixels_says_that_nothing_fits(pixels: int, empty: bool) -> None:
    assert nothing(pixels).empty is answer(0, pixels, 80).empty is empty
    assert nothing(pixels).iou == float(empty)
    assert answer(0, pixels, 80).iou == 0


def test_without_one_kind_of_samples_its_accuracy_is_unknown() -> None:
    only_nothing = GresScores.of([nothing(0), nothing(10)])
    assert (only_nothing.n_acc, only_nothing.t_acc) == (1, None)
    assert only_nothing.giou == only_nothing.ciou == 1
    only_targets = GresScores.of([answer(70, 90, 80)])
    assert (only_targets.n_acc, only_targets.t_acc) == (None, 1)
    assert only_targets.giou == only_targets.ciou == 70 / 100


def test_a_target_whose_mask_is_empty_is_missed_by_an_empty_prediction() -> None:
    assert answer(0, 0, 0).iou == 0
    assert nothing(0).iou == 1


@given(ANSWERS)
def test_figures_agree_with_their_definitions(each: list[Answer]) -> None:
    scores = GresScores.of(each)
    kinds = {(a.fits, a.predicted <= 50): 0 for a in each}
    for a in each:
        kinds[a.fits, a.predicted <= 50] += 1
    found = kinds.get((False, True), 0), kinds.get((False, False), 0)
    assert scores.n_acc == (found[0] / sum(found) if sum(found) else None)
    kept = kinds.get((True, False), 0), kinds.get((True, True), 0)
    assert scores.t_acc == (kept[0] / sum(kept) if sum(kept) else None)
    ious = []
    for a in each:
        if a.predicted <= 50:
            ious.append(float(not a.fits))
        else:
            ious.append(a.overlap.intersection / a.overlap.union if a.fits else 0.0)
    assert scores.giou == pytest.approx(np.mean(ious))
    assert 0 <= scores.ciou <= 1


@given(st.lists(targets().filter(lambda a: a.predicted > 50), min_size=1))
def test_where_all_fits_and_masks_are_large_gres_is_the_usual(each: list[Answer]) -> None:
    scores = GresScores.of(each)
    shared = sum(a.overlap.intersection for a in each)
    assert scores.giou == pytest.approx(np.mean([a.overlap.iou for a in each]))
    assert scores.ciou == pytest.approx(shared / sum(a.overlap.union for a in each))
    assert scores.t_acc == 1


@given(ANSWERS)
def test_right_empty_answers_add_nothing_to_ciou_and_wrong_masks_lower_it(
    each: list[Answer],
) -> None:
    scores = GresScores.of(each)
    pixels = sum(a.counted.union for a in each)
    assert GresScores.of([*each, nothing(50)]).ciou == scores.ciou
    wrong = GresScores.of([*each, nothing(1000)])
    assert wrong.ciou == pytest.approx(scores.ciou * pixels / (pixels + 1000))
    assert wrong.giou == pytest.approx(scores.giou * len(each) / (len(each) + 1))


@pytest.mark.parametrize(
    ("overlap", "predicted", "fits"),
    [
        (Overlap(3, 10), 2, True),
        (Overlap(3, 10), 11, True),
        (Overlap(0, 10), 5, False),  # true pixels where nothing fits
    ],
)
def test_counts_that_no_prediction_has_are_refused(
    overlap: Overlap, predicted: int, fits: bool
) -> None:
    with pytest.raises(ValueError, match="expected intersection <= predicted <= union"):
        Answer(overlap, predicted, fits)


def test_no_samples_have_no_scores() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        GresScores.of([])
