"""A training recipe: one YAML file, every value with a default and a reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError
from training.model import CRISConfig
from training.model.config import MODELS


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how. `training/configs/` holds recipes that were run."""

    model: str = "cris_edge_s"
    """A name of `training.model.config.MODELS`."""
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sizes that differ from the named model's."""
    pretrained: str | None = "imagenet"
    """`imagenet` for students; `openai` or a file of CLIP's weights for full CRIS; null: random."""
    data: str = "data"
    """Folder laid out as docs/data.md tells."""

    seed: int = 0
    epochs: int = 20
    photos: int = 8
    """Photos in a batch."""
    phrases: int = 5
    """Phrases of each photo; the image encoder runs once for all of them."""
    train_repeats: int = 2
    """Times an epoch sees each fully labelled photo; those with boxes are seen once."""
    absent: float = 0.5
    """Chance that one phrase of a photo fits nothing in it."""

    learning_rate: float = 6e-4
    image_encoder_rate: float = 0.2
    """Of the learning rate: the image encoder comes trained, the rest does not."""
    weight_decay: float = 0.02
    warmup_steps: int = 200
    clip_norm: float = 1.0
    ema: float = 0.998
    """Decay of the moving average of the weights, which is what is evaluated and kept."""
    bf16: bool = True
    """Matrix products in bfloat16: 1.4 to 2 times as fast where the CPU or GPU has it."""

    dice: float = 1.0
    which: float = 1.0
    naming: float = 0.5
    """Weights of the losses beside cross-entropy (see training/losses.py)."""

    workers: int = 1
    validate_every: int = 2
    """Epochs between validations."""

    def config(self) -> CRISConfig:
        """The model's sizes.

        Raises:
            RecipeError: the model or a size of it does not exist.
        """
        if self.model not in MODELS:
            raise RecipeError(f"model: {self.model!r} is none of {', '.join(sorted(MODELS))}")
        try:
            sizes = dataclasses.asdict(MODELS[self.model]) | self.sizes
            return CRISConfig.from_dict(sizes)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"sizes: {error}") from error


COUNTS = ("epochs", "photos", "phrases", "validate_every")
"""Of which there must be one at least; no number of a recipe is negative."""
SHARES = ("absent", "ema")
"""At most 1."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides of the form `name=value`, values as in YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown name, or a value of another type or range.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: expected lines of the form `name: value`, got {values!r}")
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise RecipeError(f"override {override!r}: expected name=value")
            values[name] = yaml.safe_load(value)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    return _checked(values)


def _checked(values: dict[str, Any]) -> Recipe:
    defaults = dataclasses.asdict(Recipe())
    if unknown := sorted(str(name) for name in values if name not in defaults):
        raise RecipeError(f"unknown names {unknown}; a recipe has {', '.join(defaults)}")
    for name, value in values.items():
        wanted = (str, type(None)) if name == "pretrained" else (type(defaults[name]),)
        if float in wanted and type(value) is int:
            values[name] = float(value)
        elif type(value) not in wanted:
            raise RecipeError(
                f"{name}: expected {wanted[0].__name__}, got {value!r} ({type(value).__name__}). "
                "Numbers with an exponent need a point in YAML: 6.0e-4"
            )
        if isinstance(value, (int, float)):
            _check_range(name, value)
    return Recipe(**values)


def _check_range(name: str, value: float) -> None:
    least, most = 1 if name in COUNTS else 0, 1 if name in SHARES else math.inf
    # So written that a number that is none (.nan) is refused too.
    if not least <= value <= most or math.isinf(value):
        upper = "up" if math.isinf(most) else f"to {most}"
        raise RecipeError(f"{name}: expected a number from {least} {upper}, got {value}")
