"""What export refuses, and why."""

from cris_edge.errors import CrisEdgeError


class ExportError(CrisEdgeError):
    """A model could not be exported, or the export does not agree with it."""
