"""The losses say what they should on cases that can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.data.batches import distinct
from training.losses import (
    NounHead,
    cross_entropy,
    dice,
    masked_mean,
    naming,
    quiet,
    referent,
    which,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SURE = 20.0
"""A logit so high that its probability is 1 for all purposes."""


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def corner(rows: int, columns: int, side: int = 4) -> Tensor:
    mask = torch.zeros(side, side)
    mask[:rows, :columns] = 1
    return mask


def certain(masks: Tensor) -> Tensor:
    """Logits of exactly these masks."""
    return SURE * (2 * masks - 1)


def everywhere(*shape: int) -> Tensor:
    return torch.ones(*shape, 4, 4)


# --- means over pixels ---


def test_a_masked_mean_counts_the_valid_pixels_alone() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 100.0]], [[5.0, 5.0], [5.0, 5.0]]])
    valid = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert masked_mean(values, valid).tolist() == [2.0, 0.0]


# --- cross-entropy ---


def test_cross_entropy_of_hand_computed_cases() -> None:
    masks = torch.stack([corner(2, 2), corner(4, 4), corner(0, 0)])
    logits = torch.zeros(3, 4, 4)
    assert torch.allclose(
        cross_entropy(logits, masks, everywhere(3)), torch.full((3,), math.log(2))
    )
    logits[1] = 3.0
    # -log sigmoid(3) where the mask is, and nothing else is.
    assert cross_entropy(logits, masks, everywhere(3))[1].item() == pytest.approx(0.0485874)


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_a_perfect_prediction_costs_nothing_and_its_opposite_much(loss: Loss) -> None:
    masks = torch.stack([corner(2, 2), corner(1, 3)])
    right, wrong = (loss(certain(m), masks, everywhere(2)) for m in (masks, 1 - masks))
    assert right.max() < 1e-6
    assert wrong.min() > 0.7


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_ignored_pixels_do_not_matter(loss: Loss, rng: torch.Generator) -> None:
    logits, masks = torch.randn(2, 4, 4, generator=rng), torch.stack([corner(2, 2), corner(3, 1)])
    valid = everywhere(2)
    valid[:, 1] = 0
    changed, painted = logits.clone(), masks.clone()
    changed[:, 1], painted[:, 1] = 50.0, 1.0
    before = loss(logits, masks, valid)
    assert torch.equal(loss(changed, painted, valid), before)
    assert not torch.allclose(loss(changed, painted, everywhere(2)), before)


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_phrases_are_judged_one_by_one(loss: Loss, rng: torch.Generator) -> None:
    logits = torch.randn(3, 4, 4, generator=rng)
    masks, valid = torch.stack([corner(2, 2), corner(3, 1), corner(1, 4)]), everywhere(3)
    order = torch.tensor([2, 0, 1])
    apart = torch.cat(
        [loss(logits[i : i + 1], masks[i : i + 1], valid[i : i + 1]) for i in range(3)]
    )
    assert torch.allclose(loss(logits, masks, valid), apart)
    assert torch.allclose(loss(logits[order], masks[order], valid), apart[order])


def test_cross_entropy_punishes_what_an_absent_phrase_finds() -> None:
    none, valid = torch.zeros(1, 4, 4), everywhere(1)
    assert cross_entropy(certain(none), none, valid).item() < 1e-6
    assert cross_entropy(certain(1 - none), none, valid).item() == pytest.approx(SURE)


# --- quiet ---


def test_quiet_counts_what_is_found_by_a_phrase_that_fits_nothing() -> None:
    masks = torch.stack([torch.zeros(8, 8), torch.zeros(8, 8), corner(2, 2, 8)])
    # Four of 64 pixels are painted: as much as all of them.
    predicted = torch.stack([corner(2, 2, 8), torch.ones(8, 8), torch.zeros(8, 8)])
    valid = torch.ones(3, 8, 8)
    found = quiet(certain(predicted), masks, valid)
    assert found.tolist() == pytest.approx([SURE, SURE, 0], abs=1e-4)
    assert quiet(certain(masks), masks, valid).abs().max() < 1e-6


def test_quiet_leaves_out_what_is_ignored_and_what_has_an_outline() -> None:
    none, painted = torch.zeros(1, 8, 8), corner(2, 2, 8)[None]
    logits = certain(painted).requires_grad_()
    quiet(logits, none, 1 - painted).sum().backward()
    assert logits.grad is not None
    assert (logits.grad * painted).abs().max() == 0
    assert quiet(certain(1 - painted), painted, torch.ones(1, 8, 8)).item() == 0


# --- dice ---


def test_dice_of_hand_computed_cases() -> None:
    masks = torch.stack([corner(2, 2), corner(2, 2), corner(2, 2)])
    predicted = torch.stack([corner(2, 4), corner(1, 2), 1 - corner(2, 2)])
    # 1 - (2 * shared + 1) / (predicted + true + 1), in pixels.
    expected = torch.tensor([1 - 9 / 13, 1 - 5 / 7, 1 - 1 / 17])
    assert torch.allclose(dice(certain(predicted), masks, everywhere(3)), expected, atol=1e-5)


def test_dice_is_least_where_soft_outlines_are_met(rng: torch.Generator) -> None:
    soft, valid = torch.rand(1, 6, 6, generator=rng), torch.ones(1, 6, 6)
    least = dice(torch.logit(soft), soft, valid).item()
    assert least == pytest.approx(0, abs=1e-6)
    for shift in (-0.5, 0.5):
        assert dice(torch.logit(soft) + shift, soft, valid).item() > 0.05


def test_it_does_not_pay_to_be_undecided_between_two_things() -> None:
    masks, valid = corner(20, 20, 40)[None], torch.ones(1, 40, 40)
    other = masks.flip(1, 2)
    right, wrong = (dice(certain(said), masks, valid).item() for said in (masks, other))
    undecided = torch.where((masks + other) > 0, 0.0, -SURE)
    assert dice(undecided, masks, valid).item() == pytest.approx((right + wrong) / 2, abs=1e-3)


def test_an_absent_phrase_has_no_dice(rng: torch.Generator) -> None:
    logits = torch.randn(2, 4, 4, generator=rng, requires_grad=True)
    masks = torch.stack([torch.zeros(4, 4), corner(2, 2)])
    loss = dice(logits, masks, everywhere(2))
    assert loss[0].item() == 0
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert logits.grad[1].abs().max() > 0


def test_dice_weighs_small_things_as_heavily_as_large_ones() -> None:
    small, large = torch.zeros(1, 40, 40), torch.zeros(1, 40, 40)
    small[0, :4, :4], large[0, :, :20] = 1, 1
    valid, nothing = torch.ones(1, 40, 40), certain(torch.zeros(1, 40, 40))
    missed = [dice(nothing, masks, valid).item() for masks in (small, large)]
    assert min(missed) > 0.9
    pixels = [cross_entropy(nothing, masks, valid).item() for masks in (small, large)]
    assert pixels[0] < 0.03 * pixels[1]


# --- which of several ---


def two_rivals() -> tuple[Tensor, Tensor, Tensor]:
    """Masks (1, 2, 4, 4) of a left and a right thing, valid (1, 4, 4), distinct (1, 2)."""
    left = corner(4, 2)
    return torch.stack([left, 1 - left])[None], everywhere(1), torch.ones(1, 2, dtype=torch.bool)


def one_of(logits: Tensor, masks: Tensor, valid: Tensor, distinct_: Tensor) -> Tensor:
    return which(logits, masks, valid, distinct_, torch.ones(logits.shape[:2]))


def test_which_of_a_hand_computed_case() -> None:
    masks, valid, distinct_ = two_rivals()
    # Three equal chances for each pixel: either phrase, or none.
    loss = one_of(torch.zeros(1, 2, 4, 4), masks, valid, distinct_)
    assert loss.item() == pytest.approx(math.log(3))
    assert one_of(certain(masks), masks, valid, distinct_).item() < 1e-6
    swapped = one_of(certain(masks.flip(1)), masks, valid, distinct_)
    assert swapped.item() == pytest.approx(2 * SURE, rel=1e-3)


def test_which_falls_when_the_rival_claims_less() -> None:
    masks, valid, distinct_ = two_rivals()
    losses = []
    for claim in (4.0, 1.0, -2.0, -5.0):
        logits = certain(masks) / SURE * 2
        # What the right one's phrase claims of the left one.
        logits[0, 1, :, :2] = claim
        losses.append(one_of(logits, masks, valid, distinct_).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 3 * losses[-1]


def test_which_sees_a_rivals_claim_that_cross_entropy_of_the_phrase_does_not() -> None:
    masks, valid, distinct_ = two_rivals()
    logits = certain(masks) / SURE * 2
    greedy = logits.clone()
    greedy[0, 1, :, :2] = 6.0
    first = [cross_entropy(x[:, 0], masks[:, 0], valid) for x in (logits, greedy)]
    assert torch.equal(*first)
    assert one_of(greedy, masks, valid, distinct_) > 2 * one_of(logits, masks, valid, distinct_)


def test_which_gives_a_pixel_to_what_covers_half_of_it() -> None:
    masks, valid, distinct_ = two_rivals()
    logits = certain(masks)
    # An outline is taught so that half covered comes to 0.35.
    assert one_of(logits, 0.36 * masks, valid, distinct_).item() < 1e-6
    assert one_of(logits, 0.34 * masks, valid, distinct_).item() > SURE / 2


def test_which_leaves_out_ignored_and_disputed_pixels(rng: torch.Generator) -> None:
    masks, valid, distinct_ = two_rivals()
    masks[0, :, 0], valid[0, 3] = 1, 0
    logits = torch.randn(1, 2, 4, 4, generator=rng)
    before = one_of(logits, masks, valid, distinct_)
    for row in (0, 3):
        changed = logits.clone()
        changed[0, :, row] = 30.0
        assert torch.equal(one_of(changed, masks, valid, distinct_), before)
    changed[0, :, 1] = 30.0
    assert not torch.allclose(one_of(changed, masks, valid, distinct_), before)


def test_which_leaves_out_phrases_that_are_not_distinct(rng: torch.Generator) -> None:
    masks, valid, distinct_ = two_rivals()
    logits = torch.randn(1, 2, 4, 4, generator=rng)
    before = one_of(logits, masks, valid, distinct_)
    # The first thing again by other words, and a phrase that fits nothing.
    more = torch.stack([masks[0, 0], torch.zeros(4, 4)])[None]
    claims = torch.randn(1, 2, 4, 4, generator=rng)
    padded = one_of(
        torch.cat([logits, claims], 1),
        torch.cat([masks, more], 1),
        valid,
        torch.cat([distinct_, torch.zeros(1, 2, dtype=torch.bool)], 1),
    )
    assert torch.allclose(padded, before)


def test_which_does_not_depend_on_the_order_of_photos_and_phrases(rng: torch.Generator) -> None:
    logits = torch.randn(3, 2, 4, 4, generator=rng)
    masks, _, _ = two_rivals()
    masks = torch.cat([masks, masks.flip(1), masks * corner(3, 3)])
    valid = everywhere(3)
    valid[1, 0] = 0
    distinct_ = torch.tensor([[True, True], [True, False], [True, True]])
    before = one_of(logits, masks, valid, distinct_)
    photos = torch.tensor([2, 0, 1])
    shuffled = (part[photos] for part in (logits, masks, valid, distinct_))
    assert torch.allclose(one_of(*shuffled), before)
    turned = one_of(logits.flip(1), masks.flip(1), valid, distinct_.flip(1))
    assert torch.allclose(turned, before)


def test_which_trusts_a_mask_by_its_weight(rng: torch.Generator) -> None:
    masks, valid, distinct_ = two_rivals()
    # The last column is nobody's.
    masks[0, 1, :, 3] = 0
    logits = torch.randn(1, 2, 4, 4, generator=rng)
    losses = [which(logits, masks, valid, distinct_, torch.tensor([[w, 1.0]])) for w in (1, 0.5, 0)]
    assert losses[0] - losses[1] == pytest.approx(float(losses[1] - losses[2]), rel=1e-4)
    assert losses[0] > losses[1] > losses[2] > 0
    of_the_first = logits[..., :2].clone()
    alone = one_of(of_the_first, masks[..., :2], valid[..., :2], distinct_)
    assert float(losses[0] - losses[2]) == pytest.approx(float(alone) / 2, rel=1e-4)


# --- what a phrase means ---


def big_and_small() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks (1, 2, 4, 4) of twelve pixels and of one, valid, weight (1, 2) and instances (1, 2)."""
    masks = torch.stack([corner(3, 4), corner(4, 4) - corner(4, 3) - corner(3, 4)])[None]
    masks = masks.clamp(min=0)
    assert masks.sum((-2, -1)).tolist() == [[12, 1]]
    return masks, everywhere(1), torch.ones(1, 2), torch.tensor([[7, 3]])


