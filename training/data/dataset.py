"""One photo with several of its phrases: what a training step reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cris_edge.letterbox import Letterbox
from cris_edge.tokenizer import Tokenizer
from training.data.augment import Augmentation, flipped, jittered, moved_in, moved_out
from training.data.choose import choose, fits_mirrored, survives_crop
from training.data.coco import Instance, Photo
from training.data.expressions import absent
from training.data.labels import CATEGORY_STRIDE, MASK_STRIDE, Labels
from training.data.mirror import mirror
from training.data.samples import Sample
from training.errors import DataError


@dataclass(frozen=True)
class _Phrase:
    """A phrase as it is trained on; no instance: nothing in the photo fits."""

    text: str
    instance: Instance | None


class PhotoDataset(Dataset[dict[str, Any]]):
    """Photos with `phrases` phrases each, drawn anew in every epoch.

    An item depends on (seed, epoch, index, draw) alone. It is a dictionary, with S the input's
    side and K the number of phrases:

    - `image` float32 (3, S, S): RGB, normalised by the letterbox
    - `tokens` int64 (K, word_len)
    - `masks` float32 (K, S/4, S/4), 0 or 1
    - `ignore` bool (S/4, S/4): crowd regions, whose pixels say nothing
    - `weight` float32 (K,): trust in the mask, 0 … 1
    - `absent` bool (K,): nothing in the photo fits the phrase, the mask is empty
    - `instance` int64 (K,): equal for phrases of the same instance, -1 where absent
    - `categories` int64 (S/8, S/8): 1..80 as in `CATEGORIES`, 0 background, -1 unknown
    - `texts` list of K strings
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenizer: Tokenizer,
        letterbox: Letterbox,
        word_len: int,
        *,
        phrases: int = 5,
        augmentation: Augmentation | None = None,
        absent_share: float = 0.3,
        written_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Group the samples by photo.

        Args:
            samples: of any photos, in any order.
            tokenizer: turns phrases into ids.
            letterbox: turns photos into inputs; its size must be a multiple of 8.
            word_len: ids per phrase.
            phrases: K.
            augmentation: how photos are changed; None leaves them and their words alone.
            absent_share: share of the fully labelled photos whose last phrase fits nothing.
            written_share: how often a written phrase is taken where there are both sorts.
            seed: of everything that is drawn.

        Raises:
            DataError: no samples, or sizes that cannot be.
        """
        if not samples:
            raise DataError("a dataset needs at least one sample, but there is none")
        if phrases < 1 or letterbox.size % CATEGORY_STRIDE:
            raise DataError(
                f"phrases should be at least 1 and the input a multiple of {CATEGORY_STRIDE}, "
                f"but they are {phrases} and {letterbox.size}"
            )
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(str(sample.photo.path), []).append(sample)
        self._groups = list(groups.values())
        self._tokenizer, self._letterbox, self._word_len = tokenizer, letterbox, word_len
        self._phrases, self._augmentation = phrases, augmentation
        self._absent_share, self._written_share = absent_share, written_share
        self._seed, self._epoch = seed, 0
        self._ids: dict[str, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._groups)

    @property
    def paths(self) -> list[str]:
        """The photos' files, in the order of the indices."""
        return [str(samples[0].photo.path) for samples in self._groups]

    def set_epoch(self, epoch: int) -> None:
        """Draw other phrases and changes; before the loader makes its iterator."""
        self._epoch = epoch

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Draw, load and change a photo; see the class for what it returns.

        Args:
            index: of the photo; or (index, draw), for photos that an epoch sees several times,
                each time with other phrases and changes.
        """
        index, draw = index if isinstance(index, tuple) else (index, 0)
        rng = np.random.default_rng((self._seed, self._epoch, index, draw))
        samples = self._groups[index]
        photo = samples[0].photo
        picture = photo.read()
        matrix = self._letterbox.matrix(photo.height, photo.width)
        flip = False
        if self._augmentation is not None:
            samples, matrix, flip = self._place(samples, matrix, self._augmentation, rng)
            picture = jittered(picture, rng, self._augmentation)
        phrases = self._draw(samples, flip, rng)
        return self._item(photo, picture, matrix, phrases)

    def _place(
        self, samples: list[Sample], matrix: NDArray[np.float64], amounts: Augmentation,
        rng: np.random.Generator,
    ) -> tuple[list[Sample], NDArray[np.float64], bool]:  # fmt: skip
        """Draw mirroring and zoom; keep the samples whose phrases stay true."""
        photo = samples[0].photo
        size, shape = self._letterbox.size, (photo.height, photo.width)
        flip = bool(rng.random() < amounts.flip)
        mirrorable = [sample for sample in samples if fits_mirrored(sample)] if flip else samples
        flip = flip and bool(mirrorable)
        samples = mirrorable or samples
        if flip:
            matrix = flipped(matrix, photo.width)
        lasting = [s for s in samples if survives_crop(s)] if rng.random() < amounts.crop else []
        if lasting:
            keep = [instance.box for instance in photo.instances]
            return lasting, moved_in(matrix, shape, size, rng, amounts.zoom_in, keep), flip
        return samples, moved_out(matrix, shape, size, rng, amounts.zoom_out), flip

    def _draw(self, samples: list[Sample], flip: bool, rng: np.random.Generator) -> list[_Phrase]:
        """Choose the phrases, reworded if the photo is mirrored."""
        chosen = choose(samples, self._phrases, rng, self._written_share)
        texts = [mirror(sample.text) if flip else sample.text for sample in chosen]
        phrases = [
            _Phrase(text or sample.text, sample.instance)
            for text, sample in zip(texts, chosen, strict=True)
        ]
        if rng.random() < self._absent_share:
            text = absent(samples[0].photo, rng)
            if text is not None:
                phrases[-1] = _Phrase(text, None)
        return phrases

    def _item(
        self, photo: Photo, picture: NDArray[np.uint8], matrix: NDArray[np.float64],
        phrases: list[_Phrase],
    ) -> dict[str, Any]:  # fmt: skip
        side = self._letterbox.size // MASK_STRIDE
        labels = Labels(photo, matrix)
        targets = [phrase.instance for phrase in phrases]
        masks = [
            np.zeros((side, side), np.float32) if target is None else labels.mask(target, side)
            for target in targets
        ]
        return {
            "image": torch.from_numpy(
                self._letterbox.normalise(self._letterbox.warp(picture, matrix))
            ),
            "tokens": torch.from_numpy(np.stack([self._encode(p.text) for p in phrases])),
            "masks": torch.from_numpy(np.stack(masks)),
            "ignore": torch.from_numpy(labels.crowds(side)),
            "weight": torch.tensor([1.0 if t is None else t.weight for t in targets]),
            "absent": torch.tensor([target is None for target in targets]),
            "instance": torch.tensor([labels.index(target) for target in targets]),
            "categories": torch.from_numpy(
                labels.categories(self._letterbox.size // CATEGORY_STRIDE)
            ),
            "texts": [phrase.text for phrase in phrases],
        }

    def _encode(self, text: str) -> NDArray[np.int64]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer.encode(text, self._word_len)
        return self._ids[text]


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
