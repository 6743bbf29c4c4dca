"""What comes next is fetched while what came last is being used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


def ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items, each fetched in a thread while the one before it is being used.

    A loader's processes prepare batches, but what takes them from there runs in this one: about 10
    ms a batch, in which a GPU would have nothing to do. What an item raises comes in its turn.
    """
    # The first one here: a loader starts its processes with it, which is no work for a thread.
    item = next(items, None)
    while item is not None:
        upcoming = _Upcoming(items)
        yield item
        item = upcoming.result()


class _Upcoming(Generic[_T]):
    """An item that is being fetched.

    Nobody waits for its thread when a run ends in the middle of a step: where a loader's process
    was killed while it wrote a batch, the thread reads for ever.
    """

    def __init__(self, items: Iterator[_T]):
        self._items = items
        self._item: _T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fetch, name="ahead", daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        try:
            self._item = next(self._items, None)
        except BaseException as error:  # whatever it is, it is for who waits for the item
            self._error = error

    def result(self) -> _T | None:
        """Wait for the item; None when there are no more."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._item
