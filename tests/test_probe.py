"""Whether a model listens: one that does, one that cannot, and what is said of either."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge import Segmentation
from tests.reference_sets import PLAIN, write_set
from tests.scenes import CATEGORIES, COLOURS, small_model, small_tokenizer, write_labels
from training import checkpoint
from training.data.coco import Instance, Photo
from training.data.mirror import mirror
from training.data.nouns import CATEGORIES as CATEGORY_NAMES
from training.data.nouns import MEANINGS
from training.data.samples import Sample, load_samples
from training.evaluation import evaluate_samples
from training.hearing import SWAPPED, WRONG, Hearing, listen
from training.model.cost import parameters
from training.probe import main
from training.probes import PROBES, Figure, best_threshold, roc_area
from training.selection import FolderData
from training.wording import (
    OTHER,
    SIDES,
    named,
    other_side,
    side_alone,
    spoken_of,
    wrong_class,
)

HEIGHT, WIDTH = 80, 144
PERSON, CAR, DOG = CATEGORIES
GREY = (90, 90, 90)
SCENES = [
    # A dog stands left of both cars, so that the thing on the left is not the car on the left.
    [(DOG, 2, 40, 30, "the dog"), (CAR, 50, 20, 30, "left car"), (CAR, 99, 18, 36, "right car")],
    [(DOG, 10, 30, 30, "left dog"), (DOG, 90, 30, 30, "dog on the right")],
    [(PERSON, 60, 20, 30, "the man")],
]
"""(category id, x, y, height, what is written of it) of things that are all equally wide."""
BREADTH = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("probe") / "data")


def write_scenes(root: Path) -> Path:
    (root / "photos").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    for scene, things in enumerate(SCENES):
        picture, name = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8), f"scene_{scene}.png"
        images.append({"id": scene, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for place, (category, x, y, tall, text) in enumerate(things):
            picture[y : y + tall, x : x + BREADTH] = COLOURS[category]
            key, right, low = 10 * scene + place, x + BREADTH, y + tall
            labels = {"id": key, "image_id": scene, "category_id": category, "iscrowd": 0}
            shape = {"bbox": [x, y, BREADTH, tall], "area": BREADTH * tall}
            outline = {"segmentation": [[x, y, right, y, right, low, x, low]]}
            annotations.append(labels | shape | outline)
            written.append({"image_id": scene, "annotation_id": key, "expressions": [text]})
        cv2.imwrite(str(root / "photos" / name), picture)
    write_labels(root, images, annotations, written)
    return root


class Painter:
    """Paints things that it finds by their colours, with probability 0.9, all else with 0.1."""

    def predict(self, photo: NDArray[np.uint8], phrases: Sequence[str]) -> list[Segmentation]:
        things = [thing for key in CATEGORIES for thing in self.find(photo, key)]
        things.sort(key=lambda thing: thing[0].nonzero()[1].mean())
        return [Segmentation(text, self.paint(self.choose(text, things)), 0.5) for text in phrases]

    def find(self, photo: NDArray[np.uint8], key: int) -> list[tuple[NDArray[np.bool_], str]]:
        alike = (photo == np.array(COLOURS[key])).all(axis=2).astype(np.uint8)
        count, parts = cv2.connectedComponents(alike)
        return [(parts == part, CATEGORIES[key]) for part in range(1, count)]

    def paint(self, masks: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
        chosen = np.any(masks, axis=0) if masks else np.zeros((HEIGHT, WIDTH), bool)
        return np.where(chosen, 0.9, 0.1).astype(np.float32)

    def choose(self, text: str, things: list[tuple[Any, str]]) -> list[NDArray[np.bool_]]:
        raise NotImplementedError


class Deaf(Painter):
    """Paints whatever is on the left."""

    def choose(self, text: str, things: list[tuple[Any, str]]) -> list[NDArray[np.bool_]]:
        return [things[0][0]]


class Listener(Painter):
    """Knows nouns and sides; paints all that fits."""

    def choose(self, text: str, things: list[tuple[Any, str]]) -> list[NDArray[np.bool_]]:
        words = {word.removesuffix("s") for word in text.replace("man", "person").split()}
        fits = [mask for mask, name in things if self.means(words, name)]
        return fits[:1] if "left" in words else fits[-1:] if "right" in words else fits

    def means(self, words: set[str], name: str) -> bool:
        return "thing" in words or any(name in MEANINGS[word] for word in words & set(MEANINGS))


@pytest.fixture(scope="module")
def deaf(data: Path) -> Hearing:
    return listen(Deaf(), FolderData(data), progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def listener(data: Path) -> Hearing:
    return listen(Listener(), FolderData(data), progress=False)  # type: ignore[arg-type]


def figures(hearing: Hearing, heading: str) -> dict[str, tuple[Any, ...]]:
    """Count and value of each figure, and chance where there is one."""
    (probe,) = (probe for name, probe in PROBES.items() if name.startswith(heading))
    return {figure.name: told(figure) for figure in probe(hearing)}


def told(figure: Figure) -> tuple[Any, ...]:
    value = None if figure.value is None else round(figure.value, 9)
    return (figure.count, value, *([] if figure.chance is None else [figure.chance]))


# --- what each figure says of the two ---


def test_expressions_score_what_the_masks_score(deaf: Hearing, listener: Hearing) -> None:
    # The dog, the left dog and the man are what is on the left.
    assert figures(deaf, "Written") == {
        "mIoU": (6, 0.5), "Pr@50": (6, 0.5), "mIoU, not a person": (5, 0.4),
    }  # fmt: skip
    assert figures(listener, "Written")["mIoU"] == (6, 1)


def test_derived_expressions_score_as_in_an_evaluation(data: Path, deaf: Hearing) -> None:
    samples = load_samples(data, "val", "derived")
    groups = evaluate_samples(Deaf(), samples, progress=False).groups  # type: ignore[arg-type]
    found = figures(deaf, "Derived")
    names = ["all", "area >= 3 %", "rival present"]
    assert list(found.values()) == [(groups[n].count, round(groups[n].miou, 9)) for n in names]
    assert 0 < groups["rival present"].count < groups["all"].count


def test_the_category_alone_says_half_of_it(deaf: Hearing, listener: Hearing) -> None:
    found = figures(listener, "More than the category")
    # Both cars, or both dogs, are painted where one is meant: their IoUs add up to 1.
    assert found["written: mIoU, full expression"] == (4, 1)
    assert found["written: mIoU, category word alone"] == (4, 0.5)
    assert found["written: points that the rest adds"] == (4, 0.5)
    assert found["derived: points that the rest adds"][1] == 0.5
    found = figures(deaf, "More than the category")
    assert found["written: mIoU, category word alone"] == (4, 0.25)
    assert found["written: points that the rest adds"] == (4, 0)


def test_who_listens_finds_all_where_nobody_says_which(deaf: Hearing, listener: Hearing) -> None:
    assert [heard.sample.text for heard in listener.several] == ["cars", "dogs"]
    assert figures(listener, "All of") == {
        "mIoU, plural": (2, 1), "mIoU, category word alone": (2, 1),
    }  # fmt: skip
    # What is on the left is no car, and one of the two dogs.
    assert figures(deaf, "All of")["mIoU, plural"] == (2, 0.25)


def test_the_right_instance_is_hit_or_not(deaf: Hearing, listener: Hearing) -> None:
    found = figures(listener, "Mask on the right instance")
    assert found["full expression"] == found["says left or right"] == (4, 1, 0.5)
    assert found["says a colour"] == (0, None)
    # A mask on both cars fits the taller one better; dogs that it fits equally are no hit.
    assert found["category word alone"] == (4, 0.25, 0.5)
    assert found["blind: the largest of the category"] == (4, 0.25)
    for text, meant in (("left car", 0), ("right car", 1)):
        (heard,) = (one for one in listener.written if one.sample.text == text)
        found = figures(Hearing([heard], [], [], None), "Mask on the right instance")
        assert found["blind: the largest of the category"] == (1, meant)
    # Of the four, the left dog alone; a mask on the dog is on none of the cars.
    found = figures(deaf, "Mask on the right instance")
    assert found["full expression"] == found["category word alone"] == (4, 0.25, 0.5)


def test_sides_that_are_swapped_lose_all_or_nothing(deaf: Hearing, listener: Hearing) -> None:
    found = figures(listener, "Left and right swapped")
    assert found["written: mIoU, left and right swapped"] == (4, 0)
    assert found["written: points lost"] == (4, 1)
    assert found["derived: points lost"][1] == 1
    assert found["derived: points lost"][0] >= 4
    found = figures(deaf, "Left and right swapped")
    assert found["written: mIoU, left and right swapped"] == (4, 0.25)
    assert found["written: points lost"] == (4, 0)


def test_the_side_is_not_all(deaf: Hearing, listener: Hearing) -> None:
    found = figures(listener, "Side without the class")
    # On the left of the cars is the dog.
    assert found["written: mIoU, side alone"] == (4, 0.75)
    assert found["written: points lost, side alone"] == (4, 0.25)
    assert found["written: mIoU, wrong class, right side"] == (4, 0)
    assert found["written: points lost, wrong class, right side"] == (4, 1)
    found = figures(deaf, "Side without the class")
    assert found["written: points lost, wrong class, right side"] == (4, 0)


def test_who_does_not_listen_scores_no_more_than_blindly(deaf: Hearing, listener: Hearing) -> None:
    found = figures(deaf, "Blind")
    assert found["mIoU, model, shuffled phrases"] == (6, 0.5)
    tall = np.mean([height for scene in SCENES for _, _, _, height, _ in scene])
    share = BREADTH * tall / (HEIGHT * WIDTH)
    assert found["mIoU, whole photo"] == (6, round(share, 9))
    assert found["points above the best"] == (6, 0)
    found = figures(listener, "Blind")
    best = max(figure[1] for name, figure in found.items() if name.startswith("mIoU"))
    assert found["points above the best"] == (6, round(1 - best, 9))


def test_the_score_of_who_listens_tells_foreign_phrases(deaf: Hearing, listener: Hearing) -> None:
    found = figures(listener, "Score")
    count = found["mean score, foreign"][0]
    # At least of the man, in whose photo nothing else is, and of his phrase, wherever it went.
    assert 2 <= count < 6
    assert found["mean score, fitting"] == (6, pytest.approx(0.9))
    assert found["mean score, foreign"] == (count, pytest.approx(0.1))
    assert found["area under the ROC curve"] == (6 + count, 1, 0.5)
    assert found["best threshold of the score"][1] == pytest.approx(0.9)
    assert found["foreign phrases below it"] == (count, 1)
    assert figures(deaf, "Score")["area under the ROC curve"] == (6 + count, 0.5, 0.5)


def test_foreign_phrases_that_may_fit_are_left_out(listener: Hearing) -> None:
    kept = 0
    for heard in listener.written:
        present = {instance.category for instance in heard.sample.photo.instances}
        foreign = heard.records["of another photo"]
        meant = "car" if "car" in foreign.phrase else "dog" if "dog" in foreign.phrase else "person"
        kept += meant not in present
    assert figures(listener, "Score")["mean score, foreign"][0] == kept


# --- figures of scores ---


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    assert roc_area([0.9, 0.8], [0.1, 0.2]) == 1
    assert roc_area([0.5], [0.5, 0.5]) == 0.5
    rng = np.random.default_rng(1)
    fits, not_fits = rng.integers(0, 12, 40) / 12, rng.integers(0, 9, 30) / 12
    pairs = [(a > b) + (a == b) / 2 for a in fits for b in not_fits]
    assert roc_area(list(fits), list(not_fits)) == pytest.approx(np.mean(pairs))


def test_the_threshold_accepts_most_that_fit_and_least_that_do_not() -> None:
    # From 0.6: three of four against one of four. From 0.3: all against three.
    assert best_threshold([0.3, 0.6, 0.7, 0.9], [0.1, 0.3, 0.4, 0.8]) == 0.6
    assert best_threshold([0.2, 0.2], [0.1, 0.1]) == 0.2


# --- wording ---


@pytest.mark.parametrize(
    ("text", "subjects"),
    [
        ("left car", (SIDES,)),
        ("giraffe on the left", (SIDES,)),
        ("the small white dog", ("a colour", "a size")),
        ("sink in the bottom right corner", (SIDES, "top, middle or bottom")),
        ("zebra in the middle", ("top, middle or bottom",)),
        ("cup on the saucer", ("a relation",)),
        ("man in red with a hat", ("a colour", "with, without or in")),
        ("cat in the middle without a collar", ("top, middle or bottom", "with, without or in")),
        ("keyboard in front of the laptop", ("a relation",)),
        ("dark sedan left of the bike", (SIDES, "a colour", "a relation")),
        ("plane where only the wing shows", (OTHER,)),
        ("leftover pizza", (OTHER,)),
    ],
)
def test_what_a_phrase_speaks_of(text: str, subjects: tuple[str, ...]) -> None:
    assert spoken_of(text) == subjects


def test_categories_are_known_by_their_names() -> None:
    assert named("guy with the loose tie") == {"person", "tie"}
    assert named("Bikes by two buses") == {"bicycle", "motorcycle", "bus"}
    assert named("hot dog on the table") == {"hot dog", "dining table"}
    assert named("knives beside the computer mice") == {"knife", "mouse"}
    assert named("one with green boots") == frozenset()


def row(
    text: str, count: int, category: str = "dog", person_only: bool = False, photo_id: int = 7
) -> Sample:
    instances = tuple(Instance(i, category, (i, 0, i + 1, 1), 1.0) for i in range(count))
    photo = Photo(photo_id, Path("7.jpg"), 8, 8, person_only, instances)
    return Sample(photo, instances[0], text, "written", "written")


def test_other_phrasings_keep_or_change_one_thing() -> None:
    sample = row("Left dog with a ball", 2)
    assert other_side(sample) == mirror(sample.text) == "Right dog with a ball"
    assert side_alone(sample) == "thing on the left"
    assert wrong_class(row("left man", 2, "person", person_only=True)) is None
    for text in ("second dog from the right", "dog right of the cat"):
        # It lies in the other half.
        assert other_side(row(text, 2)) is not None
        assert side_alone(row(text, 2)) is wrong_class(row(text, 2)) is None
    for text in ("the dog", "dog left of the right tree", "flat spatula right above the big fork"):
        assert other_side(row(text, 2)) is side_alone(row(text, 2)) is None


def test_a_wrong_class_is_none_that_is_in_the_photo() -> None:
    samples = [row("left dog", 2, photo_id=key) for key in range(len(CATEGORY_NAMES))]
    said = [wrong_class(sample) for sample in samples]
    assert said == [wrong_class(sample) for sample in samples]
    classes = {text.removesuffix(" on the left") for text in said if text}
    # Nor an animal of another kind.
    assert classes == set(CATEGORY_NAMES) - MEANINGS["animal"]


def test_the_middle_of_a_row_is_the_same_from_both_ends() -> None:
    for text in ("second dog from the left", "2nd animal from right", "second one from the left"):
        assert other_side(row(text, 3)) is None
        assert wrong_class(row(text, 3)) is None
        assert other_side(row(text, 4)) == mirror(text)
    assert other_side(row("third dog from the left", 3)) == "third dog from the right"


# --- the command ---


def test_the_command_prints_and_writes_everything(
    small_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ["--json", str(tmp_path / "p.json"), "--sheet", str(tmp_path / "s.png")]
    options = ["--data", str(data), "--engine", "onnxruntime", "--threads", "1"]
    assert main([str(small_bundle), *options, *written]) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    content = json.loads((tmp_path / "p.json").read_text())
    assert list(content["probes"]) == [*PROBES, "Size"]
    for heading, rows in content["probes"].items():
        assert heading in printed
        for name, figure in rows.items():
            assert name in printed
            assert figure.keys() == {"n", "value", "chance", "unit"}
    written_rows = content["probes"]["Written expressions"]
    samples = load_samples(data, "val", "written")
    assert written_rows["mIoU"]["n"] == len(samples)
    files = [path for path in small_bundle.iterdir() if path.name != "bundle.json"]
    size = sum(path.stat().st_size for path in files)
    assert content["probes"]["Size"]["bytes"]["value"] == size
    assert f"{size:,}" in printed
    for name in ("full-expression", "left-and-right-swapped", "side-alone"):
        assert (tmp_path / f"s-{name}.png").stat().st_size > 10_000


def test_a_checkpoint_of_data_without_written_expressions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tokenizer = write_scenes(tmp_path / "data"), small_tokenizer()
    (data / "expressions_written_val.json").unlink()
    path, model = tmp_path / "small.safetensors", small_model(tokenizer)
    checkpoint.save(path, model, tokenizer, {})
    assert main([str(path), "--data", str(data)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"parameters {parameters(model):,}" in lines
    assert f"bytes {path.stat().st_size:,}" in lines
    assert "written: points lost 0 -" in lines
    assert any(line.startswith("area under the ROC curve 0 - 0.500") for line in lines)


def test_data_without_a_training_split_are_probed(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data")
    (data / "instances_train.json").unlink()
    hearing = listen(Deaf(), FolderData(data), progress=False)  # type: ignore[arg-type]
    blind = figures(hearing, "Blind baselines, written")
    assert hearing.learned is None
    assert blind["points above the best"][1] is not None


def test_what_cannot_be_probed_is_refused_in_one_line(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path, PLAIN)
    for wrong, why in ((folder, "is a prepared set"), (tmp_path / "none", "is missing")):
        assert main([str(small_bundle), "--data", str(wrong)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert why in printed.err


def test_every_other_phrasing_is_of_samples_that_have_a_rival(listener: Hearing) -> None:
    for heard in (*listener.written, *listener.derived):
        if {SWAPPED, WRONG} & set(heard.records):
            assert "rival present" in heard.groups
            assert {SWAPPED, WRONG} <= set(heard.records)
