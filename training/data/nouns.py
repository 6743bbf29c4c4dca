"""The 80 COCO categories and the everyday nouns people call them by."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

CATEGORIES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 category names in the order of their official ids."""

CATEGORY_INDEX: dict[str, int] = {name: index for index, name in enumerate(CATEGORIES, start=1)}
"""Category name → 1..80, as in category maps where 0 is background."""

# Names that mean one category only.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "motorcycle": ("motorbike",),
    "airplane": ("plane", "aeroplane", "aircraft"),
    "traffic light": ("stoplight", "traffic signal"),
    "fire hydrant": ("hydrant",),
    "cat": ("kitty",),
    "dog": ("doggy",),
    "backpack": ("rucksack",),
    "umbrella": ("parasol",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "suitcase": ("luggage",),
    "frisbee": ("flying disc",),
    "sports ball": ("ball",),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt", "mitt"),
    "tennis racket": ("racket", "tennis racquet"),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("plant in a pot",),
    "dining table": ("table",),
    "tv": ("television", "tv screen"),
    "laptop": ("laptop computer", "notebook computer"),
    "mouse": ("computer mouse",),
    "remote": ("remote control",),
    "keyboard": ("computer keyboard",),
    "cell phone": ("phone", "mobile phone"),
    "microwave": ("microwave oven",),
    "oven": ("stove",),
    "sink": ("basin", "washbasin"),
    "refrigerator": ("fridge",),
    "scissors": ("pair of scissors",),
    "teddy bear": ("teddy", "stuffed bear"),
    "hair drier": ("hair dryer", "blow dryer"),
}

# Names that fit several categories: every instance of all of them is a rival.
_SHARED: dict[str, tuple[str, ...]] = {
    "bear": ("bear", "teddy bear"),
    "bike": ("bicycle", "motorcycle"),
    "vehicle": ("car", "motorcycle", "bus", "train", "truck", "bicycle", "airplane", "boat"),
    "animal": (
        "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    ),
    "bag": ("backpack", "handbag", "suitcase"),
    "cutlery": ("fork", "knife", "spoon"),
    "fruit": ("banana", "apple", "orange"),
    "vegetable": ("broccoli", "carrot"),
    "seat": ("chair", "couch", "bench"),
}  # fmt: skip


def _meanings() -> dict[str, frozenset[str]]:
    meanings = {name: {name} for name in CATEGORIES if name != "bear"}
    for category, synonyms in _SYNONYMS.items():
        for synonym in synonyms:
            meanings[synonym] = {category}
    for noun, categories in _SHARED.items():
        meanings[noun] = set(categories)
    return {noun: frozenset(covered) for noun, covered in meanings.items()}


MEANINGS: dict[str, frozenset[str]] = _meanings()
"""Noun → every category it fits; a phrase with the noun has all of their instances as rivals."""

NOUNS: dict[str, tuple[str, ...]] = {
    category: tuple(sorted(noun for noun, covered in MEANINGS.items() if category in covered))
    for category in CATEGORIES
}
"""Category → the nouns that fit it."""

OWN_NOUNS: dict[str, tuple[str, ...]] = {
    category: tuple(noun for noun in nouns if MEANINGS[noun] == {category}) or (category,)
    for category, nouns in NOUNS.items()
}
"""Category → the nouns that fit no other; of bears, which teddies are too, there is none such."""

EVERY_NOUN: tuple[str, ...] = tuple(noun for nouns in NOUNS.values() for noun in nouns)
"""The nouns of all categories in turn; one that fits several stands there as often."""


@cache
def plural(noun: str) -> str:
    """Several of what a noun names: "dogs", "people"."""
    return str(_english().plural_noun(noun))


@cache
def _english() -> "inflect.engine":
    # As slow to import as torch, and most commands never ask.
    import inflect

    english = inflect.engine()
    english.defnoun("skis", "skis")
    return english
