"""Photos, masks and expressions, read from a COCO folder."""

import json

import cv2
import numpy as np
import pytest

from cris_edge.errors import CrisEdgeError
from tests.photo_folder import CAR_LEFT, HEIGHT, WIDTH, entry, image, rectangle, write
from training.data.coco import read_photos
from training.data.samples import load_samples
from training.errors import DataError


def read(photo_folder, split="train", **options):
    return read_photos(photo_folder / f"instances_{split}.json", photo_folder / "photos", **options)


# --- reading ---


def test_masks_boxes_and_crowds_are_read(photo_folder):
    (street,) = read(photo_folder)
    assert (street.width, street.height, street.person_only) == (WIDTH, HEIGHT, False)
    car = street.by_id[11]
    assert car.category == "car"
    assert car.box == CAR_LEFT
    assert car.weight == 1.0
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[40:80, 8:48] = True
    np.testing.assert_array_equal(car.mask(), expected)
    crowd = street.by_id[14]
    assert crowd.crowd
    assert crowd.mask()[:20, :60].all()
    assert crowd.mask().sum() == 1200


def test_photos_that_may_not_ship_are_read_only_when_asked(photo_folder):
    assert [p.path.name for p in read(photo_folder)] == ["street.png"]
    both = read(photo_folder, exclude_prefixes=())
    assert [p.path.name for p in both] == ["street.png", "pf_people.png"]
    assert both[1].person_only


def test_predicted_masks_weigh_less_and_only_people_are_complete(photo_folder):
    (park,) = {s.photo.id: s.photo for s in load_samples(photo_folder, "boxes")}.values()
    assert park.person_only
    assert [i.weight for i in park.instances] == [0.7, 1.0, 0.3]
    assert [i.has_mask for i in park.instances] == [True, False, True]
    with pytest.raises(DataError, match="has_mask"):
        park.by_id[22].mask()


def test_polygons_unite_and_a_double_line_cuts_a_hole(photo_folder):
    ring = [10, 10, 50, 10, 50, 50, 10, 50, 10, 10, 20, 20, 20, 40, 40, 40, 40, 20, 20, 20]
    shape = [ring, *rectangle(60, 10, 80, 30), *rectangle(70, 10, 90, 30)]
    whole = entry(1, 1, "car", (10, 10, 90, 50), segmentation=shape)
    write(photo_folder, "instances_train.json", [image(1, "street.png")], [whole])
    mask = read(photo_folder)[0].instances[0].mask()
    assert mask[12, 12]
    assert not mask[30, 30]
    assert mask[20, 75]
    assert mask[20, 85]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("bbox"), "bbox"),
        (lambda e: e.update(category_id=5), "5"),
        (lambda e: e.update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd count"),
        (lambda e: e.update(segmentation={"size": [3, 3], "counts": [9]}), "size"),
        # pycocotools would end the process for these, or draw at random.
        (lambda e: e.update(segmentation=[[float("nan"), 2, 3, 4, 5, 6]]), "no number, or more"),
        (lambda e: e.update(segmentation=[[1, 2, 3, float("inf"), 5, 6]]), "no number, or more"),
        (lambda e: e.update(segmentation=[[1, 2, 1e9, 4, 5, 6]]), "more than 640 pixels away"),
        (lambda e: e.update(segmentation=[[1, 2, "3", 4, 5, None]]), "instance format"),
        (
            lambda e: e.update(segmentation={"size": [120, 160], "counts": [19199.5, 0.5]}),
            "not whole numbers",
        ),
    ],
)
def test_what_is_not_coco_is_refused(photo_folder, change, message):
    bad = entry(1, 1, "car", CAR_LEFT)
    change(bad)
    write(photo_folder, "instances_train.json", [image(1, "street.png")], [bad])
    with pytest.raises(DataError, match=message):
        read(photo_folder)


def test_missing_and_broken_files_are_refused(photo_folder):
    with pytest.raises(DataError, match=r"nowhere\.json is missing"):
        read_photos(photo_folder / "nowhere.json", photo_folder / "photos")
    (photo_folder / "instances_val.json").write_text("{")
    with pytest.raises(CrisEdgeError, match="should be a JSON file"):
        read(photo_folder, "val")
    (photo_folder / "photos/street.png").unlink()
    with pytest.raises(DataError, match=r"street\.png is missing"):
        read(photo_folder)


