"""What the student is taught: the mask, which of several things, and what things are called."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.config import THRESHOLD


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` over the pixels (last two axes) where `valid`; 0 where none is."""
    return (values * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of each phrase, the paper's loss: (N, h, w) three times to (N,)."""
    losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return masked_mean(losses, valid)


def dice(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of each phrase: (N,).

    Cross-entropy counts pixels and forgets small things; this counts things. Written with the
    difference's size (Dice semimetric loss, arXiv 2303.16296), it is least where prediction and
    mask are equal, at outlines between 0 and 1 too, and with masks of 0 and 1 it is V-Net's loss
    with plain sums. With squared sums, as V-Net has it, two things at one half each would lose
    more than the mean of the right one and the wrong one whole: it would pay to be undecided.
    Phrases that fit nothing have no Dice and come out as 0.
    """
    probability = logits.sigmoid() * valid
    target = masks * valid
    total = (probability + target).sum((-2, -1))
    apart = (probability - target).abs().sum((-2, -1))
    return torch.where(target.sum((-2, -1)) > 0, apart / (total + 1), 0)


def quiet(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of what a phrase that fits nothing finds all the same: (N, h, w) to (N,).

    The mean over the pixels with the highest logits, a sixteenth of them: over all pixels, as in
    `cross_entropy`, something small that is painted by mistake hardly counts. Phrases that fit
    something come out as 0.
    """
    found = F.softplus(logits).mul(valid).flatten(1)
    highest = found.topk(max(1, found.shape[1] // 16), dim=1).values.mean(1)
    return torch.where((masks * valid).sum((-2, -1)) > 0, 0, highest)


def which(logits: Tensor, masks: Tensor, valid: Tensor, distinct: Tensor, weight: Tensor) -> Tensor:
    """Phrases of one photo compete for each pixel, so that only one of them gets it.

    Softmax over the photo's phrases and "none of them" (logit 0). Naming a rival's pixels then
    costs even where the class is right, which cross-entropy of each phrase by itself hardly shows.

    Args:
        logits: (B, K, h, w), K phrases of each photo.
        masks: the same shape, in [0, 1]; a pixel is of those with more than `THRESHOLD`, which is
            what half of it comes to.
        valid: (B, h, w), pixels that count.
        distinct: (B, K), whether a phrase names another instance than the phrases before it.
        weight: (B, K), trust in each mask.
    """
    apart = distinct.bool()[:, :, None, None]
    masks = ((masks > THRESHOLD) & apart).float()
    logits = logits.masked_fill(~apart, -1e4)
    claims = masks.sum(1)
    # Where instances overlap nobody can say whose the pixel is.
    valid = valid * (claims <= 1)
    target = torch.where(claims > 0, masks.argmax(1) + 1, 0)
    everyone = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
    losses = F.cross_entropy(everyone, target, reduction="none")
    trust = F.pad(weight, (1, 0), value=1).gather(1, target.flatten(1)).view_as(losses)
    return masked_mean(losses * trust, valid).mean()


def referent(
    logits: Tensor,
    masks: Tensor,
    valid: Tensor,
    distinct: Tensor,
    weight: Tensor,
    instances: Tensor,
) -> Tensor:
    """The things of one photo compete for each phrase, so that it means one of them.

    Softmax over the mean logit on each thing that the photo's phrases name and "none of them"
    (logit 0): a choice among things, as finding by a phrase is scored, where a large and a small
    one count the same. The other losses count pixels, and hardly see a phrase that gets a little
    of each rival. Of what lies in the thing that is meant, as a tie on a person, the rest counts
    alone.

    Args:
        logits: (B, K, h, w), K phrases of each photo.
        masks: the same shape, in [0, 1].
        valid: (B, h, w), pixels that count.
        distinct: (B, K), as for `which`.
        weight: (B, K), trust in each mask.
        instances: (B, K) int64, equal for phrases of the same thing; -1 where nothing fits, a
            phrase that is left out.
    """
    same = instances[:, :, None] == instances[:, None, :]
    first = same.int().argmax(2)
    own = F.one_hot(first, masks.shape[1]).bool()
    parts = masks * valid[:, None]
    beside = (masks <= THRESHOLD).float()

    def summed(values: Tensor) -> Tensor:
        """Over each thing's pixels, of each phrase: (B, K, things)."""
        whole = torch.einsum("bkhw,bjhw->bkj", values, parts)
        return torch.where(own, whole, torch.einsum("bkhw,bjhw->bkj", values * beside, parts))

    pixels = summed(torch.ones_like(logits))
    # A thing takes part once, and only where something of it is in sight.
    taking_part = distinct[:, None] & (pixels >= 1)
    means = (summed(logits) / pixels.clamp(min=1)).masked_fill(~taking_part, -1e4)
    everything = torch.cat([torch.zeros_like(means[..., :1]), means], dim=2)
    losses = F.cross_entropy(everything.transpose(1, 2), first + 1, reduction="none")
    judged = (taking_part & own).any(2)
    return torch.where(judged, losses * weight, 0).mean()


class NounHead(nn.Module):
    """Names every pixel of the photo's features by the text encoder's features of nouns.

    Used in training alone. It teaches the image encoder and the text encoder one language for
    *what* things are, before a phrase says *which*.
    """

    def __init__(self, channels: tuple[int, int, int], embed_dim: int):
        super().__init__()
        self.c4 = nn.Conv2d(channels[1], embed_dim, 1)
        self.c5 = nn.Conv2d(channels[2], embed_dim, 1)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.background = nn.Parameter(torch.tensor(0.0))

    def forward(self, c4: Tensor, c5: Tensor, nouns: Tensor) -> Tensor:
        """C4, C5 and (N, embed_dim) nouns to (B, 1 + N, h, w) logits, background first."""
        up = F.interpolate(self.c5(c5), scale_factor=2.0, mode="bilinear", align_corners=False)
        pixels = F.normalize(self.c4(c4) + up, dim=1)
        similar = torch.einsum("behw,ne->bnhw", pixels, F.normalize(nouns, dim=1)) * self.scale
        background = self.background.expand_as(similar[:, :1])
        return torch.cat([background, similar], dim=1)


def naming(logits: Tensor, categories: Tensor) -> Tensor:
    """Cross-entropy of the nouns against a category map: the mean over all pixels.

    Pixels that are not known count as 0, so that each known one weighs the same, whichever photos
    share its part of a batch.

    Args:
        logits: (B, 1 + categories, h, w).
        categories: (B, H, W) int64; 0 background, from 1 the categories, -1 not known.
    """
    logits = F.interpolate(logits, categories.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, categories, ignore_index=-1, reduction="sum")
    return total / categories.numel()
