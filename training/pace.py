"""How fast a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from training.objective import Batch


class Pace:
    """Photos a second, and the share of time that steps wait for them."""

    def __init__(self, photos: int):
        self.photos = photos
        self.start = time.perf_counter()
        self.steps, self.waited = 0, 0.0

    def waiting_for(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same steps, one after the other."""
        while True:
            asked = time.perf_counter()
            parts = next(steps, None)
            self.waited += time.perf_counter() - asked
            if parts is None:
                return
            self.steps += 1
            yield parts

    def so_far(self) -> dict[str, float]:
        """Since it was asked last."""
        seconds = time.perf_counter() - self.start
        found = {
            "photos_per_second": round(self.photos * self.steps / seconds, 2),
            "waiting": round(self.waited / seconds, 4),
        }
        self.start, self.steps, self.waited = time.perf_counter(), 0, 0.0
        return found
