"""The everyday name of an object's dominant colour, where it has one."""

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.coco import Photo

COLOURS = (
    "black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
)  # fmt: skip
CLEAR_SHARE = 0.55
RUNNER_UP = 0.5
MIN_PIXELS = 150

# Upper ends of the hue ranges, in OpenCV's half degrees.
_HUES = ((8, "red"), (21, "orange"), (34, "yellow"), (85, "green"), (130, "blue"),
         (150, "purple"), (171, "pink"), (180, "red"))  # fmt: skip


_ALIKE = (
    {"red", "orange", "brown", "pink"}, {"orange", "yellow", "brown"}, {"white", "grey"},
    {"black", "grey"}, {"pink", "purple"}, {"purple", "blue"}, {"black", "brown"},
)  # fmt: skip


def alike(first: str, second: str) -> bool:
    """Whether one colour is the other, or may be taken for it."""
    return first == second or any({first, second} <= group for group in _ALIKE)


def pixel_colours(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Index into `COLOURS` for every pixel of a (H, W, 3) uint8 BGR picture; 255: in between."""
    hue, saturation, value = (
        channel.astype(np.int32) for channel in cv2.split(cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV))
    )
    names = np.full(hue.shape, 255, np.uint8)
    low = 0
    for high, name in _HUES:
        names[(hue >= low) & (hue < high)] = COLOURS.index(name)
        low = high
    chroma = saturation * value // 255
    # A dark orange is called brown, and a light weak red pink.
    warm = (hue < 22) & (value < 165) & (saturation > 60)
    names[warm & ~((hue < 8) & (saturation > 150))] = COLOURS.index("brown")
    names[((hue < 8) | (hue >= 165)) & (value > 180) & (saturation < 130)] = COLOURS.index("pink")
    # The doubtful have no name: tan, pale tints, white in shade.
    names[(names == COLOURS.index("orange")) & (saturation < 140)] = 255
    names[chroma < 45] = 255
    neutral = chroma < 28
    names[neutral & (value < 145)] = COLOURS.index("grey")
    names[neutral & (value >= 180)] = COLOURS.index("white")
    names[value < 70] = 255
    names[value < 50] = COLOURS.index("black")
    return names


def smooth_colours(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same of a picture without its grain, as things in it are asked for their colours."""
    return pixel_colours(np.asarray(cv2.blur(bgr, (3, 3)), np.uint8))


def dominant(names: NDArray[np.uint8]) -> str | None:
    """The colour that covers most of an object, or None where no colour clearly does.

    Args:
        names: uint8 of any shape, the object's pixels as `pixel_colours` names them.
    """
    if names.size < MIN_PIXELS:
        return None
    counts = np.bincount(names.ravel(), minlength=256)[: len(COLOURS)]
    best, second = np.argsort(counts)[::-1][:2]
    clear = counts[best] >= CLEAR_SHARE * names.size and counts[second] <= RUNNER_UP * counts[best]
    name = COLOURS[best]
    # Measured grey may be white in shade, silver or glass; nobody would call those grey.
    return name if clear and name != "grey" else None


def name_colours(photo: Photo) -> dict[int, str]:
    """Instance id → dominant colour, for the instances that have a mask and a clear colour."""
    wanted = [i for i in photo.instances if i.has_mask and not i.crowd and i.category != "person"]
    if not wanted:
        return {}
    names = smooth_colours(photo.read())
    found = {instance.id: dominant(names[instance.mask()]) for instance in wanted}
    return {key: name for key, name in found.items() if name is not None}
