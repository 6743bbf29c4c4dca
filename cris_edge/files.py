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


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the name `path` when the block ends.

    When the block raises, nothing is left and what was at `path` stays. The folder of `path` is
    made where it is missing.
    """
    path = Path(path)
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
    return path.parent.glob(f"{glob.escape(_beginning(path))}*")


def _beginning(path: Path) -> str:
    # Names of files have 255 bytes at most.
    return f".{path.name[:50]}."


def check_file_name(path: str | Path) -> None:
    """Refuse, before any work, a name that a folder has.

    Raises:
        InputError: it is a folder's.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: expected a file to write, this is a folder")


def check_image_name(path: str | Path) -> None:
    """Refuse, before any work, a name by which no image is written.

    Raises:
        InputError: the suffix is no image format, or a folder has the name.
    """
    path = Path(path)
    if not path.suffix or not cv2.haveImageWriter(f"image{path.suffix}"):
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
