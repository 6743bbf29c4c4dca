"""CRIS Edge: a photo and a phrase in, a mask out, on the device.

>>> from cris_edge import Segmenter
>>> result = Segmenter().predict("photo.jpg", "the man in red")  # doctest: +SKIP
>>> result.mask, result.score, result.box  # doctest: +SKIP
"""

from cris_edge.errors import BundleError, CrisEdgeError, EngineError, InputError
from cris_edge.segmentation import Segmentation, draw
from cris_edge.segmenter import EncodedPhoto, Info, Segmenter

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "CrisEdgeError",
    "EncodedPhoto",
    "EngineError",
    "Info",
    "InputError",
    "Segmentation",
    "Segmenter",
    "draw",
]
