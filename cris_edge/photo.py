"""Photos from wherever they come: checked, and brought to (H, W, 3) uint8 BGR."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_edge.errors import InputError

MIN_SIDE, MAX_SIDE = 8, 8192
CHANNELS = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}

Photo = NDArray[np.uint8]


def as_photo(source: object) -> Photo:
    """Read or check a photo.

    Args:
        source: a path; or uint8 (H, W, 3) BGR, (H, W, 4) BGRA, (H, W) or (H, W, 1) grey, each side
            from 8 to 8192 pixels, in any memory layout.

    Returns:
        (H, W, 3) uint8 BGR, contiguous; the caller's own array where it is that already.

    Raises:
        InputError: anything else, with what was expected and what came.
    """
    if isinstance(source, (str, os.PathLike)):
        source = read_photo(Path(source))
    if not isinstance(source, np.ndarray):
        raise InputError(f"a photo must be a path or a numpy array, not {type(source).__name__}")
    if source.dtype != np.uint8:
        raise InputError(
            f"a photo must be uint8 in [0, 255], not {source.dtype}; "
            "for values in [0, 1]: (photo * 255).round().astype('uint8')"
        )
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise InputError(
            f"a photo must have shape (H, W, 3), (H, W, 4), (H, W) or (H, W, 1), not {source.shape}"
        )
    height, width = source.shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(
            f"a photo's sides must be {MIN_SIDE} to {MAX_SIDE} pixels, not {width} x {height}"
        )
    photo = np.ascontiguousarray(source)
    if channels in CHANNELS:
        photo = np.asarray(cv2.cvtColor(photo, CHANNELS[channels]), np.uint8)
    return photo


def read_photo(path: Path) -> Photo:
    """Decode an image file to (H, W, 3) uint8 BGR.

    It is turned as the EXIF data of a JPEG, PNG, WebP or TIFF file says.

    Raises:
        InputError: there is no such file, or it is no image that OpenCV can decode.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the photo cannot be read: {reason}") from error
    try:
        # OpenCV refuses more than 2^30 pixels before decoding (OPENCV_IO_MAX_IMAGE_PIXELS).
        photo = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error as error:
        raise InputError(f"{path}: the photo cannot be decoded: {error.err}") from error
    if photo is None:
        raise InputError(f"{path}: not an image that OpenCV can decode (JPEG, PNG, WebP, ...)")
    return np.asarray(photo, np.uint8)
