"""What phrases speak of, and what else can be said of the same object: words, and no pictures.

English alone, by lists of words: "orange" is a colour even where the fruit is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from training.data.colours import COLOURS
from training.data.mirror import mirror
from training.data.nouns import CATEGORIES, MEANINGS, NOUNS, plural
from training.data.samples import Sample

_FLAGS = re.IGNORECASE | re.ASCII


def _any_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b", _FLAGS)


SIDES = "left or right"
COLOUR = "a colour"
OTHER = "none of these"
_RELATION, _ATTRIBUTE = "a relation", "with, without or in"
_WORDS = {
    COLOUR: _any_of(
        "|".join(COLOURS)
        + r"|gr[ae]y|tan|beige|silver|gold(?:en)?|blonde?|khaki|navy|maroon|teal|turquoise|peach"
        + r"|(?:dark|light|bright)(?:er|est)?|colou?r(?:ed|ful)?"
    ),
    "a size": _any_of(
        r"big(?:g(?:er|est))?|(?:large|wide|huge)(?:r|st)?|(?:small|tall|short|long|thick)(?:er|est)?"
        r"|thin(?:n(?:er|est))?|tin(?:y|ier|iest)|little|giant"
    ),
    "top, middle or bottom": _any_of(
        r"top|middle|bottom|upper|lower|(?:upper|lower|top|bottom)most|(?:high|low)est|cent(?:er|re)"
    ),
    _RELATION: _any_of(
        r"in front of|inside|on|under|over|above|below|beneath|behind|beside|between|near|by|at"
        r"|next to|against|around|across|along|(?:left|right) of"
    ),
    # Most often clothes and parts: "in red", "with its head up".
    _ATTRIBUTE: _any_of(r"with|without|in(?! front of)"),
}
# "on the left" and "in the middle" name places in the photo, and say nothing else.
_PLACES = re.compile(
    r"\b(?:in|on|at|by)\s+(?:the\s+)?(?:(?:far|very)\s+)?"
    r"(?:left|right|top|bottom|upper|lower|middle|cent(?:er|re)|corner|edge|back|front)\b(?!\s+of)",
    _FLAGS,
)


SUBJECTS = (SIDES, *_WORDS, OTHER)
"""What `spoken_of` tells apart."""


def spoken_of(text: str) -> tuple[str, ...]:
    """What a phrase speaks of, of `SUBJECTS`: any of them, or the last alone."""
    rest = _PLACES.sub("", text)
    found = [SIDES] if swap_sides(text) else []
    for name, words in _WORDS.items():
        if words.search(rest if name in (_RELATION, _ATTRIBUTE) else text):
            found.append(name)
    return tuple(found) or (OTHER,)


_PERSON = _any_of(
    r"persons?|people|m[ae]n|wom[ae]n|guys?|dudes?|lad(?:y|ies)|boys?|girls?|kids?|child(?:ren)?"
    r"|bab(?:y|ies)|adults?|players?|batters?|catchers?|pitchers?|umpires?|surfers?|skiers?"
    r"|snowboarders?|skateboarders?|skaters?|riders?|bikers?|cyclists?|drivers?|officers?|fans?"
    r"|spectators?|he|she|his|her|him|someone|humans?"
)


@cache
def _forms() -> dict[str, frozenset[str]]:
    """Nouns and their plurals with the categories that they fit."""
    return MEANINGS | {plural(noun): covered for noun, covered in MEANINGS.items()}


@cache
def _noun() -> re.Pattern[str]:
    return _any_of("|".join(re.escape(form) for form in sorted(_forms(), key=len, reverse=True)))


def named(text: str) -> frozenset[str]:
    """The categories that a phrase may name, in any part: with "bike", both kinds of bikes."""
    found = {"person"} if _PERSON.search(text) else set()
    for match in _noun().finditer(text.lower()):
        found |= _forms()[match.group()]
    return frozenset(found)


# --- other phrases for a sample ---

Phrasing = Callable[[Sample], str | None]
"""What is said of a sample instead of its own phrase; None where nothing can be."""


def category_word(sample: Sample) -> str:
    """The name of the category alone: "dog"."""
    return sample.instance.category


def swap_sides(text: str) -> str | None:
    """A phrase with left and right swapped; None where it says neither, or not surely so."""
    swapped = mirror(text)
    return None if swapped == text else swapped


def other_side(sample: Sample) -> str | None:
    """The phrase with left and right swapped.

    None where it does not say one side, and where both mean the same: the second of three.
    """
    return swap_sides(sample.text) if side(sample.text) and not _in_the_middle(sample) else None


def side_alone(sample: Sample) -> str | None:
    """The side without the class: "thing on the left".

    None where `other_side` has none, and where that is not the photo's half in which the target is:
    "third sofa from the left", "chair left of the table".
    """
    return f"thing on the {side(sample.text)}" if _lies_on_its_side(sample) else None


def wrong_class(sample: Sample) -> str | None:
    """The side with a class that is not in the photo: "zebra on the left".

    The photo's id chooses among the categories that share no noun with any that is labelled: no
    horse where a cow, another animal, is. None where `side_alone` has none, or labels cannot tell.
    """
    photo = sample.photo
    present = {instance.category for instance in photo.instances}
    absent = [c for c in CATEGORIES if not any(MEANINGS[noun] & present for noun in NOUNS[c])]
    if photo.person_only or not absent or not _lies_on_its_side(sample):
        return None
    return f"{absent[photo.id % len(absent)]} on the {side(sample.text)}"


_SIDE = re.compile(r"\b(left|right)", _FLAGS)
_ORDINALS = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"))


def side(text: str) -> str | None:
    """The side that a phrase says; None where it says none or both."""
    found = {word.lower() for word in _SIDE.findall(text)}
    return found.pop() if len(found) == 1 else None


def _lies_on_its_side(sample: Sample) -> bool:
    """Whether a phrase says one side, and the middle of its target is in that half of the photo."""
    left, _, right, _ = sample.instance.box
    half = "left" if left + right < sample.photo.width else "right"
    return other_side(sample) is not None and half == side(sample.text)


def _in_the_middle(sample: Sample) -> bool:
    """Whether a phrase counts as far as the middle of its row: from both ends it is the same."""
    words = set(sample.text.lower().split())
    counted = [place for place, names in enumerate(_ORDINALS) if words & set(names)]
    noun = _noun().search(sample.text.lower())
    kind = _forms()[noun.group()] if noun else {sample.instance.category}
    row = sum(instance.category in kind for instance in sample.photo.instances)
    return any(row == 2 * place + 1 for place in counted)
