"""References in a compact form: two Arrow files that are mapped into memory, never loaded.

The operating system keeps their pages once, however many processes read them. Python objects would
be copied into every worker, since counting references to them writes to their pages.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar, overload

import pyarrow as pa

from cris_edge.bundle import sha256
from cris_edge.files import whole_file
from training.data.coco import Instance, Photo, read_json
from training.data.references import Entry, Reference, ReferenceSet, look_up, refuse_unknown
from training.errors import DataError

Item = TypeVar("Item")

FORMAT = "cris-edge-references-1"
DESCRIPTION, PHOTOS, REFERENCES = "dataset.json", "photos.arrow", "references.arrow"
_STAMP = b"stamp"
_BATCH = 1024
"""Rows that are written at once: a batch of masks stays far under Arrow's 2 GiB."""
_CACHED = 64
"""Photos kept as objects by each reader; references of one photo follow each other."""

_INSTANCE = pa.struct(
    [
        ("id", pa.int64()),
        ("category", pa.string()),
        ("box", pa.list_(pa.float64(), 4)),
        ("area", pa.float64()),
        ("crowd", pa.bool_()),
        ("weight", pa.float64()),
        ("mask", pa.binary()),
    ]
)
_SCHEMAS = {
    PHOTOS: pa.schema(
        [
            ("id", pa.int64()),
            ("file", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("person_only", pa.bool_()),
            ("instances", pa.list_(_INSTANCE)),
        ]
    ),
    REFERENCES: pa.schema(
        [
            ("id", pa.int64()),
            ("photo", pa.int32()),
            ("split", pa.string()),
            ("annotations", pa.list_(pa.int64())),
            ("sentences", pa.list_(pa.string())),
        ]
    ),
}


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds; `no_target` are the references that nothing in their photo fits."""

    references: int
    sentences: int
    photos: int
    no_target: int


def count(entries: Sequence[Entry]) -> SplitCounts:
    """Count the entries of one split."""
    return SplitCounts(
        references=len(entries),
        sentences=sum(len(entry.sentences) for entry in entries),
        photos=len({entry.photo for entry in entries}),
        no_target=sum(not entry.annotation_ids for entry in entries),
    )


# --- writing ---


def write_references(data: ReferenceSet, folder: Path, left_out: Mapping[str, int]) -> None:
    """Write a sound set to a folder, of which an older one is replaced.

    The description takes its place last, and names the stamp that both other files carry: what an
    interrupted run leaves is refused, or is the older set untouched.

    Args:
        data: without problems, see `training.data.problems`.
        folder: made where it is missing, and removed again when writing fails.
        left_out: kinds of problems and how many there were, for the description.

    Raises:
        OSError: it cannot be written.
    """
    stamp = uuid.uuid4().hex
    ordered = [entry for split in data.splits for entry in data.entries if entry.split == split]
    description = {
        "format": FORMAT,
        "name": data.name,
        "photos": str(data.folder.resolve()),
        "photos_from_here": Path(os.path.relpath(data.folder, folder)).as_posix(),
        "splits": {
            split: asdict(count([entry for entry in ordered if entry.split == split]))
            for split in data.splits
        },
        "rows": {PHOTOS: len(data.photos), REFERENCES: len(ordered)},
        "stamp": stamp,
        "left_out": dict(left_out),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sources": {f"{path.parent.name}/{path.name}": sha256(path) for path in data.sources},
    }
    # Of files opened together the first takes its place last.
    with (
        _removed_on_failure(folder),
        whole_file(folder / DESCRIPTION) as described,
        whole_file(folder / PHOTOS) as photos,
        whole_file(folder / REFERENCES) as references,
    ):
        described.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        _write(photos, PHOTOS, stamp, data.photos, partial(_photo_row, data.folder))
        _write(references, REFERENCES, stamp, ordered, _reference_row)


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """When the block raises, remove the folder and those around it that were made in it."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if folder in absent:
            shutil.rmtree(folder, ignore_errors=True)
        for path in absent:
            with suppress(OSError):
                path.rmdir()
        raise


def _write(
    path: Path,
    kind: str,
    stamp: str,
    items: Sequence[Item],
    to_row: Callable[[Item], dict[str, Any]],
) -> None:
    schema = _SCHEMAS[kind].with_metadata({_STAMP: stamp.encode()})
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(items), _BATCH):
            rows = [to_row(item) for item in items[start : start + _BATCH]]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _photo_row(folder: Path, photo: Photo) -> dict[str, Any]:
    return {
        "id": photo.id,
        "file": Path(os.path.relpath(photo.path, folder)).as_posix(),
        "width": photo.width,
        "height": photo.height,
        "person_only": photo.person_only,
        "instances": [
            {
                "id": instance.id,
                "category": instance.category,
                "box": instance.box,
                "area": instance.area,
                "crowd": instance.crowd,
                "weight": instance.weight,
                "mask": instance.segmentation and instance.segmentation["counts"],
            }
            for instance in photo.instances
        ],
    }


def _reference_row(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "photo": entry.photo,
        "split": entry.split,
        "annotations": entry.annotation_ids,
        "sentences": entry.sentences,
    }


# --- reading ---


