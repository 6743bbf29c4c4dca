"""What JSON files and pickles hold, taken only where it is of the kind that is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cris_edge.tokenizer import clean
from training.errors import DataError

Entry = TypeVar("Entry")


def parse_entries(
    path: Path, content: Any, parse: Callable[[int, dict[Any, Any]], Entry]
) -> list[Entry]:
    """Parse a list of dictionaries.

    Args:
        path: where it was read from, for messages.
        content: what was read.
        parse: makes one entry of its position and its dictionary. What it raises of `KeyError`,
            `TypeError` and `ValueError` is told with the position.

    Raises:
        DataError: it is no list of dictionaries, or `parse` raised.
    """
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list, found {type(content).__name__}")
    entries = []
    for position, raw in enumerate(content):
        try:
            if not isinstance(raw, dict):
                raise TypeError(f"expected a dictionary, found {type(raw).__name__}")
            entries.append(parse(position, raw))
        except KeyError as error:
            raise DataError(f"{path}: entry {position} lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: entry {position}: {error}") from error
    return entries


def whole_number(value: Any) -> int:
    """The value, which has to be an int of 64 bits; `TypeError` or `ValueError` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"expected a whole number of 64 bits, found {value}")
    return value


def text(value: Any) -> str:
    """The value without space around it, "" where cleaning leaves nothing of it.

    Raises:
        TypeError: it is no text.
        ValueError: it holds halves of characters, which no file can keep, or what no phrase can.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    value.encode()
    return value.strip() if clean(value) else ""
