"""How many layers are given back to float so that the loss stays within a budget."""

from __future__ import annotations

from collections.abc import Callable

from quantize.errors import QuantizeError


def fewest(count: int, loss: Callable[[int], float], budget: float) -> int:
    """How many of the most sensitive layers to give back to float.

    Twice as many each time until the loss is within the budget, then by halves towards the fewest.
    The loss of the number that comes back has been measured, and is within the budget.

    Args:
        count: of layers; one at least stays in INT8.
        loss: points of mIoU that are lost when the so many most sensitive layers are given back.
        budget: points that may be lost.

    Raises:
        QuantizeError: the budget is missed whatever is given back; with the least loss.
    """
    lost = {0: loss(0)}
    short, enough = -1, 0
    while not lost[enough] <= budget:
        if enough == count - 1:
            raise QuantizeError(
                f"the budget of {budget:g} points of mIoU cannot be kept: the loss is "
                f"{lost[0]:.2f} with all layers in INT8, and at best {min(lost.values()):.2f} with "
                f"{enough} of {count} given back to float. Calibrate with more or other photos, "
                "allow a larger --budget, or stay in float"
            )
        short, enough = enough, min(max(1, 2 * enough), count - 1)
        lost[enough] = loss(enough)
    while enough - short > 1:
        middle = (short + enough) // 2
        lost[middle] = loss(middle)
        short, enough = (short, middle) if lost[middle] <= budget else (middle, enough)
    return enough
