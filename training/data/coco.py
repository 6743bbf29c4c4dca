"""COCO's instance format, read into photos with their instances."""

import dataclasses
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

from cris_edge.photo import MAX_SIDE, MIN_SIDE
from training.data.nouns import CATEGORY_INDEX
from training.errors import DataError

PSEUDO_WEIGHT_FLOOR = 0.3
FAR = 4
"""Sides of a photo that a polygon's corner may be away from its origin."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One labelled object.

    `box` is (x1, y1, x2, y2) in pixels of the photo; `area` in square pixels (of the box where
    there is no mask); `crowd` marks a region of many objects, to be ignored; `segmentation` is a
    compressed COCO RLE or None; `weight` in (0, 1] says how far the mask can be trusted. `objects`
    is 1 but for what `join` makes, whose members' `categories` are kept.
    """

    id: int
    category: str
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    segmentation: Mapping[str, Any] | None = field(default=None, repr=False)
    weight: float = 1.0
    objects: int = 1
    categories: frozenset[str] = frozenset()

    @property
    def has_mask(self) -> bool:
        """Whether the outline is known, not just the box."""
        return self.segmentation is not None

    def mask(self) -> NDArray[np.bool_]:
        """Draw the mask: bool (height, width) of the photo."""
        if self.segmentation is None:
            raise DataError(f"instance {self.id} has a box only: ask `has_mask` before its mask")
        return np.asarray(rle_codec.decode(self.segmentation), bool)


NOTHING = "nothing"
"""Category of a target that nothing in the photo fits."""


def join(instances: Sequence[Instance], height: int, width: int) -> Instance:
    """What a phrase means: the instance itself, several as one, or nothing (an empty mask).

    Args:
        instances: of one photo, each with a mask; the joined mask is their union.
        height, width: of the photo.
    """
    if len(instances) == 1:
        return instances[0]
    blank = rle_codec.encode(np.zeros((height, width), np.uint8, order="F"))
    union = dict(rle_codec.merge([blank, *(instance.segmentation for instance in instances)]))
    boxes = np.array([instance.box for instance in instances] or [(0.0, 0.0, 0.0, 0.0)])
    start, end = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    categories = sorted({instance.category for instance in instances}) or [NOTHING]
    return Instance(
        id=-1,
        category=" and ".join(categories),
        box=(float(start[0]), float(start[1]), float(end[0]), float(end[1])),
        area=float(rle_codec.area(union)),
        segmentation=union,
        weight=min((instance.weight for instance in instances), default=1.0),
        objects=len(instances),
        categories=frozenset(instance.category for instance in instances),
    )


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo file with its labels.

    With `person_only` only people are labelled completely: anything else that is seen may be
    unlabelled, so its absence from `instances` says nothing.
    """

    id: int
    path: Path
    width: int
    height: int
    person_only: bool
    instances: tuple[Instance, ...]

    @property
    def by_id(self) -> dict[int, Instance]:
        """Instances by their id."""
        return {instance.id: instance for instance in self.instances}

    def tells_all(self, categories: frozenset[str]) -> bool:
        """Whether the labels have each thing of these categories, one by one.

        Not so where some are a crowd, and of others than people where people alone are complete.
        """
        complete = not self.person_only or categories == {"person"}
        return complete and not any(i.crowd and i.category in categories for i in self.instances)

    def read(self) -> NDArray[np.uint8]:
        """Decode the file: (height, width, 3) uint8 BGR; `DataError` where that cannot be done."""
        picture = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        if picture is None:
            raise DataError(f"{self.path} should be a picture, but cannot be decoded")
        height, width = picture.shape[:2]
        if (height, width) != (self.height, self.width):
            raise DataError(
                f"{self.path} is {width} x {height}, "
                f"its annotation says {self.width} x {self.height}"
            )
        return np.asarray(picture, np.uint8)


def read_json(path: Path) -> Any:
    """Parse a JSON file; `DataError` where that cannot be done."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: is this the right data folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} should be a JSON file, but: {error}") from error


def read_labels(
    annotations: Path, folder: Path, *, only: Container[int] | None = None
) -> list[Photo]:
    """Read a COCO instances file: any category names, and photos that may be missing.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        folder: where the photos lie.
        only: ids of the images to read; default: all.

    Raises:
        DataError: the file is missing, or the JSON is not COCO's.
    """
    data = read_json(annotations)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        entries: dict[int, list[Mapping[str, Any]]] = {}
        for entry in data["annotations"]:
            entries.setdefault(entry["image_id"], []).append(entry)
        return [
            _photo(image, entries.get(image["id"], []), names, folder)
            for image in data["images"]
            if only is None or image["id"] in only
        ]
    except DataError as error:
        raise DataError(f"{annotations}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{annotations} should be in COCO's instance format, but: {error!r}"
        ) from error


