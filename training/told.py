"""What a step came to: numbers that a GPU has yet to compute when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Told(Mapping[str, float]):
    """A step's losses by name; the first look waits until they are computed."""

    def __init__(self, step: int, names: Sequence[str], losses: Tensor, norm: Tensor):
        """Let them be fetched.

        Args:
            step: which step's.
            names: of the losses.
            losses: (len(names),) float32.
            norm: scalar float32, of the gradient.
        """
        self.step, self._names = step, names
        self._values = torch.cat([losses, norm[None]]).to("cpu", non_blocking=True)
        self._fetched = torch.cuda.Event() if losses.is_cuda else None
        if self._fetched:
            self._fetched.record()

    def _look(self) -> list[float]:
        if self._fetched:
            self._fetched.synchronize()
        return self._values.tolist()

    @property
    def norm(self) -> float:
        """Of the gradient, before it is clipped."""
        return self._look()[-1]

    def __getitem__(self, name: str) -> float:
        """A loss."""
        return dict(zip(self._names, self._look(), strict=False))[name]

    def __iter__(self) -> Iterator[str]:
        """The losses' names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of losses."""
        return len(self._names)
