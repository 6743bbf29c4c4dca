"""What is fetched ahead comes in order, and so does what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from training.ahead import ahead


def test_items_come_in_their_order() -> None:
    assert list(ahead(iter(range(1, 20)))) == list(range(1, 20))
    assert list(ahead(iter([]))) == []


def test_the_next_item_is_fetched_while_the_last_is_in_use() -> None:
    second = threading.Event()

    def items() -> Iterator[str]:
        yield "first"
        second.set()
        yield "second"

    fetched = ahead(items())
    assert next(fetched) == "first"
    assert second.wait(10)
    assert list(fetched) == ["second"]


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the photo is gone")

    fetched = ahead(items())
    assert (next(fetched), next(fetched)) == (1, 2)
    with pytest.raises(OSError, match="the photo is gone"):
        next(fetched)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    fetched = ahead(iter(range(1, 9)))
    next(fetched)
    fetched.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_nobody_waits_for_what_never_comes() -> None:
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait()

    fetched = ahead(items())
    assert next(fetched) == 1
    closing = threading.Thread(target=fetched.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    never.set()
