"""What is wrong with a data set, by the name of each photo and reference."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from PIL import Image, ImageOps
from pycocotools import mask as rle_codec
from tqdm import tqdm

from cris_edge.photo import MAX_SIDE, MIN_SIDE
from training.data.coco import Photo, usable
from training.data.references import Entry, ReferenceSet


@dataclass(frozen=True)
class Problem:
    """Something that makes references useless.

    `kind` is said of all its like, `name` names this one. It is about the entry, or the photo, of
    that place in the set.
    """

    kind: str
    name: str
    entry: int | None = None
    photo: int | None = None


def find_problems(data: ReferenceSet) -> list[Problem]:
    """References that lead nowhere or say nothing, and photos whose files are missing."""
    problems: list[Problem] = []
    for place, entry in enumerate(data.entries):
        for kind, more in _faults(entry, data.photos):
            name = f"{entry.name}{more}"
            problems.append(Problem(kind, name, entry=place))
    said = Counter(entry.photo for entry in data.entries)
    for row, photo in enumerate(data.photos):
        if not photo.path.is_file():
            name = f"{photo.path.name}: {said[row]} references"
            problems.append(Problem("photos that are missing", name, photo=row))
        if not usable(photo):
            name = f"{photo.path.name}: {photo.width} x {photo.height}"
            kind = f"photos whose sides are not {MIN_SIDE} to {MAX_SIDE} pixels"
            problems.append(Problem(kind, name, photo=row))
    return problems


def _faults(entry: Entry, photos: Sequence[Photo]) -> Iterator[tuple[str, str]]:
    """(kind, what to add to the reference's name) of everything wrong with an entry."""
    if not entry.sentences:
        yield "references without a sentence", ""
    if entry.photo is None:
        yield "references to images that the labels lack", f": image {entry.image_id}"
        return
    photo = photos[entry.photo]
    known = photo.by_id
    for key in entry.annotation_ids:
        more = f": annotation {key} of {photo.path.name}"
        if key not in known:
            yield "references to annotations that their photo lacks", more
        elif not known[key].has_mask:
            yield "references to annotations without a mask", more
        elif not rle_codec.area(known[key].segmentation):
            yield "references to annotations whose mask is empty", more


def check_photos(data: ReferenceSet, workers: int) -> list[Problem]:
    """Decode every photo that is there, in threads, with a bar on the terminal.

    Stricter than the decoder that training uses, which fills what a cut file lacks with grey.
    """
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(_check_photo, itertools.count(), data.photos)
        counted = tqdm(found, total=len(data.photos), desc="photos", unit="", mininterval=1)
        return [problem for problem in counted if problem is not None]


def _check_photo(row: int, photo: Photo) -> Problem | None:
    if not photo.path.is_file():
        return None
    try:
        with Image.open(photo.path) as picture:
            picture.load()
            # As training reads it: turned as the camera says.
            width, height = ImageOps.exif_transpose(picture).size
    except Exception as error:  # the decoders raise nearly anything
        name = f"{photo.path.name}: {error}"
        return Problem("photos that cannot be decoded", name, photo=row)
    if (width, height) != (photo.width, photo.height):
        name = f"{photo.path.name}: {width} x {height}, labelled {photo.width} x {photo.height}"
        return Problem("photos of another size than labelled", name, photo=row)
    return None


def without(data: ReferenceSet, problems: Sequence[Problem]) -> ReferenceSet:
    """The set less its useless references, and less photos that nothing is said of then."""
    entries = {problem.entry for problem in problems}
    photos = {problem.photo for problem in problems} - {None}
    kept = [
        entry
        for place, entry in enumerate(data.entries)
        if place not in entries and entry.photo not in photos
    ]
    used = {entry.photo for entry in kept}
    rows = [row for row in range(len(data.photos)) if row in used]
    places = {row: place for place, row in enumerate(rows)}
    return replace(
        data,
        photos=tuple(data.photos[row] for row in rows),
        entries=tuple(replace(e, photo=places[e.photo]) for e in kept if e.photo is not None),
    )
