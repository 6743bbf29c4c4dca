"""Referring expressions by rule, from labels alone.

Every expression holds for exactly one instance of its photo, with a margin: two boxes that are
nearly level are not called left and right. Instances without a mask, and those too small to be
worth pointing at, are never referred to, but count as rivals.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.data import layout
from training.data.coco import Instance, Photo
from training.data.colours import alike
from training.data.nouns import MEANINGS, NOUNS

KINDS = ("category", "location", "ordinal", "size", "relation", "colour")

MIN_SHARE = 0.003
"""Smallest share of the photo that an instance referred to may cover."""
SIZE_RATIO = 1.5
LANDMARK_SHARE = 0.01
LONGEST_ROW = 6


@dataclass(frozen=True)
class Expression:
    """A phrase that fits exactly one instance of a photo, and the rule it came from."""

    text: str
    instance_id: int
    kind: str


@dataclass(frozen=True)
class _Group:
    """All instances that a noun fits, in one photo."""

    photo: Photo
    noun: str
    members: tuple[Instance, ...]
    landmarks: tuple[Instance, ...]
    colours: Mapping[int, str]

    @property
    def boxes(self) -> list[layout.Box]:
        return [member.box for member in self.members]

    @property
    def extents(self) -> tuple[int, int]:
        return self.photo.width, self.photo.height


# One fact about a member: its index and the phrases that state it.
_Fact = tuple[int, Sequence[str]]


def derive(
    photo: Photo, colours: Mapping[int, str] | None = None, seed: int = 0
) -> list[Expression]:
    """All facts the rules find in a photo, each said in one way.

    Args:
        photo: its labels.
        colours: instance id → name of its dominant colour, where it is clear.
        seed: chooses among nouns and wordings; the same seed gives the same list.
    """
    # Ids may be negative, which seeds may not.
    rng = np.random.default_rng((seed, photo.id % 2**64))
    found: dict[tuple[str, int], Expression] = {}
    for noun in _nouns(photo, rng):
        group = _group(photo, noun, colours or {})
        for kind, rule in _RULES.items():
            for index, wordings in rule(group):
                if _may_be_target(photo, group.members[index]):
                    text = str(rng.choice(list(wordings)))
                    target = group.members[index].id
                    found.setdefault((text, target), Expression(text, target, kind))
    return list(found.values())


def _nouns(photo: Photo, rng: np.random.Generator) -> Iterator[str]:
    """For every category its own name, and one of its other names."""
    categories = sorted({instance.category for instance in photo.instances})
    chosen: dict[str, None] = {}
    for category in categories:
        if photo.person_only and category != "person":
            continue
        if category in MEANINGS:
            chosen[category] = None
        chosen[str(rng.choice(NOUNS[category]))] = None
    yield from (noun for noun in chosen if photo.tells_all(MEANINGS[noun]))


def _group(photo: Photo, noun: str, colours: Mapping[int, str]) -> _Group:
    members = tuple(i for i in photo.instances if i.category in MEANINGS[noun])
    count: dict[str, int] = {}
    for instance in photo.instances:
        count[instance.category] = count.get(instance.category, 0) + 1 + instance.crowd
    landmarks = tuple(
        i
        for i in photo.instances
        if count[i.category] == 1
        and i.category in MEANINGS  # a plain "bear" might be the toy
        and i.category not in MEANINGS[noun]
        and (not photo.person_only or i.category == "person")
        and i.area >= LANDMARK_SHARE * photo.width * photo.height
    )
    return _Group(photo, noun, members, landmarks, colours)


def _may_be_target(photo: Photo, instance: Instance) -> bool:
    return instance.has_mask and instance.area >= MIN_SHARE * photo.width * photo.height


def _say(noun: str, *templates: str, **words: str) -> list[str]:
    return [template.format(n=noun, **words) for template in templates]


def _category(group: _Group) -> Iterator[_Fact]:
    if len(group.members) == 1:
        yield 0, _say(group.noun, "{n}", "the {n}")


_SIDES = (("left", "right"), ("top", "bottom"))


def _location(group: _Group) -> Iterator[_Fact]:
    for axis, extent in enumerate(group.extents):
        for index in range(len(group.members)):
            rank = layout.rank(index, group.boxes, axis, extent)
            if rank is None:
                continue
            yield from _end_of_row(group, index, rank, axis)
            if axis == 0 and rank == 1 and len(group.members) == 3:
                yield (
                    index,
                    _say(group.noun, "middle {n}", "{n} in the middle", "the {n} in the centre"),
                )


def _end_of_row(group: _Group, index: int, rank: int, axis: int) -> Iterator[_Fact]:
    """The first or last of a row; a lone object must stand on that side of the photo."""
    last = len(group.members) - 1
    extent, box = group.extents[axis], group.boxes[index]
    for side, is_there in zip(_SIDES[axis], (rank == 0, rank == last), strict=True):
        first = side in ("left", "top")
        near = layout.centre(box, axis) / extent
        near = near if first else 1 - near
        if not is_there or (last == 0 and near > 0.3):
            continue
        if last == 0 or last == 1 or _alone_in_half(group, index, axis, first):
            yield index, _plain_side(group.noun, side)
        if last >= 2:
            yield index, _outermost(group.noun, side)


def _plain_side(noun: str, side: str) -> list[str]:
    if side in ("top", "bottom"):
        other = {"top": "upper", "bottom": "lower"}[side]
        wordings = ("{side} {n}", "{n} at the {side}", "the {side} {n}", "{other} {n}")
        return _say(noun, *wordings, side=side, other=other)
    wordings = ("{side} {n}", "{n} on the {side}", "the {n} on the {side}", "{n} on {side}")
    return _say(noun, *wordings, side=side)


def _outermost(noun: str, side: str) -> list[str]:
    if side in ("top", "bottom"):
        where = {"top": "highest", "bottom": "lowest"}[side]
        return _say(noun, "{where} {n}", "{n} closest to the {side}", where=where, side=side)
    return _say(noun, "{side}most {n}", "{n} on the far {side}", "far {side} {n}", side=side)


def _alone_in_half(group: _Group, index: int, axis: int, first: bool) -> bool:
    half = group.extents[axis] / 2
    inside = [(layout.centre(box, axis) < half) == first for box in group.boxes]
    return inside[index] and sum(inside) == 1


_COUNTED = (("first", "1st"), ("second", "2nd"), ("third", "3rd"))


def _ordinal(group: _Group) -> Iterator[_Fact]:
    """Counting from the left or the right, in a row of 3 to 6."""
    size = len(group.members)
    width, height = group.extents
    if not 3 <= size <= LONGEST_ROW or not layout.in_a_row(group.boxes, 0, height):
        return
    for index in range(size):
        rank = layout.rank(index, group.boxes, 0, width)
        if rank is None:
            continue
        for side, place in (("left", rank), ("right", size - 1 - rank)):
            if place < len(_COUNTED):
                word, short = _COUNTED[place]
                wordings = ("{word} {n} from the {side}", "{short} {n} from {side}",
                            "{n} that is {word} from the {side}")  # fmt: skip
                yield index, _say(group.noun, *wordings, word=word, short=short, side=side)


def _size(group: _Group) -> Iterator[_Fact]:
    if len(group.members) < 2 or not all(member.has_mask for member in group.members):
        return
    order = sorted(range(len(group.members)), key=lambda i: group.members[i].area)
    members = [group.members[i] for i in order]
    boxes = [(m.box[2] - m.box[0]) * (m.box[3] - m.box[1]) for m in members]
    comparative = len(members) == 2
    if members[-1].area >= SIZE_RATIO * members[-2].area and boxes[-1] > SIZE_RATIO * max(
        boxes[:-1]
    ):
        words = ("bigger {n}", "larger {n}") if comparative else ("biggest {n}", "largest {n}")
        yield (
            order[-1],
            _say(group.noun, *words, "the big {n}" if comparative else "the " + words[0]),
        )
    if members[1].area >= SIZE_RATIO * members[0].area and boxes[0] * SIZE_RATIO < min(boxes[1:]):
        words = ("smaller {n}", "the small {n}") if comparative else ("smallest {n}", "tiniest {n}")
        yield order[0], _say(group.noun, *words)


def _colour(group: _Group) -> Iterator[_Fact]:
    """A colour that is clear for every member, and one member's only."""
    names = [group.colours.get(member.id) for member in group.members]
    if "person" in MEANINGS[group.noun] or None in names:
        return
    for index, name in enumerate(names):
        rivals = names[:index] + names[index + 1 :]
        if name and not any(rival and alike(name, rival) for rival in rivals):
            yield index, _say(group.noun, "{c} {n}", "the {c} {n}", "{n} that is {c}", c=name)


