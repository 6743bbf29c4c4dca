"""A training recipe: one YAML file, every value with a default."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from training.errors import RecipeError
from training.model import CRISConfig
from training.model.config import MODELS


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how.

    The defaults are the paper's recipe for RefCOCO with ResNet-50 (arXiv 2111.15174). The other
    values that a name may have were measured where docs/training.md says so; `training/configs/`
    holds whole recipes.
    """

    kind: str = "references"
    """What `data` holds. `references`: what `training.prepare` wrote, RefCOCO or one's own;
    `photos`: instances with phrases made by rule and written (docs/data.md); `scenes`: any photos,
    over which a made-up world is painted."""
    data: str = "data/prepared/refcoco"
    """A folder, see `kind`."""
    model: str = "cris_r50"
    """A name of `training.model.config.MODELS`."""
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sizes that differ from the named model's."""
    pretrained: str | None = "openai"
    """`openai` or a file of CLIP's weights for full CRIS; `imagenet` for `cris_edge_xs` and
    `cris_edge_s`; a file of MobileCLIP2-S0's for `cris_edge_m`; null: random."""
    start_from: str | None = None
    """A checkpoint (.safetensors) to fine-tune, in place of `pretrained`: its weights, and its
    tokenizer. Sizes must be its own, but for the input's."""
    seed: int = 0

    epochs: int = 50
    photos: int = 64
    """Photos in a batch, over all processes: more GPUs change the speed and nothing else, but for
    what is learnt from a teacher (docs/distillation.md)."""
    accumulate: int = 1
    """Parts in which a process takes its share of a batch, where memory is short. Batch norm then
    sees a part at a time."""
    phrases: int = 1
    """Phrases of each photo; the image encoder runs once for all of them."""
    mirror: float = 0.0
    """`photos`, `references`: share of photos that are mirrored, left and right swapped in their
    words."""
    outlines: str = "published"
    """What masks are taught. `published`: every fourth pixel of the input, which the way back puts
    elsewhere, up to three pixels off; `covered`: the share of each logit's cell that is covered,
    where the way back puts it (docs/training.md has what the two can reach)."""
    train_repeats: int = 1
    """Times an epoch sees each reference, or each fully labelled photo of `photos`."""
    box_repeats: int = 1
    """`photos`: times an epoch sees each photo with boxes. Short epochs start loaders often."""
    absent: float = 0.0
    """`photos`: chance that one phrase of a photo fits nothing in it (training/data/foreign.py)."""
    several: float = 0.0
    """`photos`: chance that one phrase of a photo means all things of a kind, where it has several
    (training/data/several.py)."""
    pasted: float = 0.0
    """`photos`: share of the fully labelled photos onto which cut-outs of others are pasted."""
    scenes: int = 4000
    """`scenes`: number of them in an epoch."""
    overfit: int = 0
    """`references`: learn the first so many by heart and judge by them, to see that it can."""

    optimiser: str = "adam"
    """`adam`, or `adamw` with decoupled weight decay."""
    learning_rate: float = 1e-4
    image_encoder_rate: float = 0.1
    text_encoder_rate: float = 0.1
    """Of the learning rate, for what comes trained; positional embeddings have the whole of it."""
    weight_decay: float = 0.0
    schedule: str = "steps"
    """`steps`: a tenth of the rate from each of `milestones` on; `cosine`: down to nothing."""
    milestones: list[int] = dataclasses.field(default_factory=lambda: [35])
    """Epochs that are over when the rate falls."""
    warmup_steps: int = 0
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: any."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is judged and kept; 0: none."""
    frozen_statistics: bool = False
    """The image encoder's batch norms keep the statistics they come with: for small batches."""

    precision: str = "float16"
    """Of matrix products: `float32`, `bfloat16`, or `float16` with a scaled loss."""
    channels_last: bool = False
    compile: bool = False
    """Let torch.compile fuse the model: minutes once, then faster steps."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more work."""

    dice: float = 0.0
    quiet: float = 0.0
    which: float = 0.0
    referent: float = 0.0
    naming: float = 0.0
    """Weights of the losses beside cross-entropy (see training/losses.py)."""

    workers: int = 4
    """Processes that load photos, for each process that trains."""
    validate_every: int = 1
    """Epochs between validations."""
    save_every: int = 0
    """Steps between states within an epoch; 0: at the ends of epochs alone."""
    keep: int = 2
    """States that are kept, the newest."""
    log_every: int = 20
    """Steps between lines of the log."""

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


