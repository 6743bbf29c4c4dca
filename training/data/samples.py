"""Referring samples of a data folder: a photo, one of its instances, a phrase that means it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from training.data.coco import Instance, Photo, read_json, read_photos
from training.data.colours import name_colours
from training.data.expressions import derive
from training.data.raw import parse_entries, text, whole_number
from training.errors import DataError

Split = Literal["train", "val", "boxes"]
Source = Literal["derived", "written"]
"""Sources of a data folder's phrases."""

_FILES: dict[str, tuple[str, str]] = {
    "train": ("instances_train.json", "photos"),
    "val": ("instances_val.json", "photos"),
    "boxes": ("boxes_pseudo_instances.json", "boxes"),
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One referring sample.

    `kind` is the rule for derived phrases, "written" or "reference" for people's; `source` is what
    its figures are reported under, never mixed with another's.
    """

    photo: Photo
    instance: Instance
    text: str
    kind: str
    source: str


def load_photos(
    data_root: Path, split: Split, exclude_prefixes: Sequence[str] = ("pf_",)
) -> list[Photo]:
    """The photos of a split, in the file's order.

    `boxes` has predicted masks among its labels, so nothing but people counts as complete there.
    """
    if split not in _FILES:
        raise DataError(f"split should be one of {', '.join(_FILES)}, but is {split!r}")
    annotations, folder = _FILES[split]
    return read_photos(
        data_root / annotations,
        data_root / folder,
        person_only=split == "boxes",
        exclude_prefixes=exclude_prefixes,
    )


def load_samples(
    data_root: str | Path,
    split: Split,
    which: Source | Literal["both"] = "both",
    *,
    seed: int = 0,
    wordings: int = 1,
    exclude_prefixes: Sequence[str] = ("pf_",),
) -> list[Sample]:
    """All samples of a split.

    Args:
        data_root: folder with the JSON files, `photos/` and `boxes/`.
        split: "train", "val", or "boxes" (photos whose masks are mostly predicted).
        which: phrases derived by rule, written by people, or both: then data of one's own may
            come without the file of written ones.
        seed: chooses the wordings of derived phrases.
        wordings: how many times every derived fact is worded (repetitions drop out).
        exclude_prefixes: photos whose names start so are left out.

    Raises:
        DataError: a file is missing or not as it should be.
    """
    root = Path(data_root)
    photos = load_photos(root, split, exclude_prefixes)
    samples: list[Sample] = []
    if which in ("derived", "both"):
        for photo in photos:
            samples += derived_samples(photo, seed, wordings)
    written = root / f"expressions_written_{split}.json"
    if which == "written" or (which == "both" and written.is_file()):
        samples += written_samples(photos, written)
    return samples


def load_sources(data_root: str | Path, split: Literal["train", "val"]) -> dict[str, list[Sample]]:
    """The samples of a split by source, for figures apart; a source without any is left out.

    Raises:
        DataError: there are none at all, or the data are not as they should be.
    """
    samples = load_samples(data_root, split)
    sources = {s: [one for one in samples if one.source == s] for s in get_args(Source)}
    found = {source: chosen for source, chosen in sources.items() if chosen}
    if not found:
        raise DataError(f"{data_root}: the split {split} has no instance that a phrase can mean")
    return found


def derived_samples(photo: Photo, seed: int = 0, wordings: int = 1) -> list[Sample]:
    """The phrases the rules find for one photo."""
    if photo.person_only and all(i.category != "person" for i in photo.instances):
        return []
    colours = {} if photo.person_only else name_colours(photo)
    instances = photo.by_id
    found: dict[tuple[int, str], Sample] = {}
    for repetition in range(wordings):
        for made in derive(photo, colours, seed * 1000 + repetition):
            sample = Sample(photo, instances[made.instance_id], made.text, made.kind, "derived")
            found.setdefault((made.instance_id, made.text), sample)
    return list(found.values())


def written_samples(photos: Sequence[Photo], path: Path) -> list[Sample]:
    """The written phrases for these photos' instances; those of other photos are passed over."""
    instances = {photo.id: (photo, photo.by_id) for photo in photos}

    def parse(_: int, entry: dict[Any, Any]) -> list[Sample]:
        if whole_number(entry["image_id"]) not in instances:
            return []
        photo, labelled = instances[entry["image_id"]]
        return _written(entry, photo, labelled)

    return list(chain.from_iterable(parse_entries(path, read_json(path), parse)))


def _written(
    entry: Mapping[Any, Any], photo: Photo, instances: Mapping[int, Instance]
) -> list[Sample]:
    instance = instances.get(whole_number(entry["annotation_id"]))
    if instance is None:
        raise ValueError(f"the photo has no annotation {entry['annotation_id']}")
    if not isinstance(entry["expressions"], list):
        raise TypeError(f"expected a list of expressions, found {entry['expressions']!r}")
    texts = [text(expression) for expression in entry["expressions"]]
    if not all(texts):
        raise ValueError("an expression is empty")
    if not instance.has_mask:
        return []
    return [Sample(photo, instance, said, "written", "written") for said in texts]
