"""What a batch is made of: which photos, and which phrases stand apart."""

from __future__ import annotations

import torch

from training.data.batches import StepSampler, distinct
from training.recipe import Recipe


def test_a_phrase_is_distinct_where_none_before_it_names_the_same() -> None:
    instances = torch.tensor([[3, 3, 5, -1, 5], [-1, -1, 0, 1, 0], [2, 4, 6, 8, 9]])
    expected = [
        [True, False, True, False, False],
        [False, False, True, True, False],
        [True] * 5,
    ]
    assert distinct(instances).tolist() == expected


def order(repeats: list[int], epoch: int = 0, seed: int = 0) -> list[tuple[int, int]]:
    """Photos and draws of an epoch in steps of one photo."""
    recipe = Recipe(photos=1, seed=seed, epochs=epoch + 1)
    parts = list(StepSampler(repeats, recipe, epoch * sum(repeats)))
    assert all(place[0] == epoch for part in parts for place in part)
    return [(photo, draw) for part in parts for _, photo, draw in part]


def test_an_epoch_sees_every_photo_as_often_as_it_should() -> None:
    seen = order([2, 1, 3, 0, 1])
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (4, 0)]


def test_the_order_of_an_epoch_is_fixed_by_seed_and_epoch() -> None:
    def of(seed: int, epoch: int) -> list[tuple[int, int]]:
        return order([2] * 20, seed=seed, epoch=epoch)

    assert of(1, 2) == of(1, 2)
    different = [of(1, 2), of(1, 3), of(2, 2), of(2, 1), sorted(of(1, 2))]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])
