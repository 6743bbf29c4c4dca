"""A small prepared reference set of made-up scenes, and a segmenter that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cris_edge import Segmenter
from cris_edge.letterbox import Letterbox
from cris_edge.segmenter import Info
from tests.scenes import small_tokenizer, write_folder
from training.data.coco import read_photos
from training.data.prepared import write_references
from training.data.references import Entry, ReferenceSet

SCENES = 4
Told = tuple[str, tuple[int, ...], tuple[str, ...]]
"""Split, places of the objects in the scene (two cars, then a dog), sentences."""

PLAIN: list[Told] = [
    ("train", (0,), ("car at the left", "left car")),
    ("train", (2,), ("the dog",)),
    ("val", (0,), ("car on the left", "no car there", "the blue one")),
    ("val", (2,), ("the dog", "an animal")),
    ("testA", (1,), ("right car", "blue car")),
]
"""Each fits one object."""
GENERAL: list[Told] = [
    ("val", (0, 1), ("both cars", "all cars")),
    ("val", (0, 2), ("left car and dog",)),
    ("val", (), ("no zebra", "a red kite")),
    ("val", (2,), ("the dog",)),
]
"""Some fit several objects, some fit none; there is no split to train on."""


def write_set(root: Path, told: list[Told], name: str = "made") -> Path:
    """Write a prepared set that says the same of each of four scenes; its folder."""
    return write_scenes_set(root, [told] * SCENES, name)


def write_scenes_set(root: Path, told: list[list[Told]], name: str) -> Path:
    """Write a prepared set with what is said of each scene; its folder."""
    data = write_folder(root / "data", scenes=len(told))
    photos = tuple(read_photos(data / "instances_val.json", data / "photos"))
    entries = [
        Entry(
            id=100 * scene + place,
            split=split,
            image_id=photo.id,
            photo=scene,
            annotation_ids=tuple(photo.instances[i].id for i in objects),
            sentences=sentences,
        )
        for scene, photo in enumerate(photos)
        for place, (split, objects, sentences) in enumerate(told[scene])
    ]
    source = data / "instances_val.json"
    made = ReferenceSet(name, data / "photos", (source,), photos, tuple(entries))
    write_references(made, root / "prepared", {})
    return root / "prepared"


class Plain:
    """A graph of numpy."""

    def __init__(self, compute: Callable[[Mapping[str, Any]], dict[str, Any]]):
        self._compute = compute

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._compute(inputs)

    def fetch(self, value: Any) -> Any:
        return value


def obedient_segmenter() -> Segmenter:
    """Takes the whole photo for what is meant; and nothing where the phrase starts with "no"."""
    tokenizer = small_tokenizer()
    (_, no, *_) = tokenizer.encode("no", 8).tolist()

    def answer(inputs: Mapping[str, Any]) -> dict[str, Any]:
        logits = np.where(inputs["refused"], -9, 9).astype(np.float32)
        return {"logits": np.broadcast_to(logits[:, None, None, None], (len(logits), 1, 16, 16))}

    return Segmenter.from_graphs(
        letterbox=Letterbox(size=64, mean=(0.5, 0.5, 0.5)),
        tokenizer=tokenizer,
        word_len=8,
        threshold=0.35,
        graphs={
            "photo": Plain(lambda inputs: {"frame": inputs["frame"]}),
            "phrase": Plain(lambda inputs: {"refused": inputs["tokens"][:, 1] == no}),
            "pair": Plain(answer),
        },
        info=Info("obedient", "float32", 64, "none", "0", None),
    )
