"""Where a finished bundle goes: whole, in the place of an older one, or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cris_edge.bundle import FORMAT, SPECIFICATION, Bundle, other_files
from cris_edge.files import check_file_name, check_parents
from export.errors import ExportError


def check_place(out: Path, beside: Sequence[Path]) -> None:
    """Refuse to replace anything but a bundle and files beside it.

    Raises:
        ExportError: something else is at the bundle's place.
        InputError: a file cannot be written beside it, or the bundle not in its folder.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out}: expected a folder to write, this is a file")
    check_parents(out)
    if os.path.ismount(out):
        raise ExportError(
            f"{out}: is a mount point, which cannot be replaced; choose a folder within it"
        )
    if out.is_dir() and (others := _others(out)):
        raise ExportError(
            f"{out}: holds other files than a bundle's, which would be lost: {others[0]}; "
            "choose another --out"
        )
    for place in beside:
        check_file_name(place)


def _others(out: Path) -> list[str]:
    """Files in a folder that are no bundle's, whole or not."""
    try:
        about = json.loads((out / SPECIFICATION).read_text(encoding="utf-8"))
        if about["format"] == FORMAT:
            return other_files(out, [str(name) for name in about["files"]])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    # Another program's, or none.
    theirs = [SPECIFICATION] if (out / SPECIFICATION).exists() else []
    return [*other_files(out, []), *theirs]


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """An empty folder to work in, which is gone afterwards.

    In the file system of the bundle's place, so that a rename puts the bundle there whole.
    """
    anchor = next(parent for parent in out.parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=anchor, prefix=f".{out.name}.") as folder:
        yield Path(folder)


def put_in_place(
    bundle: Bundle,
    out: Path,
    beside: Sequence[Path],
    temporary: Path,
    say: Callable[[str], None],
) -> None:
    """Rename the finished bundle, then the finished files beside it, to their places.

    Args:
        bundle: finished, in a folder of its own in `temporary`.
        out: its place; an older bundle there goes to `temporary`.
        beside: places of the files beside it, which are beside the finished bundle by these names.
        temporary: what `workspace` gave.
        say: takes the lines that tell what is there now.

    Raises:
        OSError: it cannot be put there.

    Whatever ends it before the bundle is in its place, a signal too, the older one is back there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    size, finished = bundle.size, bundle.folder
    replaced = temporary / "replaced"
    try:
        if out.exists():
            out.replace(replaced)
        finished.replace(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.replace(out)
        raise
    say(f"{out}: {size / 1e6:.2f} MB")
    for place in beside:
        finished.with_name(place.name).replace(place)
        say(f"{place}: {place.stat().st_size / 1e6:.2f} MB")
