"""What quantisation refuses, and why."""

from cris_edge.errors import CrisEdgeError


class QuantizeError(CrisEdgeError):
    """A model cannot be quantised, or what came of it is not worth having; nothing was written."""
