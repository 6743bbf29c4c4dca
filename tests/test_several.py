"""Phrases that mean all things of a kind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_codec

from training.data.coco import Instance, Photo, join
from training.data.nouns import CATEGORIES, MEANINGS, plural
from training.data.samples import Sample
from training.data.several import all_of_each, draw_several, kinds
from training.groups import category_name, group_names
from training.wording import named

WIDTH, HEIGHT = 120, 90


def instance(key: int, category: str, *, crowd: bool = False, outlined: bool = True) -> Instance:
    """A thing in its own column of the photo."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:50, key * 10 : key * 10 + 5] = 1
    box = (key * 10.0, 10.0, key * 10 + 5.0, 50.0)
    return Instance(key, category, box, 200, crowd, rle_codec.encode(mask) if outlined else None)


def photo(*things: Instance, person_only: bool = False) -> Photo:
    return Photo(7, Path("made-up.jpg"), WIDTH, HEIGHT, person_only, things)


def names(of: Photo) -> set[str]:
    return {noun for noun in kinds(of) if noun in CATEGORIES}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["dog", "cat", "person"]), max_size=6), st.integers(0, 1000))
def test_a_phrase_means_all_that_it_names(categories: list[str], seed: int) -> None:
    of = photo(*(instance(key, name) for key, name in enumerate(categories)))
    drawn = draw_several(of, np.random.default_rng(seed))
    if drawn is None:
        assert max(map(categories.count, categories), default=0) < 2
        assert {"dog", "cat"} - set(categories)
        return
    text, meant = drawn
    members = [one for one in of.instances if one.category in named(text)]
    assert meant.objects == len(members) >= 2
    np.testing.assert_array_equal(meant.mask(), np.any([m.mask() for m in members], axis=0))


def test_what_is_too_small_to_be_seen_is_not_meant() -> None:
    def sized(area: float) -> Photo:
        things = (instance(0, "dog"), instance(1, "dog"))
        return photo(*(dataclasses.replace(one, area=area) for one in things))

    # Both together, as one thing alone: 0.3 % of the photo.
    assert draw_several(sized(0.0014 * WIDTH * HEIGHT), np.random.default_rng(0)) is None
    assert draw_several(sized(0.0016 * WIDTH * HEIGHT), np.random.default_rng(0)) is not None


def test_nouns_that_fit_several_categories_mean_all_of_them() -> None:
    of = photo(instance(0, "dog"), instance(1, "cat"), instance(2, "cup"))
    assert set(kinds(of)) == {"animal"}
    assert all_of_each(of) == []


@pytest.mark.parametrize(
    "second",
    [instance(1, "dog", crowd=True), instance(1, "dog", outlined=False), instance(1, "cup")],
    ids=["a crowd", "no outline", "one alone"],
)
def test_what_the_labels_do_not_tell_is_not_said(second: Instance) -> None:
    of = photo(instance(0, "dog"), second)
    assert draw_several(of, np.random.default_rng(0)) is None
    assert all_of_each(of) == []


@pytest.mark.parametrize(
    ("categories", "name"),
    [
        (("nuts and bolts", "nuts and bolts"), "nuts and bolts"),
        (("dog", "dog"), "dog"),
        (("dog", "nuts and bolts"), "several categories"),
    ],
)
def test_several_of_a_category_are_of_that_category(categories: tuple[str, ...], name: str) -> None:
    of = photo(*(instance(key, category) for key, category in enumerate(categories)))
    meant = join(of.instances, of.height, of.width)
    assert category_name(meant) == name
    sample = Sample(of, meant, "both of them", "reference", "own val")
    assert "no rival" in group_names(sample, 0.1)


def test_where_people_alone_are_labelled_only_they_are_counted() -> None:
    things = [instance(0, "dog"), instance(1, "dog"), instance(2, "person"), instance(3, "person")]
    assert names(photo(*things)) == {"dog", "person"}
    assert names(photo(*things, person_only=True)) == {"person"}


def test_a_model_is_judged_by_the_plural_of_each_category() -> None:
    of = photo(*(instance(key, name) for key, name in enumerate(["person", "dog", "person"])))
    (sample,) = all_of_each(of)
    assert (sample.text, sample.kind, sample.instance.objects) == ("people", "several", 2)


@pytest.mark.parametrize(
    ("one", "many"),
    [("person", "people"), ("knife", "knives"), ("bus", "buses"), ("sheep", "sheep"),
     ("computer mouse", "computer mice"), ("skis", "skis"), ("scissors", "scissors"),
     ("wine glass", "wine glasses"), ("plant in a pot", "plants in pots")],
)  # fmt: skip
def test_plurals_are_english(one: str, many: str) -> None:
    assert one in MEANINGS
    assert plural(one) == many
