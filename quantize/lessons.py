"""What a student learns from a teacher beside the labels: losses of one batch.

Nothing here knows how the two models are built; sizes, strides and channels may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import masked_mean


def soft_masks(logits: Tensor, taught: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's mask from the teacher's, pixel by pixel: a scalar.

    Of Bernoulli distributions whose logits are divided by the temperature, times its square, so
    that gradients keep their size (Hinton et al., arXiv 1503.02531, section 2).

    Args:
        logits: (N, h, w), the student's.
        taught: (N, H, W), the teacher's; resized where it sees at another size, corner on corner,
            as logits lie on a photo (`cris_edge.letterbox`).
        valid: (N, h, w), pixels that count.
        temperature: above 0.
    """
    taught = resized(taught[:, None], logits.shape[1:], corners=True)[:, 0] / temperature
    target = taught.sigmoid()
    crossed = F.binary_cross_entropy_with_logits(logits / temperature, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(taught, target, reduction="none")
    return temperature**2 * masked_mean(crossed - entropy, valid).mean()


def relation(pixels: Tensor, words: Tensor) -> Tensor:
    """How alike each pixel and each word are: cosines (N, L, h, w).

    Args:
        pixels: (N, C, h, w), what the decoder gives.
        words: (N, L, C), what each word would add to a pixel.
    """
    return torch.einsum("nchw,nlc->nlhw", F.normalize(pixels, dim=1), F.normalize(words, dim=2))


def relations(mine: Tensor, taught: Tensor, known: Tensor) -> Tensor:
    """One minus the correlation of two `relation`s over pixels, the mean over phrases: a scalar.

    Relations compare models whose features have nothing in common, as between pixels in
    "Structured Knowledge Distillation" (arXiv 1903.04197), here between pixels and words. What a
    word's relation is on average says nothing of where it is, and is left out.

    Args:
        mine: (N, L, h, w).
        taught: (N, M, H, W); words beyond the shorter phrase length are left out.
        known: (N, L) bool, words that are the same in both.
    """
    length = min(mine.shape[1], taught.shape[1])
    taught = resized(taught[:, :length], mine.shape[2:])
    known = known[:, :length, None, None]
    ours, theirs = (
        ((one - one.mean((2, 3), keepdim=True)) * known).flatten(1)
        for one in (mine[:, :length], taught)
    )
    alike = F.cosine_similarity(ours, theirs, dim=1)
    said = known.flatten(1).any(1)
    return ((1 - alike) * said).sum() / said.sum().clamp(min=1)


def features(mine: Tensor, taught: Tensor) -> Tensor:
    """One minus the correlation of each channel over a batch's places, the mean of it: a scalar.

    Pearson's, as PKD has it (arXiv 2207.02039). A cosine at each place would be close to one from
    the start: features differ from place to place by less than they have in common.

    Args:
        mine: (N, C, h, w), the student's features after their adapter.
        taught: (N, C, H, W), resized where the teacher sees at another size.
    """
    ours, theirs = (
        (one - one.mean((0, 2, 3), keepdim=True)).transpose(0, 1).flatten(1)
        for one in (mine, resized(taught, mine.shape[2:]))
    )
    return (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()


def same_words(tokens: Tensor, taught: Tensor) -> Tensor:
    """Which words of a phrase both tokenizers split alike: (N, L) bool, none where they do not.

    Ids differ between vocabularies; a phrase that both split into as many pieces is taken to be
    split into the same ones, since all tokenizers here apply CLIP's merges in CLIP's order.

    Args:
        tokens: (N, L) the student's ids, 0 is padding.
        taught: (N, M) the teacher's.
    """
    said = tokens != 0
    alike = said.sum(1) == (taught != 0).sum(1)
    return said & alike[:, None]


def resized(planes: Tensor, size: Sequence[int], corners: bool = False) -> Tensor:
    """(N, C, H, W) to (N, C, *size).

    Args:
        planes: pixels or features, which are squares side by side, or logits.
        size: height and width.
        corners: whether the first and last places are the corners, as those of logits are.
    """
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    return F.interpolate(planes, tuple(size), mode="bilinear", align_corners=corners)
