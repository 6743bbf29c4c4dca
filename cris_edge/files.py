"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from cris_edge.errors import InputError
from cris_edge.photo import Photo

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of images that hold colours of any size; OpenCV knows more, some of which do not."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the name `path` when the block ends.

    When the block raises, nothing is left and what was at `path` stays. The folder of `path` is
    made where it is missing. A link stays, and what it leads to is written.

    Raises:
        InputError: a folder, a device or a pipe has the name.
    """
    path = _resolved(path)
    _check_kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_beginning(path)}{secrets.token_hex(8)}")
    # For all to read, where the user's umask has nothing against it.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> Iterator[Path]:
    """What is being written for `path`, or was when a process was killed."""
    path = _resolved(path)
    return path.parent.glob(f"{glob.escape(_beginning(path))}*")


def _resolved(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _beginning(path: Path) -> str:
    # Names of files have 255 bytes at most.
    return f".{path.name[:50]}."


def check_file_name(path: str | Path) -> None:
    """Refuse, before any work, a name by which no file can be written.

    Raises:
        InputError: it is that of a folder, a device or a pipe; or a file stands, or nothing may be
            written, where its folder is or would be made.
    """
    _check_kind(Path(path))
    check_parents(path)


def _check_kind(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, this is a folder")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: expected a file to write, this is a device or a pipe")


def check_parents(path: str | Path) -> None:
    """Refuse, before any work, a place in a folder that is none, or that cannot be written to.

    Raises:
        InputError: with the name of the parent.
    """
    # The nearest that is there; others are made.
    nearest = next(parent for parent in _resolved(path).parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise InputError(f"{path}: {nearest} is a file, not a folder; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{path}: nothing may be written in {nearest}; choose another place")


def check_image_name(path: str | Path) -> None:
    """Refuse, before any work, a name by which no image is written.

    Raises:
        InputError: the suffix is no image format, or `check_file_name` refuses it.
    """
    path = Path(path)
    known = path.suffix.lower() in IMAGES
    if not known or not cv2.haveImageWriter(f"image{path.suffix}"):
        raise InputError(f"{path}: no image format for {path.suffix!r}; use .png or .jpg")
    check_file_name(path)


def write_image(path: str | Path, image: Photo) -> None:
    """Encode a (H, W, 3) uint8 BGR image by its file's suffix and write it.

    Raises:
        InputError: the suffix is no image format, or the file cannot be written.
    """
    path = Path(path)
    check_image_name(path)
    try:
        encoded, content = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be encoded: {error.err}") from error
    if not encoded:
        raise InputError(f"{path}: cannot be encoded as {path.suffix}")
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
