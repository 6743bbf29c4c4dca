"""Phrases of the made-up world are true of what they mean and of nothing else."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as rle_codec

from cris_edge.tokenizer import build
from training.data.mirror import mirror
from training.data.scene_phrases import KINDS, draw, phrases, vocabulary
from training.data.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    find_backgrounds,
    make_scene,
)
from training.data.vocabulary import clip_merges, student_tokenizer


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    backgrounds = find_backgrounds(HELD_OUT)
    return [make_scene(7, number, backgrounds) for number in range(250)]


BEFORE = 0.07
"""Share of the picture by which one thing must come before another for people to agree."""
PIXELS = 2.0
"""By which the middle of a drawn mask may be off."""
ENDS: dict[str, tuple[int, int, bool]] = {
    "left": (0, 1, False), "right": (0, -1, False), "upper": (1, 1, False), "lower": (1, -1, False),
    "leftmost": (0, 1, True), "rightmost": (0, -1, True),
    "top": (1, 1, True), "bottom": (1, -1, True),
}  # fmt: skip
"""Axis, direction, and whether it is said of more than two."""
STARTS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
BY_SIZE = {
    "bigger": (1, False),
    "biggest": (1, True),
    "smaller": (-1, False),
    "smallest": (-1, True),
}
SINGULAR = {
    "circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross",
    "things": "thing",
}  # fmt: skip
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


class Reader:
    """Finds what a phrase means in a scene, or fails where it is not clear."""

    def __init__(self, scene: Scene):
        self.scene = scene
        masks = [instance.mask() for instance in scene.instances]
        self.areas = [int(mask.sum()) for mask in masks]
        self.middles = [tuple(np.argwhere(mask).mean(0)[::-1]) for mask in masks]
        self.extent = (scene.width, scene.height)

    def find(self, text: str) -> tuple[int, ...]:
        """The things that are meant: one, or several by "all"."""
        if text.startswith("all "):
            *words, noun = text.split()[1:]
            members = self.fitting(" ".join([*words, SINGULAR[noun]]))
            # All of one, or all that there are, would be idle words.
            assert 1 < len(members) < len(self.areas)
            return tuple(members)
        return (self.one(text),)

    def one(self, text: str) -> int:
        for relation in (*SIDES, "nearest to"):
            noun, said, landmark = text.partition(f" {relation} the ")
            if said:
                return self.related(self.fitting(noun), relation, self.only(landmark))
        first, _, rest = text.partition(" ")
        if first == "second":
            noun, said, start = rest.partition(" from the ")
            assert said
            return self.ordered(self.fitting(noun), *STARTS[start])[1]
        if first in ENDS:
            axis, direction, several = ENDS[first]
            members = self.fitting(rest)
            assert len(members) > 2 if several else len(members) == 2
            return self.ordered(members, axis, direction)[0]
        if first in BY_SIZE:
            return self.by_size(self.fitting(rest), *BY_SIZE[first])
        return self.only(text)

    def fitting(self, noun: str) -> list[int]:
        """What adjectives and noun are true of."""
        words = noun.split()
        assert words[-1] in (*SHAPES, "thing")
        assert len(words) == len(set(words))

        def fits(word: str, i: int) -> bool:
            thing = self.scene.things[i]
            if word in SHAPES:
                return thing.shape == word
            if word in SIZES:
                return thing.size == word
            return thing.colour == word if word in COLOURS else word == "thing"

        return [i for i in range(len(self.areas)) if all(fits(word, i) for word in words)]

    def only(self, noun: str) -> int:
        (one,) = self.fitting(noun)
        return one

    def ordered(self, members: list[int], axis: int, direction: int) -> list[int]:
        """From the nearest to the start on; who is meant must be clear of those beside it."""
        return sorted(members, key=lambda i: direction * self.middles[i][axis])

    def by_size(self, members: list[int], sign: int, several: bool) -> int:
        assert len(members) > 2 if several else len(members) == 2
        first, second, *_ = sorted(members, key=lambda i: -sign * self.areas[i])
        assert abs(math.log(self.areas[first] / self.areas[second])) > math.log(1.5)
        return first

    def related(self, members: list[int], relation: str, landmark: int) -> int:
        members = [i for i in members if i != landmark]
        # Where only one thing is of that name the relation would be idle words.
        assert len(members) > 1
        if relation == "nearest to":
            away = {i: math.dist(self.middles[i], self.middles[landmark]) for i in members}
            first, second, *_ = sorted(members, key=lambda i: away[i])
            assert away[first] < 0.65 * away[second]
            return first
        axis, sign = SIDES[relation]
        beyond = {i: sign * (self.middles[i][axis] - self.middles[landmark][axis]) for i in members}
        first, *others = sorted(members, key=lambda i: -beyond[i])
        assert beyond[first] > BEFORE * self.extent[axis] - PIXELS
        assert all(beyond[other] < PIXELS for other in others)
        return first

    def clear(self, text: str, members: tuple[int, ...]) -> None:
        """Fail where people could disagree about an order."""
        words = text.split()
        if words[0] not in (*ENDS, "second"):
            return
        axis = ENDS[words[0]][0] if words[0] in ENDS else STARTS[words[-1]][0]
        noun = text.partition(" ")[2].partition(" from the ")[0]
        (one,) = members
        for other in set(self.fitting(noun)) - {one}:
            gap = abs(self.middles[one][axis] - self.middles[other][axis])
            assert gap > BEFORE * self.extent[axis] - PIXELS


def all_phrases(scene: Scene) -> list[tuple[str, str, tuple[int, ...]]]:
    """Kind, text and things of all that can be said, each once."""
    found: dict[tuple[str, str, tuple[int, ...]], None] = {}
    for index in range(len(scene.things)):
        for kind, said in phrases(scene, index).items():
            assert all(index in members for _, members in said)
            found |= {(kind, text, members): None for text, members in said}
    return list(found)


def test_every_phrase_means_its_things_and_no_other(scenes: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    for scene in scenes:
        reader = Reader(scene)
        for kind, text, members in all_phrases(scene):
            assert reader.find(text) == members, (scene.path, text)
            reader.clear(text, members)
            kinds[kind] += 1
            openings[text.split()[0]] += 1
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 100
    # All that the interpreter knows is said somewhere.
    for word in ("all", *ENDS, "second", *BY_SIZE, *COLOURS, *SIZES, *SHAPES):
        assert openings[word] > 0, word


def test_no_text_has_two_meanings(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = [text for _, text, _ in all_phrases(scene)]
        assert len(texts) == len(set(texts))


def test_the_interpreter_knows_what_is_wrong(scenes: list[Scene]) -> None:
    """Phrases with one word changed mean something else, or nothing clear."""
    swapped = {"left": "right", "leftmost": "rightmost", "top": "bottom", "above": "below",
               "small": "big", "bigger": "smaller", "red": "blue", "circle": "square"}  # fmt: skip
    changed = caught = 0
    for scene in scenes[:80]:
        reader = Reader(scene)
        for _, text, members in all_phrases(scene):
            words = [swapped.get(word, word) for word in text.split()]
            if words != text.split():
                changed += 1
                try:
                    caught += reader.find(" ".join(words)) != members
                except (AssertionError, ValueError, IndexError):
                    caught += 1
    assert changed > 300
    # Some words are more than is needed: a big circle may be the only circle.
    assert caught > 0.9 * changed


def test_a_mirrored_scene_is_told_by_mirrored_words(scenes: list[Scene]) -> None:
    told = 0
    for scene in scenes[:80]:
        instances = []
        for instance in scene.instances:
            mask = np.asfortranarray(instance.mask()[:, ::-1].astype(np.uint8))
            instances.append(
                dataclasses.replace(instance, segmentation=dict(rle_codec.encode(mask)))
            )
        reader = Reader(dataclasses.replace(scene, instances=tuple(instances)))
        for _, text, members in all_phrases(scene):
            other = mirror(text)
            # A right triangle is a shape.
            assert other is not None or re.search("(left|right) triangle", text)
            if other is not None:
                assert reader.find(other) == members, text
                told += other != text
    assert told > 100


def test_every_word_is_in_the_vocabulary(scenes: list[Scene]) -> None:
    known = {word for text in vocabulary() for word in text.split()}
    tokenizer = student_tokenizer(vocabulary(), first=0)
    texts = {text for scene in scenes for _, text, _ in all_phrases(scene)}
    assert len(texts) > 1000
    used = {word for text in texts for word in text.split()}
    # Whoever changes the phrases changes the vocabulary too.
    assert used == known
    whole = build(clip_merges())
    for text in texts:
        ids = tokenizer.encode(text, 17)
        # As many pieces as CLIP makes of it, between start and end, and nothing is cut off.
        assert np.count_nonzero(ids) == np.count_nonzero(whole.encode(text, 17))
        assert np.count_nonzero(ids) < 17
        assert ids[0] == tokenizer.start_id
        assert ids.max() == tokenizer.end_id


def test_kinds_and_things_take_turns(scenes: list[Scene]) -> None:
    counts: Counter[str] = Counter()
    for scene in scenes[:100]:
        reader, said = Reader(scene), all_phrases(scene)
        meant: Counter[int] = Counter()
        for sample in draw(scene, 3 * len(scene.things), np.random.default_rng(scene.id)):
            members = reader.find(sample.text)
            assert (sample.kind, sample.text, members) in said
            masks = [scene.instances[i].mask() for i in members]
            assert np.array_equal(sample.instance.mask(), np.any(masks, axis=0))
            assert sample.instance.objects == len(members)
            counts[sample.kind] += 1
            meant.update(members)
        sayable = {i for _, _, members in said for i in members}
        assert set(meant) == sayable
        assert min(meant.values()) >= 3
    assert counts.keys() == KINDS.keys()
    assert min(counts.values()) > 0.04 * sum(counts.values())