def meant(
    logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor, instances: Tensor
) -> Tensor:
    return referent(logits, masks, valid, distinct(instances), weight, instances)


def test_referent_does_not_mind_what_lies_in_the_thing_that_is_meant() -> None:
    person, tie = corner(4, 2), corner(2, 1)
    masks, instances = torch.stack([person, tie])[None], torch.tensor([[7, 3]])
    arguments = masks, everywhere(1), torch.ones(1, 2), instances
    # The person with the tie is the person; the person without is none of the tie.
    assert meant(certain(masks), *arguments).item() < 1e-6
    half = torch.stack([person, corner(4, 4) - corner(4, 1)])[None]
    arguments = half, everywhere(1), torch.ones(1, 2), instances
    assert meant(certain(half), *arguments).item() < 1e-6
    assert meant(certain(half.flip(1)), *arguments).item() > SURE / 2


def test_referent_of_a_hand_computed_case() -> None:
    masks, valid, weight, instances = big_and_small()
    # Three equal chances: either thing, or none of them.
    undecided = meant(torch.zeros(1, 2, 4, 4), masks, valid, weight, instances)
    assert undecided.item() == pytest.approx(math.log(3))
    assert meant(certain(masks), masks, valid, weight, instances).item() < 1e-6
    swapped = meant(certain(masks.flip(1)), masks, valid, weight, instances)
    assert swapped.item() == pytest.approx(2 * SURE, rel=1e-3)


