"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, read from their files as they are published."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training.data.coco import read_json, read_labels
from training.data.plain_pickle import read_plain_pickle
from training.data.raw import parse_entries, text, whole_number
from training.data.references import Entry, ReferenceSet
from training.errors import DataError

REFER = "https://github.com/lichengunc/refer"
GREFCOCO = "https://github.com/henghuiding/gRefCOCO"
PHOTOS = "http://images.cocodataset.org/zips/train2014.zip"
PHOTO_FOLDERS = ("images/train2014", "images/mscoco/images/train2014")
"""Where the photos may lie under the root."""


@dataclass(frozen=True)
class Layout:
    """Where a data set's files lie under the root, and how much was published.

    `references` are names for the same content, the first that is there is read; `published` counts
    the references of each split, and `totals` other things of the whole set.
    """

    references: tuple[str, ...]
    instances: str
    origin: str
    published: Mapping[str, int] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)


LAYOUTS: Mapping[str, Layout] = {
    "refcoco": Layout(
        ("refcoco/refs(unc).p",),
        "refcoco/instances.json",
        REFER,
        {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ),
    "refcoco+": Layout(
        ("refcoco+/refs(unc).p",),
        "refcoco+/instances.json",
        REFER,
        {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ),
    "refcocog_umd": Layout(
        ("refcocog/refs(umd).p",),
        "refcocog/instances.json",
        REFER,
        {"train": 42226, "val": 2573, "test": 5023},
    ),
    "refcocog_google": Layout(
        ("refcocog/refs(google).p",),
        "refcocog/instances.json",
        REFER,
        {"train": 44822, "val": 5000},
    ),
    "grefcoco": Layout(
        ("grefcoco/grefs(unc).json", "grefcoco/grefs(unc).p"),
        "grefcoco/instances.json",
        GREFCOCO,
        totals={
            "sentences": 278232,
            "sentences of several targets": 80022,
            "sentences that nothing fits": 32202,
            "photos": 19994,
        },
    ),
}


def read_refer(root: Path, dataset: str, photos: Path | None = None) -> ReferenceSet:
    """Read a data set; of the photos, those that something is said of.

    Args:
        root: holds a folder for each data set, and `images`.
        dataset: a name in `LAYOUTS`.
        photos: the folder of the photos, where it is not under `images`.

    Raises:
        DataError: files are missing (all are named, with where they are had) or not as published.
            Photos that are missing, and references that lead nowhere, are not refused here.
    """
    if dataset not in LAYOUTS:
        raise DataError(f"data set should be one of {', '.join(LAYOUTS)}, but is {dataset!r}")
    layout = LAYOUTS[dataset]
    references = _first([root / name for name in layout.references])
    folder = photos or _first([root / name for name in PHOTO_FOLDERS])
    instances = root / layout.instances
    _refuse_missing(root, [references, instances], folder, layout.origin)
    content = (read_json if references.suffix == ".json" else read_plain_pickle)(references)
    entries = parse_entries(references, content, _entry)
    labelled = read_labels(instances, folder, only={entry.image_id for entry in entries})
    rows = {photo.id: row for row, photo in enumerate(labelled)}
    return ReferenceSet(
        name=dataset,
        folder=folder,
        sources=(references, instances),
        photos=tuple(labelled),
        entries=tuple(replace(entry, photo=rows.get(entry.image_id)) for entry in entries),
    )


def _first(paths: Sequence[Path]) -> Path:
    """The first that is there; else the first, for the message that it is not."""
    return next((path for path in paths if path.exists()), paths[0])


def _refuse_missing(root: Path, files: Sequence[Path], folder: Path, origin: str) -> None:
    """Name everything that is missing at once, with where it is had."""
    missing = [str(path) for path in files if not path.is_file()]
    parts = [f"{' and '.join(missing)} (from {origin})"] if missing else []
    if not folder.is_dir():
        parts.append(f"the photos in {folder}{os.sep} (from {PHOTOS})")
    if parts:
        raise DataError(f"{root} lacks files: {'; '.join(parts)}")


def _entry(position: int, raw: dict[Any, Any]) -> Entry:
    """One reference; its own `file_name` is passed over, which is not always the photo's."""
    targets = raw["ann_id"] if isinstance(raw["ann_id"], list) else [raw["ann_id"]]
    # gRefCOCO has -1 where nothing fits.
    annotations = tuple(dict.fromkeys(key for key in map(whole_number, targets) if key != -1))
    if raw.get("no_target", not annotations) != (not annotations):
        raise ValueError(f"no_target is {raw['no_target']}, but ann_id is {raw['ann_id']}")
    return Entry(
        id=whole_number(raw["ref_id"]),
        split=text(raw["split"]),
        image_id=whole_number(raw["image_id"]),
        photo=None,
        annotation_ids=annotations,
        sentences=tuple(filter(None, map(_sentence, raw["sentences"]))),
    )


def _sentence(raw: Any) -> str:
    """The sentence as the field reads it; as it was typed, where nothing is left of that."""
    if not isinstance(raw, dict) or not raw.keys() & {"sent", "raw"}:
        raise TypeError(f"expected a dictionary with a sentence, found {raw!r}")
    return text(raw.get("sent", "")) or text(raw.get("raw", ""))