def _relation(group: _Group) -> Iterator[_Fact]:
    for landmark in group.landmarks:
        name = str(landmark.category)
        for index, member in enumerate(group.members):
            others = [box for i, box in enumerate(group.boxes) if i != index]
            for axis in (0, 1):
                yield from _beyond(group, index, others, landmark.box, name, axis)
            if _beside(group.photo, member.box, others, landmark.box):
                yield (
                    index,
                    _say(
                        group.noun,
                        "{n} next to the {l}",
                        "{n} beside the {l}",
                        "{n} by the {l}",
                        l=name,
                    ),
                )


_BEYOND = (
    (("{n} left of the {l}", "{n} to the left of the {l}"),
     ("{n} right of the {l}", "{n} to the right of the {l}")),
    (("{n} above the {l}", "the {n} above the {l}"),
     ("{n} below the {l}", "the {n} below the {l}")),
)  # fmt: skip


def _beyond(
    group: _Group, index: int, others: Sequence[layout.Box], landmark: layout.Box, name: str,
    axis: int,
) -> Iterator[_Fact]:  # fmt: skip
    """Left or right of, above or below a landmark, with every rival clearly on its other side."""
    box, extent = group.boxes[index], group.extents[axis]
    if not layout.is_beyond(box, landmark, axis):
        return
    if layout.precedes(box, landmark, axis, extent):
        if all(layout.centre(other, axis) >= layout.centre(landmark, axis) for other in others):
            yield index, _say(group.noun, *_BEYOND[axis][0], l=name)
    elif layout.precedes(landmark, box, axis, extent) and all(
        layout.centre(other, axis) <= layout.centre(landmark, axis) for other in others
    ):
        yield index, _say(group.noun, *_BEYOND[axis][1], l=name)


def _beside(
    photo: Photo, box: layout.Box, others: Sequence[layout.Box], landmark: layout.Box
) -> bool:
    """Close to the landmark and side by side with it, while every rival is far from it."""
    diagonal = (photo.width**2 + photo.height**2) ** 0.5
    heights = [b[3] - b[1] for b in (box, landmark)]
    apart = layout.overlap(box, landmark, 0) <= 0.2 * min(
        box[2] - box[0], landmark[2] - landmark[0]
    )
    return (
        apart
        and layout.overlap(box, landmark, 1) >= 0.5 * min(heights)
        and layout.distance(box, landmark) <= layout.TOUCHING * diagonal
        and all(layout.distance(other, landmark) >= layout.APART * diagonal for other in others)
    )


_RULES: dict[str, Callable[[_Group], Iterator[_Fact]]] = {
    "category": _category,
    "location": _location,
    "ordinal": _ordinal,
    "size": _size,
    "relation": _relation,
    "colour": _colour,
}