def test_referent_takes_a_small_rival_for_as_much_as_a_large_one() -> None:
    masks, valid, weight, instances = big_and_small()
    right = certain(masks) / SURE
    losses = []
    for phrase, rival in ((0, 1), (1, 0)):
        logits = right.clone()
        logits[0, phrase][masks[0, rival] > 0] = 1.0
        losses.append(meant(logits, masks, valid, weight, instances).item())
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > meant(right, masks, valid, weight, instances).item()


def test_referent_asks_that_something_be_found() -> None:
    masks, valid, weight, instances = big_and_small()
    logits = certain(masks) / SURE
    loud, silent = (
        meant(logits + shift, masks, valid, weight, instances).item() for shift in (0, -9)
    )
    assert silent > loud + 5


def test_referent_hears_other_words_for_a_thing_and_leaves_out_what_fits_nothing(
    rng: torch.Generator,
) -> None:
    masks, valid, weight, instances = big_and_small()
    logits = torch.randn(1, 2, 4, 4, generator=rng)
    before = meant(logits, masks, valid, weight, instances).item()
    # The same phrases again, once for a thing each, and two that fit nothing.
    nothing = torch.zeros(1, 2, 4, 4)
    more = meant(
        torch.cat([logits, logits.flip(1), torch.randn(1, 2, 4, 4, generator=rng)], 1),
        torch.cat([masks, masks.flip(1), nothing], 1),
        valid,
        torch.ones(1, 6),
        torch.tensor([[7, 3, 3, 7, -1, -1]]),
    )
    assert 6 * more.item() == pytest.approx(2 * 2 * before)