def test_a_broken_or_resized_photo_is_refused(photo_folder):
    (street,) = read(photo_folder)
    street.path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be decoded"):
        street.read()
    cv2.imwrite(str(street.path), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="8 x 8"):
        street.read()


# --- samples ---


def test_derived_and_written_samples(photo_folder):
    samples = load_samples(photo_folder, "train", wordings=6)
    texts = {(s.text, s.instance.id, s.source) for s in samples}
    assert ("red car on left", 11, "written") in texts
    assert ("left car", 11, "derived") in texts
    assert ("blue car", 12, "derived") in texts
    assert ("dog", 13, "derived") in texts
    assert not [s for s in samples if s.instance.category == "person"]
    assert len({(s.text, s.instance.id, s.source) for s in samples}) == len(samples)
    assert {s.source for s in load_samples(photo_folder, "train", "derived")} == {"derived"}
    assert [s.text for s in load_samples(photo_folder, "train", "written")] == [
        "red car on left",
        "RED one",
    ]


def test_ids_may_be_negative(photo_folder):
    path = photo_folder / "instances_val.json"
    labels = json.loads(path.read_text())
    for kind, key in (("images", "id"), ("annotations", "image_id"), ("annotations", "id")):
        for one in labels[kind]:
            one[key] = -1 - one[key]
    wanted = {(s.instance.box, s.kind) for s in load_samples(photo_folder, "val", "derived")}
    path.write_text(json.dumps(labels))
    found = load_samples(photo_folder, "val", "derived")
    assert all(sample.instance.id < 0 for sample in found)
    assert {(sample.instance.box, sample.kind) for sample in found} == wanted


def test_photos_that_the_runtime_does_not_take_are_refused_by_name(photo_folder):
    path = photo_folder / "instances_train.json"
    labels = json.loads(path.read_text())
    labels["images"][0]["width"] = 8200
    labels["annotations"] = []
    path.write_text(json.dumps(labels))
    with pytest.raises(DataError, match=r"street\.png is 8200 x 120, .* 8 to 8192 pixels"):
        read(photo_folder)


def test_samples_are_fixed_by_the_seed(photo_folder):
    def texts(seed):
        return [s.text for s in load_samples(photo_folder, "train", "derived", seed=seed)]

    assert texts(1) == texts(1)
    assert len({tuple(texts(seed)) for seed in range(6)}) > 1


def test_boxes_give_expressions_of_people_and_what_was_written(photo_folder):
    samples = load_samples(photo_folder, "boxes")
    assert {s.instance.category for s in samples if s.source == "derived"} == {"person"}
    assert {s.instance.id for s in samples if s.source == "derived"} == {21}
    assert [s.text for s in samples if s.source == "written"] == ["black dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (5, "expected a list, found int"),
        ({}, "expected a list, found dict"),
        ([5], "entry 0: expected a dictionary, found int"),
        ([{"annotation_id": 11, "expressions": ["x"]}], "entry 0 lacks 'image_id'"),
        ([{"image_id": "1", "annotation_id": 11, "expressions": ["x"]}], "whole number, found '1'"),
        (
            [{"image_id": 1, "annotation_id": 11, "expressions": "x"}],
            "of expressions, found 'x'",
        ),
        (
            [{"image_id": 1, "annotation_id": 11, "expressions": [None]}],
            "expected text, found None",
        ),
        ([{"image_id": 1, "annotation_id": 11, "expressions": ["x", " "]}], "expression is empty"),
        ([{"image_id": 1, "annotation_id": 11, "expressions": ["&nbsp;"]}], "expression is empty"),
        ([{"image_id": 1, "annotation_id": 11, "expressions": ["a \ud83d"]}], "entry 0: .*surrog"),
        ([{"image_id": 2**63, "annotation_id": 11, "expressions": ["x"]}], "number of 64 bits"),
    ],
)
def test_expressions_that_cannot_be_are_refused(photo_folder, content, message):
    (photo_folder / "expressions_written_val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"expressions_written_val\.json: .*{message}"):
        load_samples(photo_folder, "val")


def test_an_expression_for_an_unknown_instance_is_refused(photo_folder):
    wrong = [{"image_id": 1, "annotation_id": 777, "expressions": ["x"]}]
    (photo_folder / "expressions_written_val.json").write_text(json.dumps(wrong))
    with pytest.raises(DataError, match="777"):
        load_samples(photo_folder, "val")
    with pytest.raises(DataError, match="split"):
        load_samples(photo_folder, "test")
