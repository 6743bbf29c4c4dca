"""What is learnt from a teacher, on cases that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from quantize import lessons


def test_who_knows_it_all_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    logits, pixels, words = torch.randn(2, 6, 6), torch.randn(2, 8, 6, 6), torch.randn(2, 5, 8)
    relation, known = lessons.relation(pixels, words), torch.ones(2, 5, dtype=torch.bool)
    everywhere = torch.ones(2, 6, 6)
    assert lessons.soft_masks(logits, logits, everywhere, 3.0).abs() < 1e-5
    assert lessons.relations(relation, relation, known).abs() < 1e-6
    assert lessons.features(pixels, 2 * pixels).abs() < 1e-6
    assert lessons.soft_masks(logits, -logits, everywhere, 3.0) > 0.1
    assert lessons.relations(relation, -relation, known) == pytest.approx(2, abs=1e-5)
    assert lessons.features(pixels, -pixels) == pytest.approx(2, abs=1e-5)


def test_what_all_places_have_in_common_is_no_lesson() -> None:
    torch.manual_seed(0)
    pixels, common = torch.randn(2, 8, 6, 6), 9 * torch.randn(8, 1, 1)
    assert lessons.features(pixels, pixels + common).abs() < 1e-5
    # Cosines at each place call these alike; they have nothing else in common.
    assert lessons.features(pixels + common, pixels.roll(1, 0) + common) > 0.5
    relation, known = torch.rand(2, 5, 6, 6), torch.ones(2, 5, dtype=torch.bool)
    words = torch.randn(2, 5, 1, 1)
    assert lessons.relations(relation, relation + words, known).abs() < 1e-5
    # A word that the two split otherwise says nothing.
    known[:, 2] = False
    changed = relation.clone()
    changed[:, 2] = torch.rand(2, 6, 6)
    assert lessons.relations(relation, changed, known).abs() < 1e-5
    assert lessons.relations(relation, changed, torch.zeros_like(known)) == 0


def test_relations_do_not_know_how_features_are_turned() -> None:
    torch.manual_seed(0)
    pixels, words = torch.randn(2, 8, 6, 6), torch.randn(2, 5, 8)
    turn, _ = torch.linalg.qr(torch.randn(8, 8))
    turned = torch.einsum("nchw,cd->ndhw", pixels, turn)
    torch.testing.assert_close(
        lessons.relation(turned, words @ turn), lessons.relation(pixels, words)
    )


def test_soft_masks_are_the_divergence_of_bernoulli_distributions() -> None:
    mine, taught, temperature = torch.tensor([[[0.7]]]), torch.tensor([[[-1.3]]]), 2.0
    p, q = (torch.sigmoid(x / temperature) for x in (taught, mine))
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    found = lessons.soft_masks(mine, taught, torch.ones(1, 1, 1), temperature)
    assert found == pytest.approx(temperature**2 * divergence.item(), rel=1e-4)


def test_soft_masks_lie_on_each_other_corner_on_corner() -> None:
    def slope(side: int) -> torch.Tensor:
        """Logits of one and the same slope over a photo, whose corners are the first and last."""
        along = torch.linspace(-4, 4, side)
        return (along[:, None] + along)[None]

    found = lessons.soft_masks(slope(20), slope(26), torch.ones(1, 20, 20), 1.0)
    assert found.abs() < 1e-6


def test_words_that_are_split_otherwise_are_not_compared() -> None:
    mine = torch.tensor([[9, 1, 2, 10, 0], [9, 3, 10, 0, 0]])
    taught = torch.tensor([[90, 11, 12, 91, 0, 0], [90, 13, 14, 91, 0, 0]])
    assert lessons.same_words(mine, taught).tolist() == [[True] * 4 + [False], [False] * 5]
