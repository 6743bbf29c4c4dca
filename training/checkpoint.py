"""Checkpoints: safetensors with all that a model needs to be used inside, written whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cris_edge.errors import CrisEdgeError
from cris_edge.files import whole_file
from cris_edge.tokenizer import Tokenizer
from training.errors import CheckpointError
from training.model import CRIS, CRISConfig
from training.model.config import THRESHOLD

FORMAT = "cris-edge-checkpoint-1"
OWN = ("format", "config", "tokenizer", "threshold")
"""Of the header, what is no metadata but the checkpoint itself."""
MODEL = "model."
SCALE = "scale."
LEVELS = 127
"""Largest magnitude of a weight in 8 bits."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be used, with all that is needed to use it."""

    model: CRIS
    """In evaluation mode, on the CPU."""
    tokenizer: Tokenizer
    threshold: float
    """Probability above which a pixel belongs to the mask, in (0, 1)."""
    metadata: dict[str, str]
    """Free text by name: training data, accuracy as JSON, versions."""
    extra: dict[str, Tensor]
    """Tensors beside the model's: the optimiser's state and the like."""


def save(
    path: str | Path,
    model: CRIS,
    tokenizer: Tokenizer,
    metadata: Mapping[str, str],
    extra: Mapping[str, Tensor] | None = None,
    *,
    threshold: float = THRESHOLD,
    compact: bool = False,
) -> None:
    """Write a checkpoint whole or not at all: temporary name, sync, rename.

    Args:
        path: ends in `.safetensors` by custom.
        model: what to keep; buffers that can be computed are left out.
        tokenizer: what turns phrases into the ids that this model knows.
        metadata: free text by name.
        extra: more tensors by name, for going on with the training.
        threshold: probability above which a pixel belongs to the mask, in (0, 1).
        compact: round the model's matrices and kernels to 8 bits, its vectors to float16.

    Raises:
        CheckpointError: the tensors cannot be written, as on a full disk, or the threshold is no
            such probability.
        OSError: the folder cannot be written to.
    """
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors = (_rounded(tensors) if compact else tensors) | dict(extra or {})
    # A copy each, so that tensors sharing memory are no obstacle.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = dict(metadata) | {
        "format": FORMAT,
        "config": model.config.to_json(),
        "tokenizer": tokenizer.to_json(),
        "threshold": str(_threshold(path, threshold)),
    }
    try:
        with whole_file(path) as temporary:
            save_file(tensors, temporary, header)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is ever run.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or damaged.
    """
    path = Path(path)
    with _opened(path) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Checkpoints of before it was kept have none.
    threshold = _threshold(path, header.pop("threshold", THRESHOLD))
    try:
        model = CRIS(CRISConfig.from_json(header.pop("config")))
        tokenizer = Tokenizer.from_json(header.pop("tokenizer"))
        model.load_state_dict(_restored(tensors))
    except (CrisEdgeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the header does not fit the tensors: {error}") from error
    extra = {k: v for k, v in tensors.items() if not k.startswith((MODEL, SCALE))}
    return Checkpoint(model.eval(), tokenizer, threshold, header, extra)


def notes(path: str | Path) -> dict[str, str]:
    """A checkpoint's metadata alone, without reading its tensors.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or damaged.
    """
    with _opened(Path(path)) as (_, header):
        return {name: note for name, note in header.items() if name not in OWN}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint's tensors, unread, and its header."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path}: expected the format {FORMAT!r}, found {header.get('format')!r}"
                )
            yield file, header
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not a safetensors file: {error}. "
            "A checkpoint of the CRIS authors' code goes through python -m training.convert first."
        ) from error


def _threshold(path: str | Path, value: str | float) -> float:
    try:
        threshold = float(value)
    except ValueError:
        threshold = math.nan
    if not 0 < threshold < 1:
        raise CheckpointError(
            f"{path}: threshold: expected a probability between 0 and 1, got {value!r}"
        )
    return threshold


def _rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """8 bits and a scale for each row of what has rows, float16 for the rest of the floats."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            found[name] = tensor
        elif tensor.ndim < 2:
            found[name] = tensor.half()
        else:
            largest = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True)
            scale = (largest / LEVELS).clamp(min=1e-12)
            found[name] = (tensor / scale).round().to(torch.int8)
            found[SCALE + name] = scale
    return found


def _restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors, multiplied by their scales where they are rounded."""
    return {
        name.removeprefix(MODEL): tensor * tensors[SCALE + name]
        if SCALE + name in tensors
        else tensor
        for name, tensor in tensors.items()
        if name.startswith(MODEL)
    }


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `optimiser.<parameter>.<quantity>`."""
    return {
        f"optimiser.{index}.{quantity}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for quantity, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, extra: Mapping[str, Tensor]) -> None:
    """Give an optimiser over the same parameters what `optimiser_tensors` kept."""
    content = optimiser.state_dict()
    for name, tensor in extra.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, quantity = rest.partition(".")
            content["state"].setdefault(int(index), {})[quantity] = tensor
    optimiser.load_state_dict(content)
    # Laid out as the parameters, which may be channels-last: fused kernels refuse anything else.
    for parameter, state in optimiser.state.items():
        for quantity, value in state.items():
            if value.ndim and value.shape == parameter.shape:
                state[quantity] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
