"""What a training step reads of one photo, whichever data it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import Tokenizer
from training.data.coco import Instance, Photo
from training.data.labels import CATEGORY_STRIDE, MASK_STRIDE, Labels
from training.errors import DataError

Place = tuple[int, int, int]
"""Of an item: (epoch, index, draw). An epoch may see a photo several times, in as many draws."""


@dataclass(frozen=True)
class Phrase:
    """A phrase as it is trained on; no instance: nothing in the photo fits."""

    text: str
    instance: Instance | None


class ItemMaker:
    """Photos with phrases to what a step reads, in the runtime's own preparation.

    An item is a dictionary, with S the input's side and K the number of phrases:

    - `image` uint8 (S, S, 3): RGB, letterboxed
    - `tokens` int64 (K, word_len)
    - `masks` float32 (K, S/4, S/4), in [0, 1]
    - `ignore` bool (S/4, S/4): crowd regions, whose pixels say nothing
    - `weight` float32 (K,): trust in the mask, 0 … 1
    - `instance` int64 (K,): equal for phrases of the same instance, -1 where nothing fits
    - `texts` list of K strings
    - `categories` int64 (S/8, S/8), if asked for: 1..80 as in `CATEGORIES`, 0 none, -1 unknown
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        letterbox: Letterbox,
        word_len: int,
        *,
        as_published: bool = False,
        categories: bool = False,
    ):
        """Prepare.

        Args:
            tokenizer: turns phrases into ids.
            letterbox: turns photos into inputs; its size must be a multiple of 8.
            word_len: ids per phrase.
            as_published: as the CRIS authors have it: masks are what a linear warp makes of every
                fourth pixel, and crowds are background. Else masks are the shares of cells that are
                covered, bent so that outlines come out where they are.
            categories: add the map of categories.

        Raises:
            DataError: the size is none of these.
        """
        if letterbox.size % CATEGORY_STRIDE:
            raise DataError(
                f"the input should be a multiple of {CATEGORY_STRIDE}, but is {letterbox.size}"
            )
        self.letterbox = letterbox
        self._tokenizer, self._word_len = tokenizer, word_len
        self._as_published, self._categories = as_published, categories

    def __call__(
        self,
        photo: Photo,
        picture: NDArray[np.uint8],
        phrases: Sequence[Phrase],
        matrix: NDArray[np.float64] | None = None,
    ) -> dict[str, Any]:
        """Make an item.

        Args:
            photo: with its labels.
            picture: its pixels, (H, W, 3) uint8 BGR.
            phrases: K of them, at least one.
            matrix: (2, 3) way from the photo's pixels to the input's; None: the letterbox's.
        """
        size = self.letterbox.size
        side = size // MASK_STRIDE
        if matrix is None:
            matrix = self.letterbox.matrix(photo.height, photo.width)
        targets = [phrase.instance for phrase in phrases]
        labels = Labels(photo, matrix)
        outlines = "published" if self._as_published else "covered"
        masks = np.stack([labels.taught(target, side, outlines) for target in targets])
        ignore = np.zeros((side, side), bool) if self._as_published else labels.crowds(side)
        item = {
            "image": torch.from_numpy(self.letterbox.warp(picture, matrix)),
            "tokens": torch.from_numpy(np.stack([self._encode(p.text) for p in phrases])),
            "masks": torch.from_numpy(masks),
            "ignore": torch.from_numpy(ignore),
            "weight": torch.tensor([1.0 if t is None else t.weight for t in targets]),
            "instance": torch.tensor([-1 if t is None or not t.objects else t.id for t in targets]),
            "texts": [phrase.text for phrase in phrases],
        }
        if self._categories:
            categories = labels.categories(size // CATEGORY_STRIDE)
            item["categories"] = torch.from_numpy(categories)
        return item

    def _encode(self, text: str) -> NDArray[np.int64]:
        return self._tokenizer.encode(text, self._word_len)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack B items; what is one a phrase becomes (B * K, …), in order, `texts` one flat list."""
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if key == "texts":
            batch[key] = [text for texts in values for text in texts]
        elif key in ("image", "ignore", "categories"):
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.cat(values)
    return batch


def start_worker(worker: int) -> None:
    """`worker_init_fn` of a loader: one thread each, since the workers are the parallelism."""
    del worker
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
