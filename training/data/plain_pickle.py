"""Pickles read as data: plain containers, numbers and text. Nothing in them is run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from training.errors import DataError


class _Refused(Exception):
    """A pickle asks for something that is not plain data."""


class _Bytes:
    """Stands in for what pickles before protocol 3 call to make bytes; makes nothing else.

    It has no attributes, so that a pickle cannot leave anything on it either.
    """

    __slots__ = ()

    def __call__(self, text: str = "", encoding: str = "latin1") -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise _Refused(f"a call with {type(text).__name__} and {encoding!r}")
        return text.encode("latin1")


_BYTES = _Bytes()
# Everything that a pickle may name; the rest of plain data needs no names. Python 2 and 3 spell the
# module each in its own way.
_ADMITTED: dict[tuple[str, str], Any] = {("_codecs", "encode"): _BYTES} | {
    (module, name): stand_in
    for module in ("builtins", "__builtin__")
    for name, stand_in in (("set", set), ("frozenset", frozenset), ("bytes", _BYTES))
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object that is kept elsewhere (a persistent id)")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of any protocol that holds dicts, lists, tuples, sets, numbers, text and bytes.

    Python 2's strings come back as text: UTF-8, with U+FFFD in place of what is none.

    Raises:
        DataError: the file is missing, damaged, or asks for anything else, which is not run.
    """
    try:
        # From memory: a file object would be asked for as many bytes as a damaged length says.
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except _Refused as error:
        raise DataError(
            f"{path}: asks for {error}, which was not run; expected containers, numbers and text"
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise DataError(f"{path}: damaged, or no pickle: {error!r}") from error