def test_referent_counts_no_ignored_pixels_and_trusts_a_mask_by_its_weight(
    rng: torch.Generator,
) -> None:
    masks, valid, weight, instances = big_and_small()
    valid[0, 0] = 0
    logits = torch.randn(1, 2, 4, 4, generator=rng)
    before = meant(logits, masks, valid, weight, instances)
    changed = logits.clone()
    changed[0, :, 0] = 30.0
    assert torch.equal(meant(changed, masks, valid, weight, instances), before)
    assert torch.allclose(meant(logits, masks, valid, weight / 2, instances), before / 2)
    # With nothing of it in sight a thing can neither be meant nor taken for another.
    valid[0, 3] = 0
    alone = meant(logits, masks, valid, weight, instances)
    one = meant(logits[:, :1], masks[:, :1], valid, weight[:, :1], instances[:, :1])
    assert 2 * alone.item() == pytest.approx(one.item())


# --- what things are called ---


def test_naming_of_hand_computed_cases() -> None:
    categories = torch.tensor([[[0, 1], [2, -1]]])
    # Three equal chances for each pixel that is known, of four.
    assert naming(torch.zeros(1, 3, 2, 2), categories).item() == pytest.approx(0.75 * math.log(3))
    right = SURE * torch.nn.functional.one_hot(categories.clamp(min=0), 3).permute(0, 3, 1, 2)
    assert naming(right.float(), categories).item() < 1e-6


