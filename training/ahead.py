"""What comes next is fetched while what came last is being used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items, each fetched in a thread while the one before it is being used.

    A loader's processes prepare batches, but what takes them from there runs in this one: about 10
    ms a batch, in which a GPU would have nothing to do. What an item raises comes in its turn.
    """
    # The first one here: a loader starts its processes with it, which is no work for a thread.
    item = next(items, None)
    with ThreadPoolExecutor(1, "ahead") as thread:
        while item is not None:
            upcoming = thread.submit(next, items, None)
            yield item
            item = upcoming.result()
