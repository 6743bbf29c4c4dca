"""A pipeline of three steps, so that a frame is prepared while the one before it is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Frame = TypeVar("Frame")
Ready = TypeVar("Ready")
Raw = TypeVar("Raw")
Result = TypeVar("Result")

AHEAD = 2
"""Frames under way beside the one whose result is waited for."""


class _End:
    """There are no more frames."""


def overlap(
    frames: Iterable[Frame],
    prepare: Callable[[Frame], Ready],
    compute: Callable[[Ready], Raw],
    finish: Callable[[Raw], Result],
) -> Generator[Result, None, None]:
    """Results of frames in their order; at most `AHEAD` are read before they are asked for.

    Frames are read and prepared in one thread and computed in a second; they are finished in the
    caller's own, while the next is computed. When the caller stops, so does the reading, after the
    frame that is being read. What a frame raises comes in its turn.
    """
    source = iter(frames)

    def read() -> Ready | _End:
        """The next frame, prepared."""
        try:
            frame = next(source)
        except StopIteration:
            return _End()
        return prepare(frame)

    def run(ready: Future[Ready | _End]) -> Raw | _End:
        """What is computed of a frame that is being read."""
        value = ready.result()
        return value if isinstance(value, _End) else compute(value)

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "compute") as computer:
        waiting: deque[Future[Raw | _End]] = deque()
        try:
            while True:
                while len(waiting) <= AHEAD:
                    waiting.append(computer.submit(run, reader.submit(read)))
                raw = waiting.popleft().result()
                if isinstance(raw, _End):
                    return
                yield finish(raw)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
            computer.shutdown(wait=False, cancel_futures=True)