def test_naming_passes_over_what_is_not_known(rng: torch.Generator) -> None:
    logits = torch.randn(1, 3, 2, 2, generator=rng)
    categories = torch.tensor([[[0, 1], [2, -1]]])
    before = naming(logits, categories)
    changed = logits.clone()
    changed[:, :, 1, 1] = torch.tensor([9.0, -9.0, 3.0])
    assert torch.allclose(naming(changed, categories), before)
    assert naming(logits, torch.full((1, 2, 2), -1)).item() == 0


def test_naming_is_the_mean_of_what_parts_of_a_batch_come_to(rng: torch.Generator) -> None:
    logits = torch.randn(2, 3, 2, 2, generator=rng)
    categories = torch.tensor([[[0, 1], [2, 1]], [[-1, -1], [0, -1]]])
    halves = [naming(logits[[one]], categories[[one]]) for one in range(2)]
    assert torch.allclose(naming(logits, categories), sum(halves) / 2)


def test_the_noun_head_names_pixels_by_the_nouns_it_is_given(rng: torch.Generator) -> None:
    head = NounHead((8, 16, 24), embed_dim=12)
    c4, c5 = torch.randn(2, 16, 6, 6, generator=rng), torch.randn(2, 24, 3, 3, generator=rng)
    nouns = torch.randn(5, 12, generator=rng)
    logits = head(c4, c5, nouns)
    assert logits.shape == (2, 6, 6, 6)
    assert torch.equal(logits[:, 0], head.background.expand(2, 6, 6))
    # Only a noun's direction counts, and nouns in another order are named in that order.
    assert torch.allclose(head(c4, c5, 7 * nouns), logits, atol=1e-4)
    assert torch.allclose(head(c4, c5, nouns.flip(0))[:, 1:], logits[:, 1:].flip(1), atol=1e-5)


def test_the_noun_head_learns_which_direction_is_which_noun() -> None:
    torch.manual_seed(0)
    head = NounHead((4, 8, 8), embed_dim=8)
    c4, c5, nouns = torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2), torch.randn(2, 8)
    c4[:, 0, :, :2], c4[:, 1, :, 2:] = 1, 1
    categories = torch.tensor([[[1, 1, 2, 2]] * 4])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = naming(head(c4, c5, nouns), categories)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(head(c4, c5, nouns).argmax(1), categories)
