"""What the command lines of several commands share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from cris_edge.errors import CrisEdgeError, InputError
from cris_edge.files import check_file_name, check_image_name
from training.errors import RecipeError


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` up."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} up, got {value}"
            )
        return value

    return number


def file_to_write(text: str) -> Path:
    """A type for argparse: where a file is to be written, which no folder is."""
    return _checked(check_file_name, text)


def image_to_write(text: str) -> Path:
    """A type for argparse: where an image is to be written, by a suffix that says its format."""
    return _checked(check_image_name, text)


def _checked(check: Callable[[str], None], text: str) -> Path:
    try:
        check(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def split_way(way: str) -> list[str]:
    """The overrides of one way of training, divided as a shell does.

    Raises:
        RecipeError: a quotation mark has no end.
    """
    try:
        return shlex.split(way)
    except ValueError as error:
        raise RecipeError(f"--way {way}: {error}") from error


def documented(name: str, about: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser whose help is a command's own docstring, and examples.

    Args:
        name: of the module.
        about: its docstring: "`the command`: what it does", an empty line, the rest.
        examples: what follows the options.
    """
    summary, _, details = str(about).partition("\n\n")
    purpose = summary.partition(": ")[2]
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=f"{purpose[:1].upper()}{purpose[1:]}\n\n{details}",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def refusals(run: Callable[[], object]) -> int:
    """Run a command: 0, or 2 after one line on stderr where something is refused."""
    try:
        run()
    except (CrisEdgeError, OSError) as error:
        print(refusal(error), file=sys.stderr)
        return 2
    return 0


def refusal(error: Exception) -> str:
    """The line that tells of an error: tensors that do not fit are listed a line each in it."""
    return "error: " + "; ".join(str(error).split("\n  "))