def open_references(folder: str | Path, photos: str | Path | None = None) -> PreparedReferences:
    """Open what `training.prepare` wrote.

    Args:
        folder: the prepared folder.
        photos: where the photos lie now, if they were moved since.

    Raises:
        DataError: it is no such folder, of another format, its files do not belong together, or
            there is no folder of photos.
    """
    return PreparedReferences(Path(folder), None if photos is None else Path(photos))


class PreparedReferences:
    """A prepared data set, mapped into memory; objects are made when they are asked for.

    It is pickled by its paths: a worker process opens the files itself, and the pages are shared.
    """

    def __init__(self, folder: Path, photos: Path | None) -> None:
        """Open the folder; see `open_references`."""
        self.folder, self._moved = folder, photos
        description = _read_description(folder)
        self.name, self.counts = description.name, description.splits
        self.photos = photos or description.photos
        # The whole tree may have been moved.
        beside = folder / description.photos_from_here
        if photos is None and not self.photos.is_dir() and beside.is_dir():
            self.photos = beside
        if not self.photos.is_dir():
            raise DataError(
                f"{folder}: its photos are not in {self.photos}; prepare it again where they are"
            )
        self._photos = _map(folder / PHOTOS, description)
        self._references = _map(folder / REFERENCES, description)
        if sum(c.references for c in self.counts.values()) != self._references.num_rows:
            raise DataError(f"{folder}: its splits do not add up: prepare it again")
        self._photo = lru_cache(_CACHED)(self._read_photo)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedReferences, (self.folder, self._moved)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits' names."""
        return tuple(self.counts)

    def split(self, name: str) -> Sequence[Reference]:
        """The references of a split, in their file's order, each made when it is asked for.

        Raises:
            DataError: there is no such split.
        """
        refuse_unknown(name, self.splits, self.name)
        first = 0
        for split, counts in self.counts.items():
            if split == name:
                break
            first += counts.references
        return _Rows(self, range(first, first + self.counts[name].references))

    def reference(self, row: int) -> Reference:
        """The reference in a row of the file; rows of a split follow each other."""
        (raw,) = self._references.slice(row, 1).to_pylist()
        photo = self._photo(raw["photo"])
        entry = Entry(
            id=raw["id"],
            split=raw["split"],
            image_id=photo.id,
            photo=raw["photo"],
            annotation_ids=tuple(raw["annotations"]),
            sentences=tuple(raw["sentences"]),
        )
        return look_up(entry, photo)

    def _read_photo(self, row: int) -> Photo:
        (raw,) = self._photos.slice(row, 1).to_pylist()
        size = [raw["height"], raw["width"]]
        return Photo(
            id=raw["id"],
            path=self.photos / raw["file"],
            width=raw["width"],
            height=raw["height"],
            person_only=raw["person_only"],
            instances=tuple(_instance(instance, size) for instance in raw["instances"]),
        )


class _Rows(Sequence[Reference]):
    """Some rows of a prepared data set."""

    def __init__(self, prepared: PreparedReferences, rows: range) -> None:
        self._prepared, self._rows = prepared, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Reference: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Reference]: ...

    def __getitem__(self, place: int | slice) -> Reference | Sequence[Reference]:
        if isinstance(place, slice):
            return _Rows(self._prepared, self._rows[place])
        return self._prepared.reference(self._rows[place])


def _instance(raw: Mapping[str, Any], size: list[int]) -> Instance:
    x1, y1, x2, y2 = raw["box"]
    return Instance(
        id=raw["id"],
        category=raw["category"],
        box=(x1, y1, x2, y2),
        area=raw["area"],
        crowd=raw["crowd"],
        segmentation=None if raw["mask"] is None else {"size": size, "counts": raw["mask"]},
        weight=raw["weight"],
    )


@dataclass(frozen=True)
class _Description:
    """What is read of the description; the rest of it is for people."""

    name: str
    photos: Path
    photos_from_here: str
    """The same from the prepared folder."""
    splits: dict[str, SplitCounts]
    rows: dict[str, int]
    stamp: str


def _read_description(folder: Path) -> _Description:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise DataError(
            f"{folder}: nothing that training.prepare wrote to its end: {path} is missing"
        )
    raw = read_json(path)
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: expected the format {FORMAT}, found {found}: prepare it again")
    try:
        return _Description(
            name=raw["name"],
            photos=Path(raw["photos"]),
            photos_from_here=str(raw.get("photos_from_here", raw["photos"])),
            splits={name: SplitCounts(**counts) for name, counts in raw["splits"].items()},
            rows={name: int(raw["rows"][name]) for name in _SCHEMAS},
            stamp=str(raw["stamp"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: not as it was written: {error!r}: prepare it again") from error


def _map(path: Path, description: _Description) -> Any:
    """The table of a file, without reading its rows; `DataError` unless it is the one described."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: missing or damaged: prepare it again ({error})") from error
    if not table.schema.equals(_SCHEMAS[path.name]):
        raise DataError(f"{path}: its columns are not those of {FORMAT}: prepare it again")
    if (table.schema.metadata or {}).get(_STAMP) != description.stamp.encode():
        raise DataError(f"{path}: of another run than its {DESCRIPTION}: prepare it again")
    if table.num_rows != description.rows[path.name]:
        raise DataError(
            f"{path}: expected {description.rows[path.name]} rows, found {table.num_rows}"
        )
    return table