def read_photos(
    annotations: Path,
    folder: Path,
    *,
    person_only: bool = False,
    exclude_prefixes: Sequence[str] = ("pf_",),
) -> list[Photo]:
    """Read a COCO instances file, with COCO's 80 categories, and check that its photos are there.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        folder: where the photos lie.
        person_only: distrust the labels of everything but people, whatever the file says.
        exclude_prefixes: photos whose file names start so are left out. The default drops
            PennFudan, whose licence does not allow weights that ship.

    Raises:
        DataError: a file is missing, or the JSON is not COCO's.
    """
    photos = [
        dataclasses.replace(photo, person_only=person_only or photo.person_only)
        for photo in read_labels(annotations, folder)
        if not photo.path.name.startswith(tuple(exclude_prefixes))
    ]
    for photo in photos:
        if not photo.path.is_file():
            raise DataError(f"{annotations}: photo {photo.path} is missing")
        if not usable(photo):
            raise DataError(
                f"{annotations}: photo {photo.path.name} is {photo.width} x {photo.height}, but "
                f"sides must be {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        for instance in photo.instances:
            if instance.category not in CATEGORY_INDEX:
                raise DataError(
                    f"{annotations}: category {instance.category!r} is not one of COCO's 80"
                )
    return photos


def usable(photo: Photo) -> bool:
    """Whether the runtime takes photos of that size."""
    return min(photo.width, photo.height) >= MIN_SIDE and max(photo.width, photo.height) <= MAX_SIDE


def _photo(
    image: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    folder: Path,
) -> Photo:
    height, width = int(image["height"]), int(image["width"])
    return Photo(
        id=int(image["id"]),
        path=folder / image["file_name"],
        width=width,
        height=height,
        person_only=bool(image.get("person_only", False)),
        instances=tuple(_instance(entry, names, height, width) for entry in entries),
    )


def _instance(
    entry: Mapping[str, Any], names: Mapping[int, str], height: int, width: int
) -> Instance:
    x, y, w, h = (float(value) for value in entry["bbox"])
    pseudo = entry.get("source") == "pseudo"
    return Instance(
        id=int(entry["id"]),
        category=names[entry["category_id"]],
        box=(x, y, x + w, y + h),
        area=float(entry["area"]),
        crowd=bool(entry.get("iscrowd", 0)) or bool(entry.get("maybe_crowd", False)),
        segmentation=_encode(entry, height, width),
        weight=max(float(entry["quality"]), PSEUDO_WEIGHT_FLOOR) if pseudo else 1.0,
    )


def _encode(entry: Mapping[str, Any], height: int, width: int) -> Mapping[str, Any] | None:
    """Compress polygons or an RLE of either kind; None where there is only a box.

    A mask is the union of its polygons, and each is filled even-odd (so a hole joined to the
    outline by a double line stays a hole).
    """
    shape = entry["segmentation"]
    if not entry.get("has_mask", True) or not shape:
        return None
    if isinstance(shape, dict):
        if list(shape["size"]) != [height, width]:
            raise DataError(
                f"annotation {entry['id']}: RLE size {shape['size']} is not the photo's"
            )
        counts = shape["counts"]
        runs = counts if isinstance(counts, list) else _runs(counts)
        # The codec would leave what is short undrawn, at random, and read past what is long; and it
        # takes whole numbers, whatever it is given.
        if not all(type(run) is int for run in runs):
            raise DataError(f"annotation {entry['id']}: its RLE counts are not whole numbers")
        if sum(runs) != height * width or min(runs) < 0:
            raise DataError(
                f"annotation {entry['id']}: its RLE should cover {height * width} pixels, "
                f"but covers {sum(runs)}"
            )
        return dict(rle_codec.frPyObjects({"size": [height, width], "counts": runs}, height, width))
    if any(len(polygon) % 2 for polygon in shape):
        raise DataError(f"annotation {entry['id']}: a polygon has an odd count of numbers")
    # Fewer than three corners enclose nothing (and the codec would read four numbers as a box).
    polygons = [polygon for polygon in shape if len(polygon) >= 6]
    if not polygons:
        return None
    # The codec walks along each side: it would crash on the way to what is no number, or far away.
    far = FAR * max(height, width)
    if not all(abs(float(number)) <= far for polygon in polygons for number in polygon):
        raise DataError(
            f"annotation {entry['id']}: a polygon has a corner that is no number, or more than "
            f"{far} pixels away"
        )
    return dict(rle_codec.merge(rle_codec.frPyObjects(polygons, height, width)))


def _runs(counts: str) -> list[int]:
    """The run lengths of a compressed RLE.

    Six bits a character from "0" up: five of the number, the lowest first, and whether it goes on.
    The last of the five is the sign. From the fourth run on, the number is the difference to the
    run before the last one.
    """
    runs: list[int] = []
    number = shift = 0
    for letter in counts.encode("ascii"):
        bits = letter - ord("0")
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            number -= (bits & 0x10) << (shift - 4)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
