"""One photo with several of its phrases: what a training step reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from training.data.augment import Augmentation, flipped, jittered, moved_in, moved_out
from training.data.choose import choose, fits_mirrored, survives_crop
from training.data.foreign import ForeignPhrases
from training.data.items import ItemMaker, Phrase, Place
from training.data.mirror import mirror
from training.data.pasted import Paster
from training.data.samples import Sample
from training.data.several import draw_several
from training.errors import DataError


class PhotoDataset(Dataset[dict[str, Any]]):
    """Photos with `phrases` phrases each, drawn anew in every epoch.

    An item depends on (seed, epoch, index, draw) alone; see `training.data.items.ItemMaker`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        items: ItemMaker,
        *,
        phrases: int = 5,
        augmentation: Augmentation | None = None,
        absent_share: float = 0.3,
        several_share: float = 0.0,
        written_share: float = 0.5,
        pasted_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Group the samples by photo.

        Args:
            samples: of any photos, in any order.
            items: makes photos and phrases into items.
            phrases: K.
            augmentation: how photos are changed; None leaves them and their words alone.
            absent_share: how often the last phrase of a photo is one that fits nothing.
            several_share: how often the phrase before means all things of a kind, where there are
                several.
            written_share: how often a written phrase is taken where there are both sorts.
            pasted_share: share of the fully labelled photos onto which cut-outs of others are
                pasted; those are cut out here, some 20 ms a photo.
            seed: of everything that is drawn.

        Raises:
            DataError: no samples, no phrases, or nothing to be cut out.
        """
        if not samples:
            raise DataError("a dataset needs at least one sample, but there is none")
        if phrases < 1:
            raise DataError(f"phrases should be at least 1, but are {phrases}")
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(str(sample.photo.path), []).append(sample)
        self._groups = list(groups.values())
        self._items, self._phrases, self._augmentation = items, phrases, augmentation
        self._absent_share, self._several_share = absent_share, several_share
        self._written_share = written_share
        self._foreign = ForeignPhrases(samples)
        self._seed = seed
        photos = [group[0].photo for group in self._groups]
        self._paster = Paster(photos) if pasted_share else None
        self._pasted_share = pasted_share

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._groups)

    @property
    def paths(self) -> list[str]:
        """The photos' files, in the order of the indices."""
        return [str(samples[0].photo.path) for samples in self._groups]

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Draw, load and change a photo; see the class for what it returns."""
        rng = np.random.default_rng((self._seed, *place))
        samples = self._seen(place)
        photo = samples[0].photo
        picture = photo.read()
        matrix = self._items.letterbox.matrix(photo.height, photo.width)
        flip = False
        if self._augmentation is not None:
            samples, matrix, flip = self._place(samples, matrix, self._augmentation, rng)
            picture = jittered(picture, rng, self._augmentation)
        phrases = self._draw(samples, flip, rng)
        return self._items(photo, picture, phrases, matrix)

    def _seen(self, place: Place) -> list[Sample]:
        """What can be said of the photo, or of what becomes of it with something pasted on."""
        samples = self._groups[place[1]]
        if self._paster is None:
            return samples
        # Numbers of its own, so that the photos left as they are stay those of a run without.
        rng = np.random.default_rng((self._seed, *place, 1))
        if rng.random() >= self._pasted_share:
            return samples
        return self._paster.samples(samples[0].photo, rng) or samples

    def _place(
        self, samples: list[Sample], matrix: NDArray[np.float64], amounts: Augmentation,
        rng: np.random.Generator,
    ) -> tuple[list[Sample], NDArray[np.float64], bool]:  # fmt: skip
        """Draw mirroring and zoom; keep the samples whose phrases stay true."""
        photo = samples[0].photo
        size, shape = self._items.letterbox.size, (photo.height, photo.width)
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

    def _draw(self, samples: list[Sample], flip: bool, rng: np.random.Generator) -> list[Phrase]:
        """Choose the phrases, reworded if the photo is mirrored."""
        chosen = choose(samples, self._phrases, rng, self._written_share)
        texts = [mirror(sample.text) if flip else sample.text for sample in chosen]
        phrases = [
            Phrase(text or sample.text, sample.instance)
            for text, sample in zip(texts, chosen, strict=True)
        ]
        if rng.random() < self._absent_share:
            text = self._foreign.draw(samples[0].photo, rng)
            if text is not None:
                phrases[-1] = Phrase(text, None)
        if rng.random() < self._several_share:
            several = draw_several(samples[0].photo, rng)
            if several is not None:
                phrases[-min(2, len(phrases))] = Phrase(*several)
        return phrases
