"""What is drawn of results: tints, whatever the photo, in little memory."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from cris_edge import InputError, Segmentation, draw
from cris_edge.segmentation import COLOURS
from tests.scenes import photo

HALF = np.repeat(np.arange(160)[None] < 80, 120, axis=0)


def result(mask: np.ndarray = HALF) -> Segmentation:
    return Segmentation("cat", mask.astype(np.float32), 0.5)


@pytest.mark.parametrize("opacity", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_mask_is_tinted_and_the_rest_stays(colour: tuple[int, int, int], opacity: float) -> None:
    before = photo(3)
    drawn = draw(before, [result()], [colour], opacity)
    # Away from the outline, and from the phrase in the corner.
    inside, outside = (slice(60, 110), slice(10, 70)), (slice(60, 110), slice(90, 160))
    wanted = before[inside] * (1 - opacity) + np.array(colour) * opacity
    np.testing.assert_array_equal(drawn[inside], wanted.round().astype(np.uint8))
    np.testing.assert_array_equal(drawn[outside], before[outside])


def test_drawing_takes_little_more_than_the_photo() -> None:
    large = cv2.resize(photo(1), (1600, 1200))
    whole = result(np.ones((1200, 1600), bool))
    assert whole.mask.all()
    tracemalloc.start()
    draw(large, [whole])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * large.nbytes


def test_without_colours_nothing_can_be_drawn() -> None:
    with pytest.raises(InputError, match="colours: expected one at least"):
        draw(photo(0), [result()], colours=())
