"""What is said of the made-up world: phrases that tell its things apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.data.coco import join
from training.data.samples import Sample
from training.data.scenes import (
    COLOURS,
    HELD_OUT,
    JUDGED_WORLD,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    find_backgrounds,
    make_scene,
)

CLEAR = 0.07
"""Share of the picture's extent by which one centre must come before another to be called so."""
LARGER = 1.6
"""Ratio of areas from which one thing is called larger than another."""
KINDS = {"attributes": 0.4, "order": 0.2, "size": 0.1, "relation": 0.15, "all": 0.15}
"""Kinds of phrases and how often each is said where all are true."""
FIRST_KINDS = {"attributes": 0.7, "order": 0.3}
"""The same for the first epoch of training: what words mean comes first."""
LATER_KINDS = {"attributes": 0.2, "order": 0.35, "size": 0.1, "relation": 0.25, "all": 0.1}
"""And for the other ones: what is hard most of all."""

Said = tuple[str, tuple[int, ...]]
"""A phrase, and the places of the things that it means."""


def phrases(scene: Scene, index: int) -> dict[str, list[Said]]:
    """All that can be said of thing `index` and of no other, by kind; kinds may be missing.

    Of kind `all` are phrases that mean several things, this one among them.
    """
    speaker = _Speaker(scene, index)
    unique = {
        "attributes": speaker.attributes(),
        "order": speaker.order(),
        "size": speaker.size(),
        "relation": speaker.relation(),
    }
    found: dict[str, list[Said]] = {
        kind: [(text, (index,)) for text in texts] for kind, texts in unique.items()
    }
    found["all"] = list(speaker.everything())
    return {kind: said for kind, said in found.items() if said}


def draw(
    scene: Scene, count: int, rng: np.random.Generator, kinds: Mapping[str, float] = KINDS
) -> list[Sample]:
    """`count` samples of a scene: its things in turns, each kind of phrase as `kinds` weighs it.

    None where nothing of these kinds can be said of any thing that is true of no other.
    """
    every = (phrases(scene, int(i)) for i in rng.permutation(len(scene.things)))
    wanted = ({kind: said for kind, said in one.items() if kind in kinds} for one in every)
    sayable = [one for one in wanted if one]
    chosen: list[Sample] = []
    for turn in range(count if sayable else 0):
        found = sayable[turn % len(sayable)]
        weights = np.array([kinds[kind] for kind in found])
        kind = str(rng.choice(list(found), p=weights / weights.sum()))
        text, members = found[kind][int(rng.integers(len(found[kind])))]
        target = join([scene.instances[i] for i in members], scene.height, scene.width)
        chosen.append(Sample(scene, target, text, kind, "scenes"))
    return chosen


def scene_samples(
    count: int, seed: int = JUDGED_WORLD, folder: str | Path = HELD_OUT, phrases_each: int = 4
) -> list[Sample]:
    """Samples of `count` scenes, to judge a model by.

    Args:
        count: scenes.
        seed: of the world; another one than was trained on gives scenes never seen.
        folder: photos to paint on.
        phrases_each: samples of each scene.

    Raises:
        DataError: the folder has no photo.
    """
    backgrounds = find_backgrounds(folder)
    samples: list[Sample] = []
    for number in range(count):
        scene = make_scene(seed, number, backgrounds)
        samples += draw(scene, phrases_each, np.random.default_rng((seed, number, 2)))
    return samples


