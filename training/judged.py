"""What models are judged by, as the command lines that judge are told of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.arguments import at_least
from training.errors import DataError
from training.selection import ALL, Data, SceneData, open_data

VALIDATION = ("val",)
"""The splits that choices may be made by: test splits are for what has been chosen."""


def add_data(arguments: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--data` and `--scenes`, of which one is given, and `--photos`; `data_of` reads them."""
    one = arguments.add_mutually_exclusive_group(required=required)
    one.add_argument("--data", type=Path, help="a data folder or a prepared reference set")
    one.add_argument("--scenes", type=at_least(1), help="so many made-up scenes instead")
    arguments.add_argument(
        "--photos", type=Path, help="photos of a reference set, if they were moved since"
    )


def data_of(options: argparse.Namespace) -> Data:
    """Open what the options of `add_data` name.

    Raises:
        DataError: as `open_data` does; or `--photos` is given with `--scenes`.
    """
    if not options.scenes:
        return open_data(options.data, options.photos)
    if options.photos is not None:
        raise DataError("--photos tells where those of a reference set lie; --scenes has its own")
    return SceneData(options.scenes)


def splits_of(options: argparse.Namespace) -> tuple[str, ...]:
    """The splits that choices are made by: those given by `--split`, else validation."""
    return tuple(options.split) or VALIDATION


def add_selection(arguments: argparse.ArgumentParser, usual: str) -> None:
    """Add `--split` and `--limit`, as `training.selection.select` takes them.

    Args:
        arguments: what they are added to.
        usual: which splits the command takes where none is given, in words.
    """
    arguments.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help=f"can be repeated, or {ALL}; default: {usual}",
    )
    arguments.add_argument(
        "--limit", type=at_least(1), help="at most so many samples of each part, spread evenly"
    )
