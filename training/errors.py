"""What training refuses, and why."""

from cris_edge.errors import CrisEdgeError


class DataError(CrisEdgeError):
    """Photos, annotations or expressions are missing or not as they should be."""


class CheckpointError(CrisEdgeError):
    """A checkpoint is missing, damaged, or of another model."""


class RecipeError(CrisEdgeError):
    """A training recipe names what does not exist or cannot be."""


class TrainingError(CrisEdgeError):
    """A run that cannot start or go on; what was kept so far is whole."""
