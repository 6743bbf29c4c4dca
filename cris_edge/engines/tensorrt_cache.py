"""Plans of TensorRT on disk, each in one file that says what it was built from and for.

A plan is code: TensorRT runs what it is given. So plans come from this folder alone, which belongs
to the user and which nobody else may write to, and never out of a bundle. What is not exactly the
entry that is asked for, or not the user's, is not read but built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cris_edge.errors import InputError
from cris_edge.files import unfinished, whole_file

logger = logging.getLogger(__name__)

VARIABLE = "CRIS_EDGE_CACHE"
MAGIC = b"cris-edge-plan 1\n"
MAX_HEADER = 2**16
"""Bytes of an entry's description, at most."""
LEFT_BEHIND = 3600.0
"""Seconds after which nobody writes a file any more."""

Field = str | int | bool | list[int] | list[str]


def default_folder() -> Path:
    """`tensorrt` in the folder that $CRIS_EDGE_CACHE names, else in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser() / "tensorrt"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cris-edge" / "tensorrt"


@dataclass(frozen=True)
class Entry:
    """What identifies a cached file: all that makes it fit or not."""

    name: str
    """For people; the fields alone tell entries apart."""
    fields: Mapping[str, Field]

    @property
    def file(self) -> str:
        """The file's name within the folder."""
        text = json.dumps(dict(self.fields), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{re.sub('[^A-Za-z0-9_-]', '_', self.name)[:40]}-{digest[:24]}.plan"


class Found(NamedTuple):
    """What an entry holds."""

    content: bytes
    built: bool
    """Now, and not read."""


class _Unusable(Exception):
    """Why a file is not the entry."""


class PlanCache:
    """A folder of entries, which any number of threads and processes may use at once."""

    def __init__(self, folder: Path, say: Callable[[str], None] = logger.info):
        """Use a folder, which is made with the first entry; `say` is told when it must wait."""
        self.folder, self._say = folder, say

    def path(self, entry: Entry) -> Path:
        """Where an entry is or would be."""
        return self.folder / entry.file

    def obtain(
        self, entry: Entry, build: Callable[[], bytes], refused: bytes | None = None
    ) -> Found:
        """An entry's content; where it is missing, one process builds it and the others wait.

        Args:
            entry: what is wanted.
            build: makes the content; what it raises goes through.
            refused: content that was read and turned out to be of no use.
        """
        if (content := self.read(entry)) is not None and content != refused:
            return Found(content, built=False)
        with self._lock(entry):
            # Another process may have built it while this one waited for the lock.
            if (content := self.read(entry)) is not None and content != refused:
                return Found(content, built=False)
            content = build()
            self.write(entry, content)
        return Found(content, built=True)

    def read(self, entry: Entry) -> bytes | None:
        """An entry's content; None, with a warning, where the file is not what it should be."""
        path = self.path(entry)
        try:
            with _open_own(path) as file:
                return _content(file, entry)
        except FileNotFoundError:
            return None
        except (_Unusable, OSError) as error:
            logger.warning("%s is not used, and built anew: %s", path, error)
            return None

    def write(self, entry: Entry, content: bytes) -> None:
        """Write an entry, whole or not at all; where that fails, with a warning."""
        path = self.path(entry)
        header = {
            "entry": entry.name,
            "key": dict(entry.fields),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            self._make_folder()
            _clear_leftovers(path)
            if path.is_symlink() or path.is_fifo():
                path.unlink()  # no entry, and nothing is written through it
            with whole_file(path) as temporary, temporary.open("wb") as file:
                file.write(MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n")
                file.write(content)
        except (_Unusable, InputError, OSError) as error:
            logger.warning("%s cannot be kept, and will be built again: %s", path, error)

    def _make_folder(self) -> None:
        """Make the folder, or see to it that it is the user's and nobody else's."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if not _own(status):
            raise _Unusable(
                f"the folder {self.folder} belongs to another user; "
                f"give it back with chown, or name another with ${VARIABLE}"
            )
        if hasattr(os, "geteuid") and stat.S_IMODE(status.st_mode) & 0o077:
            self.folder.chmod(0o700)

    @contextmanager
    def _lock(self, entry: Entry) -> Iterator[None]:
        """Let one process, or thread, after another pass; a process that dies lets go."""
        path = self.path(entry).with_suffix(".lock")
        try:
            self._make_folder()
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(path, flags, 0o600)
        except (_Unusable, OSError) as error:
            logger.warning("without a lock, for %s cannot be made: %s", path, error)
            yield
            return
        try:
            self._wait_for(handle, entry)
            yield
        finally:
            os.close(handle)

    def _wait_for(self, handle: int, entry: Entry) -> None:
        told = False
        try:
            while not _try_lock(handle):
                if not told:
                    self._say(f"{entry.name}: another process builds it; waiting for that")
                told = True
                time.sleep(0.1)
        except OSError as error:  # a file system without locks
            logger.warning("%s: without a lock: %s", entry.name, error)


def _clear_leftovers(path: Path) -> None:
    """Take away what a process that was killed while it wrote has left, long ago."""
    for left in unfinished(path):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                left.unlink()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        """Lock the first byte of a file; False where somebody else has it."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        """Lock a file; False where somebody else has it."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _own(status: os.stat_result) -> bool:
    """Whether it is the user's; Windows keeps others out of the user's cache by itself."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _open_own(path: Path) -> BinaryIO:
    """Open a file that is the user's own, not a link, and that nobody else may write to.

    Raises:
        _Unusable: it is something else.
        OSError: it is missing or cannot be opened.
    """
    flags = os.O_RDONLY
    # Not to follow a link, nor to wait for the other end of a pipe.
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    handle = os.open(path, flags)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable("it is no file")
        if not _own(status):
            raise _Unusable(f"it belongs to another user, {status.st_uid}")
        if hasattr(os, "geteuid") and stat.S_IMODE(status.st_mode) & 0o022:
            raise _Unusable("others may write to it")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _content(file: BinaryIO, entry: Entry) -> bytes:
    """What follows the header, after both were checked.

    Raises:
        _Unusable: the file is damaged, or another entry.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise _Unusable("it is none of CRIS Edge's plans, or of another version")
    line = file.readline(MAX_HEADER)
    try:
        header = json.loads(line)
        key, size, digest = header["key"], header["bytes"], header["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _Unusable(f"its header is damaged: {error!r}") from error
    if key != dict(entry.fields):
        raise _Unusable(f"it was built for something else: {_difference(key, entry.fields)}")
    content = file.read()
    if len(content) != size:
        raise _Unusable(f"it has {len(content)} bytes, expected {size}")
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise _Unusable(f"its SHA-256 is {found}, expected {digest}")
    return content


def _difference(found: object, wanted: Mapping[str, Field]) -> str:
    """The fields that differ, with both values."""
    if not isinstance(found, dict):
        return f"{found!r}"
    names = sorted(set(found) | set(wanted))
    differing = [name for name in names if found.get(name) != wanted.get(name)]
    return "; ".join(
        f"{name} is {found.get(name)!r}, wanted {wanted.get(name)!r}" for name in differing
    )
