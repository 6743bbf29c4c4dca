"""Where boxes lie to each other, answered only when the answer is clear.

Boxes are (x1, y1, x2, y2); `axis` is 0 for left → right, 1 for top → bottom. Gaps are shares of
the photo's extent along the axis.
"""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]

ORDER_GAP = 0.05
TOUCHING = 0.03
APART = 0.15


def centre(box: Box, axis: int) -> float:
    """The middle of a box along an axis."""
    return (box[axis] + box[axis + 2]) / 2


def precedes(first: Box, second: Box, axis: int, extent: float) -> bool:
    """Whether `first` comes clearly before `second`: its start, its centre and its end do."""
    return (
        centre(second, axis) - centre(first, axis) >= ORDER_GAP * extent
        and first[axis] < second[axis]
        and first[axis + 2] < second[axis + 2]
    )


def rank(index: int, boxes: Sequence[Box], axis: int, extent: float) -> int | None:
    """How many boxes come before this one; None unless each is clearly before or after it."""
    before = 0
    for other, box in enumerate(boxes):
        if other == index:
            continue
        if precedes(box, boxes[index], axis, extent):
            before += 1
        elif not precedes(boxes[index], box, axis, extent):
            return None
    return before


def in_a_row(boxes: Sequence[Box], axis: int, extent: float) -> bool:
    """Whether the boxes stand side by side along `axis`, so that counting along it makes sense."""
    across = 1 - axis
    middles = sorted(centre(box, across) for box in boxes)
    heights = sorted(box[across + 2] - box[across] for box in boxes)
    allowed = max(0.5 * heights[len(heights) // 2], 0.08 * extent)
    return middles[-1] - middles[0] <= allowed


def overlap(first: Box, second: Box, axis: int) -> float:
    """Length that two boxes share along an axis; negative: the gap between them."""
    return min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis])


def distance(first: Box, second: Box) -> float:
    """Shortest distance of two boxes in pixels, 0 where they overlap."""
    gaps = [max(0.0, -overlap(first, second, axis)) for axis in (0, 1)]
    return math.hypot(*gaps)


def is_beyond(box: Box, landmark: Box, axis: int) -> bool:
    """Whether `box` ends before `landmark` begins (a little overlap is let pass), facing it."""
    size = min(box[axis + 2] - box[axis], landmark[axis + 2] - landmark[axis])
    across = 1 - axis
    return overlap(box, landmark, axis) <= 0.2 * size and overlap(box, landmark, across) > 0
