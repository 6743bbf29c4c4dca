"""Made-up scenes to train on: other ones in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from training.data.items import ItemMaker, Phrase, Place
from training.data.scene_phrases import FIRST_KINDS, LATER_KINDS, draw
from training.data.scenes import make_scene


class SceneDataset(Dataset[dict[str, Any]]):
    """Scenes with K phrases each; an item depends on (world, epoch, index) alone.

    See `training.data.items.ItemMaker` for what an item holds.
    """

    def __init__(
        self, backgrounds: Sequence[Path], count: int, items: ItemMaker, *, phrases: int, world: int
    ):
        """Make a world of `count` scenes an epoch over photos; `world` is its seed."""
        self._backgrounds, self._count, self._items = backgrounds, count, items
        self._phrases, self._world = phrases, world

    def __len__(self) -> int:
        """Scenes in an epoch."""
        return self._count

    def __getitem__(self, place: Place) -> dict[str, Any]:
        """Paint a scene and say things of it; its draw is always 0."""
        epoch, index, _ = place
        number = epoch * self._count + index
        kinds = LATER_KINDS if epoch else FIRST_KINDS
        samples: list[Any] = []
        while not samples:
            # Where nothing can be said of a scene, the next one of another row of numbers.
            scene = make_scene(self._world, number, self._backgrounds)
            rng = np.random.default_rng((self._world, number, 2))
            samples = draw(scene, self._phrases, rng, kinds)
            number += 1 << 40
        phrases = [Phrase(sample.text, sample.instance) for sample in samples]
        return self._items(scene, scene.read(), phrases)
