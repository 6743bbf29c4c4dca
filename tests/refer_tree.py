"""Small data sets in the formats of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, and one's own."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec

# What people said of other photos, from RefCOCO and RefCOCOg.
SENTENCES = tuple(
    (Path(__file__).parent / "data/refcoco_sentences.txt").read_text(encoding="utf-8").splitlines()
)
FILES = {
    "refcoco": "refcoco/refs(unc).p",
    "refcoco+": "refcoco+/refs(unc).p",
    "refcocog_umd": "refcocog/refs(umd).p",
    "refcocog_google": "refcocog/refs(google).p",
    "grefcoco": "grefcoco/grefs(unc).json",
}
SPLITS = {
    "refcoco": ("train", "val", "testA", "testB"),
    "refcoco+": ("train", "val", "testA", "testB"),
    "refcocog_umd": ("train", "val", "test"),
    "refcocog_google": ("train", "val"),
    "grefcoco": ("train", "val", "testA", "testB"),
}
SIZES = ((80, 60), (60, 84), (97, 64))
"""(width, height) of photos in turn."""
CATEGORIES = {1: "person", 11: "fire hydrant", 90: "unicorn"}
PHOTOS = "images/train2014"
PER_SPLIT = 2

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


def draw(size: tuple[int, int], *boxes: Box) -> Mask:
    """Rectangles (x1, y1, x2, y2), each inverting what is below: bool (height, width)."""
    width, height = size
    mask = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] ^= True
    return mask


def polygon(box: Box) -> list[list[float]]:
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def uncompressed(mask: Mask) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff([0, *edges.tolist(), mask.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: Mask) -> dict[str, Any]:
    encoded = rle_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def photo_name(image: int) -> str:
    return f"COCO_train2014_{image:012d}.jpg"


@dataclass
class Tree:
    """A data set under a root: change what it holds, then `save` it."""

    root: Path
    dataset: str
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    masks: dict[int, Mask] = field(default_factory=dict)

    @property
    def references(self) -> Path:
        return self.root / FILES[self.dataset]

    @property
    def instances(self) -> Path:
        return self.references.with_name("instances.json")

    def photo(self, image: int) -> Path:
        return self.root / PHOTOS / photo_name(image)

    def annotation(self, key: int) -> dict[str, Any]:
        return next(a for a in self.annotations if a["id"] == key)

    def save(self, protocol: int = 2) -> None:
        """Write the labels, not the photos."""
        self.references.parent.mkdir(parents=True, exist_ok=True)
        if self.references.suffix == ".json":
            self.references.write_text(json.dumps(self.refs))
        elif protocol <= 2:
            self.references.write_bytes(python2_pickle(self.refs, protocol))
        else:
            self.references.write_bytes(pickle.dumps(self.refs, protocol))
        categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
        content = {
            "info": {},
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        self.instances.write_text(json.dumps(content))


def write_tree(root: Path, dataset: str, protocol: int = 2) -> Tree:
    """Write a whole data set, two photos a split, with three things, a crowd and a box in each."""
    tree = Tree(root, dataset)
    (root / PHOTOS).mkdir(parents=True, exist_ok=True)
    for place, split in enumerate(np.repeat(SPLITS[dataset], PER_SPLIT).tolist()):
        image = 5 + 7 * place
        _add_photo(tree, image, place)
        targets = [[10 * image], [10 * image + 1], [10 * image + 2]]
        if dataset == "grefcoco":
            targets += [[10 * image, 10 * image + 2], [-1], [10 * image + k for k in (2, 1, 0)]]
        for target in targets:
            _add_reference(tree, split, image, target)
    tree.save(protocol)
    return tree


def _add_photo(tree: Tree, image: int, place: int) -> None:
    size = SIZES[place % len(SIZES)]
    width, height = size
    rng = np.random.default_rng(image)
    cv2.imwrite(str(tree.photo(image)), rng.integers(0, 255, (height, width, 3), np.uint8))
    tree.images.append(
        {"id": image, "file_name": photo_name(image), "width": width, "height": height}
    )
    first, second, third, hole = (
        (3 + place, 4, 21 + place, 30),
        (0, 0, 50, 12 + place),
        (15, 20, width, height),
        (20, 30, 40, 41),
    )
    shapes = [draw(size, first), draw(size, second), draw(size, third, hole), draw(size, second)]
    segmentations = [polygon(first), uncompressed(shapes[1]), compressed(shapes[2])]
    segmentations += [uncompressed(shapes[3]), []]
    boxes = [first, second, third, second, first]
    for number, (shape, (x1, y1, x2, y2)) in enumerate(zip(segmentations, boxes, strict=True)):
        key = 10 * image + number
        tree.annotations.append(
            {
                "id": key,
                "image_id": image,
                "category_id": (1, 11, 90, 1, 11)[number],
                "bbox": [x1 + 0.25, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1) + 0.5,
                "iscrowd": int(number == 3),
                "segmentation": shape,
            }
        )
    tree.masks |= {10 * image + number: mask for number, mask in enumerate(shapes[:3])}


def _add_reference(tree: Tree, split: str, image: int, target: list[int]) -> None:
    number = len(tree.refs)
    said = [SENTENCES[(3 * number + i) % len(SENTENCES)] for i in range(1 + number % 3)]
    sentences = [
        {"tokens": text.split(), "raw": text.capitalize(), "sent_id": 3 * number + i, "sent": text}
        for i, text in enumerate(said)
    ]
    several = tree.dataset == "grefcoco"
    kinds = [a["category_id"] for key in target for a in tree.annotations if a["id"] == key]
    ref = {
        "ref_id": number,
        "ann_id": target if several else target[0],
        "category_id": (kinds or [-1]) if several else kinds[0],
        "image_id": image,
        # Named after the annotation too, unlike the photo.
        "file_name": photo_name(image).replace(".jpg", f"_{target[0]}.jpg"),
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }
    tree.refs.append(ref | ({"no_target": target == [-1]} if several else {}))


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes ASCII as Python 2's `str`, all other text as its `unicode`."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str(self, text: str) -> None:
        if not text.isascii():
            pickle._Pickler.save_str(self, text)  # type: ignore[attr-defined]
            return
        content = text.encode()
        if self.proto == 0:
            self.write(b"S" + repr(text).encode() + b"\n")
        elif len(content) < 256:
            self.write(b"U" + bytes([len(content)]) + content)
        else:
            self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = save_str


def python2_pickle(content: Any, protocol: int) -> bytes:
    """A pickle as Python 2 wrote it; protocol 0 to 2."""
    stream = BytesIO()
    _Python2Pickler(stream, protocol).dump(content)
    return stream.getvalue()


OWN_SPLITS = ("train", "val", "night")


def write_own(root: Path) -> Path:
    """Write data of one's own: each split numbers its photos and annotations from 1.

    Its expressions mean annotation 1, then 1 and 2, then nothing, in each of two photos.
    """
    (root / "photos").mkdir(parents=True)
    for split in OWN_SPLITS:
        images, annotations, said = [], [], []
        for image in (1, 2):
            width, height = size = SIZES[image]
            name = f"pf_{split}_{image}.jpg"
            cv2.imwrite(str(root / "photos" / name), np.full((height, width, 3), 90, np.uint8))
            images.append({"id": image, "file_name": name, "width": width, "height": height})
            for key in (1, 2):
                box = own_box(split, image, key)
                annotations.append(
                    {
                        "id": 2 * image + key,
                        "image_id": image,
                        "category_id": key,
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": int(draw(size, box).sum()),
                        "segmentation": polygon(box),
                    }
                )
            one, two = 2 * image + 1, 2 * image + 2
            said += [
                {"image_id": image, "annotation_id": one, "expressions": list(SENTENCES[:2])},
                {"image_id": image, "annotation_ids": [one, two], "expressions": ["both"]},
                {"image_id": image, "annotation_ids": [], "expressions": [SENTENCES[4]]},
            ]
        images[1]["person_only"] = True
        annotations[-1] |= {"source": "pseudo", "quality": 0.7}
        categories = [{"id": 1, "name": "forklift"}, {"id": 2, "name": "pallet"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
        (root / f"expressions_written_{split}.json").write_text(json.dumps(said))
    # Neither has its counterpart.
    (root / "instances_unsaid.json").write_text("{}")
    (root / "expressions_written_boxes.json").write_text("[]")
    return root


def own_box(split: str, image: int, key: int) -> Box:
    start = 4 * OWN_SPLITS.index(split) + image
    return (start, 5, start + 20, 25) if key == 1 else (start + 12, 20, start + 40, 50)
