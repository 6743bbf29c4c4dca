"""`python -m training.prepare --root DATA --dataset refcoco`: check data and pack their labels.

What is wrong with the files is told by the name of each photo and reference. What is sound is
written to a folder that training and evaluation open at once, see `training.data.prepared`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from cris_edge.files import whole_file
from training.arguments import at_least, documented, refusals
from training.data import own
from training.data.prepared import count, write_references
from training.data.problems import Problem, check_photos, find_problems, without
from training.data.refer import LAYOUTS, Layout, read_refer
from training.data.references import ReferenceSet, in_order
from training.errors import DataError

NAMED = 20
"""Problems of a kind that are named on the terminal."""


def prepare(
    root: Path,
    dataset: str,
    out: Path,
    *,
    photos: Path | None = None,
    skip_broken: bool = False,
    photo_check: bool = True,
    workers: int = 1,
) -> ReferenceSet:
    """Check a data set and write its prepared form; problems are printed and listed in a file.

    Args:
        root: the folder of the data, see docs/data.md.
        dataset: a name in `training.data.refer.LAYOUTS`, or "own".
        out: the folder to write. Problems go to a text file beside it, of its name.
        photos: the folder of the photos, where it is not in its place under the root.
        skip_broken: leave out references with problems, instead of refusing the whole.
        photo_check: decode every photo; without, only look whether it is there.
        workers: threads that decode.

    Returns:
        What was written.

    Raises:
        DataError: files are missing, or there are problems and `skip_broken` is not set, or nothing
            is left. Nothing is prepared then.
        OSError: the folder cannot be written.
    """
    data = own.read_own(root, photos) if dataset == own.NAME else read_refer(root, dataset, photos)
    problems = find_problems(data)
    if photo_check:
        problems += check_photos(data, workers)
    place = out.absolute()
    listing = place.with_name(f"{place.name}-problems.txt")
    listing.unlink(missing_ok=True)
    if problems:
        print("\n".join(report(problems, NAMED)))
        with whole_file(listing) as temporary:
            temporary.write_text("\n".join(report(problems)) + "\n", encoding="utf-8")
        if not skip_broken:
            raise DataError(
                f"{len(problems)} problems, listed in {listing}: nothing is prepared; mend the "
                "files, or leave out what is broken with --skip-broken"
            )
    sound = without(data, problems)
    if not sound.entries:
        raise DataError(f"{root}: no sound reference is left of {dataset}: nothing is prepared")
    left_out = {"references": len(data.entries) - len(sound.entries)} if problems else {}
    write_references(sound, out, left_out | Counter(problem.kind for problem in problems))
    return sound


def report(problems: Sequence[Problem], most: int | None = None) -> list[str]:
    """Lines that name problems, kind by kind; at most so many of each."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.name)
    lines = []
    for kind, names in kinds.items():
        lines.append(f"{kind}: {len(names)}")
        lines += [f"  {name}" for name in names[:most]]
        if most is not None and len(names) > most:
            lines.append(f"  … and {len(names) - most} more")
    return lines


def table(data: ReferenceSet) -> list[str]:
    """Lines that count each split, beside what was published."""
    layout = LAYOUTS.get(data.name, Layout((), "", ""))
    heads = ("split", "references", "sentences", "photos", "no target", "published")
    rows: list[tuple[str, ...]] = [heads]
    for split in in_order({*data.splits, *layout.published}):
        counts = count([entry for entry in data.entries if entry.split == split])
        verdict = _compare(counts.references, layout.published.get(split))
        rows.append((split, *map(str, astuple(counts)), verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *figures, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    for what, number in _totals(data).items():
        if what in layout.totals:
            lines.append(f"{what} in all: {number}, {_compare(number, layout.totals[what])}")
    return lines


def _totals(data: ReferenceSet) -> dict[str, int]:
    def sentences(of: Callable[[int], bool]) -> int:
        return sum(len(e.sentences) for e in data.entries if of(len(e.annotation_ids)))

    return {
        "sentences": sentences(lambda targets: True),
        "sentences of several targets": sentences(lambda targets: targets > 1),
        "sentences that nothing fits": sentences(lambda targets: targets == 0),
        "photos": len({photo.id for photo in data.photos}),
    }


def _compare(number: int, published: int | None) -> str:
    if published is None:
        return "-"
    return "as published" if number == published else f"differs: expected {published}"


EXAMPLE = """example:
  python -m training.prepare --root data --dataset refcoco

reads data/refcoco/refs(unc).p, data/refcoco/instances.json and the photos in
data/images/train2014, decodes every photo, and writes data/prepared/refcoco. docs/data.md tells
where the files are had, how data of your own are laid out, and what is checked.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.prepare", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("--root", type=Path, required=True, help="the folder of the data")
    add("--dataset", choices=(*LAYOUTS, own.NAME), required=True, help="what to read there")
    add("--out", type=Path, help="the folder to write; default: ROOT/prepared/DATASET")
    add("--photos", type=Path, help="where the photos are, if not in their place under ROOT")
    add("--skip-broken", action="store_true", help="leave out what has problems, and go on")
    add("--no-photo-check", action="store_true", help="do not decode the photos")
    add(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        help="threads that decode photos; default: one a core, %(default)s here",
    )
    return arguments


def run(options: argparse.Namespace) -> None:
    """Prepare, and print what was found."""
    out = options.out or options.root / "prepared" / options.dataset
    data = prepare(
        options.root,
        options.dataset,
        out,
        photos=options.photos,
        skip_broken=options.skip_broken,
        photo_check=not options.no_photo_check,
        workers=options.workers,
    )
    print("\n".join(table(data)))
    print(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
