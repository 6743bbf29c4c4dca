"""Phrases that fit nothing in a photo."""

import re
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.coco import Instance, Photo
from training.data.foreign import RARE, ForeignPhrases, by_rule
from training.data.nouns import CATEGORIES, MEANINGS
from training.data.samples import Sample

NOUN = "|".join(sorted(map(re.escape, MEANINGS), key=len, reverse=True))


def instance(key: int, category: str, *, crowd: bool = False) -> Instance:
    return Instance(key, category, (0, 0, 10, 10), 100, crowd)


def photo(*categories: str, person_only: bool = False) -> Photo:
    things = tuple(instance(key, category) for key, category in enumerate(categories))
    return Photo(7, Path("made-up.jpg"), 120, 90, person_only, things)


def written(of: Photo, text: str, thing: int = 0) -> Sample:
    return Sample(of, of.instances[thing], text, "written", "written")


def derived(of: Photo) -> Sample:
    return Sample(of, of.instances[0], of.instances[0].category, "category", "derived")


def drawn(phrases: ForeignPhrases, of: Photo, count: int = 200) -> set[str | None]:
    rng = np.random.default_rng(0)
    return {phrases.draw(of, rng) for _ in range(count)}


def meant(text: str) -> frozenset[str]:
    noun = re.search(rf"\b({NOUN})\b", text)
    assert noun is not None, text
    return MEANINGS[noun[1]]


STREET = photo("car", "dog", "person")
KITCHEN = photo("oven", "cup", "person")
ZOO = photo("zebra")


@settings(max_examples=50)
@given(st.sets(st.sampled_from(CATEGORIES), max_size=6), st.integers(0, 10_000))
def test_rules_name_nothing_that_is_shown(shown: set[str], seed: int) -> None:
    text = by_rule(shown, np.random.default_rng(seed))
    assert text is not None
    assert not meant(text) & shown


def test_nothing_is_foreign_where_everything_is_shown() -> None:
    assert by_rule(CATEGORIES, np.random.default_rng(0)) is None


def test_what_was_written_of_other_photos_is_drawn_where_it_fits_nothing() -> None:
    samples = [
        written(STREET, "the red car"),
        written(STREET, "brown dog near the car", 1),
        written(STREET, "the one on the left", 1),
        written(KITCHEN, "a cup on the oven", 1),
        derived(ZOO),
    ]
    phrases = ForeignPhrases(samples)
    assert {"the red car", "brown dog near the car", "a cup on the oven"} <= drawn(phrases, ZOO)
    in_street = drawn(phrases, STREET)
    assert "a cup on the oven" in in_street
    # Neither what is there, nor what names something that is, nor what fits anything.
    assert not in_street & {sample.text for sample in samples[:3]}


def test_what_somebody_saw_in_a_photo_is_not_foreign_to_it() -> None:
    people = photo("person", person_only=True)
    seen = written(people, "the man watching the train")
    others = [written(STREET, "the red car"), derived(KITCHEN), *(derived(ZOO) for _ in range(40))]
    for samples, fits in (([*others, seen], True), (others, False)):
        texts = {text for text in drawn(ForeignPhrases(samples), people, 3000) if text}
        named_trains = {text for text in texts if "train" in text.split()}
        assert bool(named_trains) != fits


def test_rules_and_people_take_turns() -> None:
    texts = drawn(ForeignPhrases([written(STREET, "the red car")]), ZOO)
    assert "the red car" in texts
    assert len(texts) > 20
    assert len(drawn(ForeignPhrases([derived(STREET)]), ZOO)) > 20


def test_where_people_alone_are_labelled_only_what_is_rare_is_called_absent() -> None:
    many = [derived(photo("car", "dog")) for _ in range(round(2 / RARE))]
    phrases = ForeignPhrases([*many, written(ZOO, "the zebra on the hill")])
    park = photo("person", person_only=True)
    texts = drawn(phrases, park)
    assert "the zebra on the hill" in texts
    for text in texts - {"the zebra on the hill"}:
        assert text is not None
        assert not meant(text) & {"car", "dog", "person"}


def test_nothing_is_surely_absent_without_a_fully_labelled_photo() -> None:
    park = photo("person", "zebra", person_only=True)
    assert drawn(ForeignPhrases([derived(park), written(park, "a zebra", 1)]), park) == {None}
