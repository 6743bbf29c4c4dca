"""References of one's own: COCO's instance format, and what was said of the instances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.data.coco import Photo, read_json, read_labels
from training.data.raw import parse_entries, text, whole_number
from training.data.references import Entry, ReferenceSet
from training.errors import DataError

NAME = "own"
_INSTANCES, _EXPRESSIONS = "instances_{}.json", "expressions_written_{}.json"


def read_own(root: Path, photos: Path | None = None) -> ReferenceSet:
    """Read every split that has both files, `instances_SPLIT.json` and the expressions.

    A reference's id is its place in its file, from 0. Of the photos, those are read that something
    is said of, whatever their names and categories.

    Args:
        root: the folder of these files.
        photos: the folder of the photos; default: `photos` in `root`.

    Raises:
        DataError: there is no such split, no folder of photos, or a file is not as it should be.
            Photos that are missing, and references that lead nowhere, are not refused here.
    """
    folder = photos or root / "photos"
    splits = _find_splits(root, folder)
    placed: list[Photo] = []
    entries: list[Entry] = []
    for split in splits:
        path = root / _EXPRESSIONS.format(split)
        found = parse_entries(path, read_json(path), _entry)
        ids = {entry.image_id for entry in found}
        labelled = read_labels(root / _INSTANCES.format(split), folder, only=ids)
        rows = {photo.id: row for row, photo in enumerate(labelled, start=len(placed))}
        entries += (replace(entry, split=split, photo=rows.get(entry.image_id)) for entry in found)
        placed += labelled
    sources = [root / name.format(split) for split in splits for name in (_INSTANCES, _EXPRESSIONS)]
    return ReferenceSet(NAME, folder, tuple(sources), tuple(placed), tuple(entries))


def _find_splits(root: Path, folder: Path) -> list[str]:
    prefix, suffix = _INSTANCES.split("{}")
    names = sorted(path.name for path in root.glob(_INSTANCES.format("*")))
    labelled = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
    splits = [name for name in labelled if (root / _EXPRESSIONS.format(name)).is_file()]
    missing = []
    if not splits:
        missing.append(f"{_INSTANCES.format('SPLIT')} with {_EXPRESSIONS.format('SPLIT')}")
    if not folder.is_dir():
        missing.append(f"the photos in {folder}")
    if missing:
        raise DataError(f"{root} lacks files: {'; '.join(missing)} (see docs/data.md)")
    return splits


def _entry(position: int, raw: dict[Any, Any]) -> Entry:
    if ("annotation_id" in raw) == ("annotation_ids" in raw):
        raise ValueError("expected either annotation_id or annotation_ids")
    targets = raw["annotation_ids"] if "annotation_ids" in raw else [raw["annotation_id"]]
    if not isinstance(raw["expressions"], list) or not isinstance(targets, list):
        raise TypeError("expected a list of expressions, and annotation_ids to be a list")
    return Entry(
        id=position,
        split="",
        image_id=whole_number(raw["image_id"]),
        photo=None,
        annotation_ids=tuple(dict.fromkeys(map(whole_number, targets))),
        sentences=tuple(filter(None, map(text, raw["expressions"]))),
    )
