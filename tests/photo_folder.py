"""A small data folder of photos, labels and expressions, as docs/data.md describes it."""

import json

import cv2
import numpy as np

from training.data.nouns import CATEGORIES

WIDTH, HEIGHT = 160, 120
CATEGORY_IDS = {name: index * 3 for index, name in enumerate(CATEGORIES, start=1)}
BACKGROUND = (90, 90, 90)
RED, BLUE = (0, 0, 230), (230, 60, 0)


def rectangle(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def entry(key, image, category, box, **more):
    x1, y1, x2, y2 = box
    return {
        "id": key,
        "image_id": image,
        "category_id": CATEGORY_IDS[category],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": rectangle(*box),
    } | more


def image(key, name, **more):
    return {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def crowd_rle(x1, y1, x2, y2):
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[y1:y2, x1:x2] = 1
    flat = drawn.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts_inside = [0] if flat[0] else []  # the first count is of pixels outside
    counts = starts_inside + np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


CAR_LEFT, CAR_RIGHT, DOG = (8, 40, 48, 80), (104, 40, 152, 84), (64, 84, 92, 112)
CROWD = (0, 0, 60, 20)


def write(folder, name, images, annotations):
    categories = [{"id": key, "name": category} for category, key in CATEGORY_IDS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).write_text(json.dumps(content))


def write_photos(folder):
    """A data folder of three photos: cars and a dog with a crowd; PennFudan; predicted masks."""
    for part in ("photos", "boxes"):
        (folder / part).mkdir()
    picture = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    for (x1, y1, x2, y2), colour in ((CAR_LEFT, RED), (CAR_RIGHT, BLUE), (DOG, (20, 20, 20))):
        picture[y1:y2, x1:x2] = colour
    for name in ("photos/street.png", "photos/pf_people.png", "boxes/park.png"):
        cv2.imwrite(str(folder / name), picture)
    annotations = [
        entry(11, 1, "car", CAR_LEFT),
        entry(12, 1, "car", CAR_RIGHT),
        entry(13, 1, "dog", DOG),
        entry(14, 1, "person", CROWD, iscrowd=1, segmentation=crowd_rle(*CROWD)),
        entry(15, 2, "person", CAR_LEFT),
    ]
    images = [image(1, "street.png"), image(2, "pf_people.png", person_only=True)]
    for split in ("train", "val"):
        write(folder, f"instances_{split}.json", images, annotations)
    predicted = [
        entry(21, 3, "person", CAR_LEFT, source="pseudo", has_mask=True, quality=0.7),
        entry(22, 3, "person", CAR_RIGHT, source="box", has_mask=False, segmentation=[]),
        entry(23, 3, "dog", DOG, source="pseudo", has_mask=True, quality=0.1),
    ]
    write(folder, "boxes_pseudo_instances.json", [image(3, "park.png")], predicted)
    written = [
        {"image_id": 1, "annotation_id": 11, "expressions": ["red car on left", "RED one"]},
        {"image_id": 99, "annotation_id": 1, "expressions": ["of another photo"]},
    ]
    for split in ("train", "val"):
        (folder / f"expressions_written_{split}.json").write_text(json.dumps(written))
    of_boxes = [
        {"image_id": 3, "annotation_id": 23, "expressions": ["black dog"]},
        {"image_id": 3, "annotation_id": 22, "expressions": ["has no mask"]},
    ]
    (folder / "expressions_written_boxes.json").write_text(json.dumps(of_boxes))
    return folder
