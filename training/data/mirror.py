"""What a phrase must say once its photo has been mirrored."""

import re

_FLAGS = re.IGNORECASE | re.ASCII
_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|wards?)?\b)", _FLAGS)

# "right above" may mean "directly above", and a mirrored "left above" would turn into it.
_NOT_A_SIDE = re.compile(
    r"\b(?:left|right)[\s-]+(?:above|below|beneath|under(?:neath)?|over|behind|beside|next|near|by|"
    r"against|before|after|between|in[\s-]+(?:front|between|the)|on[\s-]+top|at|now|there|here|up|"
    r"down|out|off|away|about|through|angles?|triangles?)\b"
    r"|\b(?:all|just|upside)[\s-]+(?:left|right)\b"
    r"|\b(?:left|right)[\s-]+side[\s-]+up\b",
    _FLAGS,
)
# Writing is mirrored with the photo, clocks and compasses turn; digits are safe in ordinals only.
_WRITING = re.compile(
    r"\bo['\u2019 ]?clock\b|clockwise|\bnumber(?:s|ed)?\b|\bletter(?:s|ing|ed)?\b|\bsay(?:s|ing)\b"
    r"|\breads\b|\bwritten\b|\bwriting\b|\btext\b|\bwords?\b|\blogo\b|\bnorth\b|\beast\b|\bwest\b"
    r"|[\"#]|\d(?!\d*(?:st|nd|rd|th)\b)(?!\d)",
    _FLAGS,
)
_ANY_SIDE = re.compile(r"(?<![a-z])(?:left|right)", _FLAGS)


def mirror(text: str) -> str | None:
    """Swap left and right; None where it is not sure that the result fits the mirrored photo.

    Case is kept. Where `mirror(text)` is a text, mirroring that gives `text` again.
    """
    if _NOT_A_SIDE.search(text) or _WRITING.search(text):
        return None
    if len(_ANY_SIDE.findall(text)) != len(_SIDE.findall(text)):
        return None  # "leftover", "lefty", "rights": not the words this function knows
    swapped = _SIDE.sub(_other_side, text)
    return None if "\0" in swapped else swapped


def _other_side(match: re.Match[str]) -> str:
    word = match.group(1)
    other = "right" if word.lower() == "left" else "left"
    for case in (str.lower, str.upper, str.capitalize):
        if case(word) == word:
            return case(other)
    return "\0"


_PLACE = re.compile(
    r"\b(?:left|right|top|bottom|upper|lower|middle|cent(?:er|re)|mid|corner|edge|side|far|near\w*|"
    r"clos\w+|front|back\w*|foreground|behind|high\w*|low\w*|above|below|first|second|third|last|"
    r"end|\d+(?:st|nd|rd|th)|big\w*|small\w*|larg\w+|tall\w*|short\w*|cut|partial\w*|half|visible)\b"
    r"|\b(?:left|right)(?:most|hand|wards?)\b",
    _FLAGS,
)


def speaks_of_place(text: str) -> bool:
    """Whether the phrase names a place in the frame, an order or a size: a crop may change it."""
    return _PLACE.search(text) is not None