class _Speaker:
    """What is true of one thing of a scene and of no other."""

    def __init__(self, scene: Scene, index: int):
        self.things, self.index = scene.things, index
        self.me = scene.things[index]
        self.extent = (scene.width, scene.height)
        self.areas = [instance.area for instance in scene.instances]

    def attributes(self) -> Iterator[str]:
        """Red circle; small thing."""
        for noun, members in _nouns(self.things, self.me):
            if members == [self.index]:
                yield noun

    def order(self) -> Iterator[str]:
        """Leftmost red thing; lower circle; second cross from the left."""
        for noun, members in _nouns(self.things, self.me):
            for axis, (first, last, start, end) in enumerate(_ENDS):
                place = self._rank(members, axis)
                if place is None or len(members) < 2:
                    continue
                if place in (0, len(members) - 1):
                    side = first if place == 0 else last
                    yield f"{side[len(members) > 2]} {noun}"
                elif place == 1:
                    yield f"second {noun} from the {start}"
                elif place == len(members) - 2:
                    yield f"second {noun} from the {end}"

    def size(self) -> Iterator[str]:
        """Biggest square; smaller thing."""
        mine = self.areas[self.index]
        for noun, members in _nouns(self.things, self.me, sizes=False):
            others = [self.areas[i] for i in members if i != self.index]
            if others and mine >= LARGER * max(others):
                yield f"{'bigger' if len(others) == 1 else 'biggest'} {noun}"
            elif others and LARGER * mine <= min(others):
                yield f"{'smaller' if len(others) == 1 else 'smallest'} {noun}"

    def everything(self) -> Iterator[Said]:
        """All red things; all small circles."""
        for noun, members in _nouns(self.things, self.me):
            if 1 < len(members) < len(self.things):
                yield f"all {_plural(noun)}", tuple(members)

    def relation(self) -> Iterator[str]:
        """Small circle left of the blue square; circle nearest to the white thing."""
        landmarks = [
            (i, noun)
            for i, thing in enumerate(self.things)
            if i != self.index
            for noun, members in _nouns(self.things, thing)
            if members == [i]
        ]
        for noun, members in _nouns(self.things, self.me):
            if len(members) < 2:
                continue
            for i, landmark in landmarks:
                others = [m for m in members if m not in (self.index, i)]
                if others:
                    for words in self._relations(i, others):
                        yield f"{noun} {words} the {landmark}"

    def _relations(self, landmark: int, others: Sequence[int]) -> Iterator[str]:
        for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
            offsets = [self._offset(i, landmark, axis) for i in others]
            mine = self._offset(self.index, landmark, axis)
            if mine < -CLEAR and min(offsets) > 0:
                yield before
            elif mine > CLEAR and max(offsets) < 0:
                yield after
        distances = [self._distance(i, landmark) for i in others]
        if self._distance(self.index, landmark) < 0.6 * min(distances):
            yield "nearest to"

    def _offset(self, index: int, other: int, axis: int) -> float:
        return (_at(self.things[index], axis) - _at(self.things[other], axis)) / self.extent[axis]

    def _distance(self, index: int, other: int) -> float:
        one, two = self.things[index], self.things[other]
        return math.hypot(one.x - two.x, one.y - two.y)

    def _rank(self, members: Sequence[int], axis: int) -> int | None:
        """Members before me along the axis; None where a centre is too close to tell."""
        offsets = [self._offset(i, self.index, axis) for i in members if i != self.index]
        if any(abs(offset) < CLEAR for offset in offsets):
            return None
        return sum(offset < 0 for offset in offsets)


_ENDS = (
    (("left", "leftmost"), ("right", "rightmost"), "left", "right"),
    (("upper", "top"), ("lower", "bottom"), "top", "bottom"),
)
"""Along x, then y: said of the first, of the last (of two, of more), and where counting starts."""


def _at(thing: Thing, axis: int) -> float:
    return thing.x if axis == 0 else thing.y


def _nouns(
    things: Sequence[Thing], me: Thing, sizes: bool = True
) -> Iterator[tuple[str, list[int]]]:
    """Nouns that fit `me` ("small red circle", "red thing", …), each with all that it fits."""
    said: tuple[Callable[[Thing], str], ...] = (_size, _colour, _shape)
    for with_size in (False, True)[: 1 + sizes]:
        for with_colour in (False, True):
            for with_shape in (True, False):
                used = [
                    read
                    for read, wanted in zip(said, (with_size, with_colour, with_shape), strict=True)
                    if wanted
                ]
                words = [read(me) for read in used]
                members = [
                    i for i, t in enumerate(things) if all(read(t) == read(me) for read in used)
                ]
                yield " ".join(words if with_shape else [*words, "thing"]), members


def _size(thing: Thing) -> str:
    return thing.size


def _colour(thing: Thing) -> str:
    return thing.colour


def _shape(thing: Thing) -> str:
    return thing.shape


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def vocabulary() -> list[str]:
    """Texts that hold every word which the phrases use."""
    nouns = [*SHAPES, "thing"]
    words = [*nouns, *(f"all {_plural(noun)}" for noun in nouns)]
    words += [*COLOURS, *SIZES, "the second from", "left right top bottom"]
    words += ["leftmost rightmost upper lower", "bigger biggest smaller smallest"]
    return [*words, "left of right of above below nearest to"]