COUNTS = (
    "epochs", "photos", "phrases", "accumulate", "scenes", "validate_every", "keep", "log_every",
)  # fmt: skip
"""Of which there must be one at least; no number of a recipe is negative."""
MOST = dict.fromkeys(("absent", "several", "pasted", "mirror", "ema"), 1) | {"seed": 2**32 - 1}
"""Shares, and what seeds of all kinds hold."""
CHOICES = {
    "kind": ("references", "photos", "scenes"),
    "outlines": ("published", "covered"),
    "optimiser": ("adam", "adamw"),
    "schedule": ("steps", "cosine"),
    "precision": ("float32", "bfloat16", "float16"),
}
BYSTANDERS = ("data", "workers", "validate_every", "save_every", "keep", "log_every", "teacher")
"""What may change when a run is resumed: the batches and the losses stay the same. Data and teacher
may be elsewhere; that they are the same ones is known by what they hold."""


_Kind = TypeVar("_Kind", bound=Recipe)


@overload
def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def read_recipe(path: str | Path, overrides: Sequence[str], kind: type[_Kind]) -> _Kind: ...
def read_recipe(
    path: str | Path, overrides: Sequence[str] = (), kind: type[Recipe] = Recipe
) -> Recipe:
    """Read a recipe and apply overrides of the form `name=value`, values as in YAML.

    Args:
        path: a YAML file.
        overrides: what to change in it.
        kind: a recipe with more names than `Recipe` has.

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
    return _checked(values, kind)


def as_override(name: str, value: str | Path) -> str:
    """An override that is text as it stands, whatever YAML would make of it."""
    return f"{name}={json.dumps(str(value), ensure_ascii=False)}"


def _checked(values: dict[str, Any], kind: type[_Kind]) -> _Kind:
    defaults = dataclasses.asdict(kind())
    optional = {field.name for field in dataclasses.fields(kind) if "None" in str(field.type)}
    if unknown := sorted(str(name) for name in values if name not in defaults):
        raise RecipeError(f"unknown names {unknown}; a recipe has {', '.join(defaults)}")
    for name, value in values.items():
        wanted = (str, type(None)) if name in optional else (type(defaults[name]),)
        if float in wanted and type(value) is int:
            values[name] = float(value)
        elif type(value) not in wanted:
            raise RecipeError(
                f"{name}: expected {wanted[0].__name__}, got {value!r} ({type(value).__name__}). "
                "Numbers with an exponent need a point in YAML: 6.0e-4"
            )
        if name in CHOICES and value not in CHOICES[name]:
            raise RecipeError(f"{name}: {value!r} is none of {', '.join(CHOICES[name])}")
        if isinstance(value, (int, float)):
            _check_range(name, value)
        if name == "milestones" and not all(type(one) is int and one >= 0 for one in value):
            raise RecipeError(f"milestones: expected whole epochs, got {value}")
    recipe = kind(**values)
    if recipe.naming and recipe.kind != "photos":
        raise RecipeError("naming: only `kind: photos` has COCO's 80 categories to name pixels by")
    return recipe


def _check_range(name: str, value: float) -> None:
    least, most = 1 if name in COUNTS else 0, MOST.get(name, math.inf)
    # So written that a number that is none (.nan) is refused too.
    if not least <= value <= most or math.isinf(value):
        upper = "up" if math.isinf(most) else f"to {most}"
        raise RecipeError(f"{name}: expected a number from {least} {upper}, got {value}")
