"""A recipe for a student that has a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from training.errors import RecipeError
from training.recipe import Recipe

LESSONS = ("soft_masks", "relations", "features", "texts")
"""Names of what is learnt from a teacher; 0 or null leaves one out."""


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """What a training recipe says, and what is learnt from the teacher beside the labels."""

    teacher: str | None = None
    """A checkpoint, or a bundle, which gives `soft_masks` alone; null: the student learns from the
    labels alone."""
    soft_masks: float = 1.0
    """Weight of the teacher's masks, which say where it is unsure."""
    temperature: float = 2.0
    """Divides logits before they are compared: the higher, the more small differences count."""
    relations: float = 1.0
    """Weight of how alike each pixel and each word are."""
    features: float = 1.0
    """Weight of the teacher's own features, which adapters translate into."""
    texts: str | None = None
    """A file of phrases, one a line (.gz too), for the phrase side by itself; null: none."""
    text_steps: int = 1000
    """Steps on `texts` before the first photo."""
    text_batch: int = 256
    """Phrases in each of them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be divided by, or drawn."""
        if self.temperature <= 0 or self.text_batch < 1:
            raise RecipeError("temperature and text_batch: expected more than 0")
