"""The groups that a sample's figures are reported under, beside those of all samples."""

from __future__ import annotations

import re

from training.data.coco import Instance
from training.data.samples import Sample

SMALL, LARGE = 0.03, 0.10
"""Shares of the photo between which an object is neither small nor large."""
SEVERAL_CATEGORIES = "several categories"

_SIDE = re.compile(r"\b(left|right)(most)?\b", re.IGNORECASE)
_BY_PEOPLE = ("written", "reference")
"""Kinds of phrases that no rule made."""
_ORDER = (
    "all",
    "kind: ",
    "objects: one",
    "objects: several",
    "objects: none",
    "area < 3 %",
    "area 3 to 10 %",
    "area > 10 %",
    "area >= 3 %",
    "person",
    "not a person",
    "rival present",
    "no rival",
    "says left or right",
)


def place(group: str) -> tuple[int, str]:
    """What groups are sorted by: `all` first, groups of one property together."""
    known = group if group in _ORDER else "kind: "
    return _ORDER.index(known), group


def group_names(sample: Sample, truth_share: float) -> list[str]:
    """The groups of one sample.

    What nothing in the photo fits has no size, no category and no rival.

    Args:
        sample: its kind is the rule of a derived phrase; a rival is another instance of the same
            category in the photo, crowds included.
        truth_share: share of the photo that the true mask covers.
    """
    names = ["all"]
    if sample.kind not in _BY_PEOPLE:
        names.append(f"kind: {sample.kind}")
    if sample.kind == "reference":
        names.append(_objects(sample.instance))
    if sample.instance.objects > 0:
        names += [*_sizes(truth_share), *_company(sample)]
    if _SIDE.search(sample.text):
        names.append("says left or right")
    return names


def category_name(instance: Instance) -> str:
    """The row of a table by category: the category of what is meant, were it one object or many."""
    return SEVERAL_CATEGORIES if len(_categories(instance)) > 1 else instance.category


def _objects(instance: Instance) -> str:
    return f"objects: {('none', 'one')[instance.objects] if instance.objects < 2 else 'several'}"


def _sizes(truth_share: float) -> list[str]:
    if truth_share < SMALL:
        return ["area < 3 %"]
    return ["area >= 3 %", "area > 10 %" if truth_share > LARGE else "area 3 to 10 %"]


def _company(sample: Sample) -> list[str]:
    """Whether people are meant, and whether others of the kind stand by."""
    categories, names = _categories(sample.instance), []
    if categories == {"person"} or "person" not in categories:
        names.append("person" if "person" in categories else "not a person")
    alike = sum(instance.category in categories for instance in sample.photo.instances)
    names.append("rival present" if alike > sample.instance.objects else "no rival")
    return names


def _categories(instance: Instance) -> set[str]:
    return set(instance.categories) or {instance.category}
