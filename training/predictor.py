"""A checkpoint or a bundle as the runtime's `Segmenter`, so that both are judged alike.

A model in torch is wrapped as the three graphs that a bundle has. Everything around them, from the
letterbox to the threshold, is the runtime's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cris_edge import EngineError, Segmenter
from cris_edge.engines.base import Graph, Value
from cris_edge.letterbox import Letterbox
from cris_edge.segmenter import Info
from cris_edge.tokenizer import Tokenizer
from training import checkpoint
from training.convert import load_official
from training.model import CRIS, PHRASE, CRISConfig
from training.model.config import THRESHOLD


def open_segmenter(
    path: str | Path,
    engine: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
) -> Segmenter:
    """Open what `training.evaluate` evaluates.

    Args:
        path: a bundle (folder or zip), or a checkpoint ending in `.safetensors`, which runs in
            torch, on the GPU where there is one.
        engine: of a bundle, as `Segmenter` takes it; a checkpoint takes `auto` or `torch`.
        threads: None lets the engine choose. For a checkpoint it is torch's number of threads,
            which holds for the whole process.
        precision: that a bundle is computed in, as `Segmenter` takes it; a checkpoint has float32.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        BundleError: the bundle is.
        EngineError: the engine does not run what `path` is, or not in that precision.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return Segmenter(path, engine=engine, threads=threads, precision=precision)
    if precision is not None:
        raise EngineError(
            f"{path}: a checkpoint runs in float32, not in {precision}; "
            "leave the precision out, or give a bundle made by export.build"
        )
    _require_torch(engine, path)
    kept = checkpoint.load(path)
    return _placed(kept.model, kept.tokenizer, kept.threshold, threads)


def open_official(
    path: str | Path,
    *,
    word_len: int,
    decoder_heads: int = 8,
    engine: str = "auto",
    threads: int | None = None,
) -> Segmenter:
    """Open a checkpoint of the CRIS authors' code as it is; torch runs it.

    Args:
        path: what the authors' code saved: `best_model.pth`.
        word_len, decoder_heads: what the tensors' shapes do not tell, as for
            `training.convert.convert`.
        engine, threads: as `open_segmenter` takes them for a checkpoint.

    Raises:
        CheckpointError: it is not such a checkpoint, or of another vocabulary than CLIP's.
        EngineError: the engine is another than torch.
    """
    _require_torch(engine, Path(path))
    model, tokenizer = load_official(Path(path), word_len=word_len, decoder_heads=decoder_heads)
    return _placed(model, tokenizer, THRESHOLD, threads)


def _require_torch(engine: str, path: Path) -> None:
    if engine not in ("auto", "torch"):
        raise EngineError(
            f"{path.name} is a checkpoint, which torch runs, not {engine}; "
            "leave the engine out, or give a bundle made by export.build"
        )


def _placed(model: CRIS, tokenizer: Tokenizer, threshold: float, threads: int | None) -> Segmenter:
    """On this process's GPU where there is one."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch_segmenter(model.to(device), tokenizer, threshold)


def torch_segmenter(model: CRIS, tokenizer: Tokenizer, threshold: float = THRESHOLD) -> Segmenter:
    """A segmenter that runs a model as it is at each call: weights may change in between.

    The model stays where it is and is never switched by this: it must be in evaluation mode
    whenever `predict` is called, which otherwise raises EngineError.
    """
    config = model.config
    device = next(model.parameters()).device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Segmenter.from_graphs(
        letterbox=letterbox_of(config),
        tokenizer=tokenizer,
        word_len=config.word_len,
        threshold=threshold,
        graphs=torch_graphs(model),
        info=Info(
            model=config.name,
            precision="float32",
            input_size=config.input_size,
            engine="torch",
            engine_version=f"{torch.__version__} ({place})",
            threads=torch.get_num_threads() if device.type == "cpu" else None,
        ),
    )


def letterbox_of(config: CRISConfig) -> Letterbox:
    """How photos become this model's input."""
    return Letterbox(size=config.input_size, mean=config.mean)


def torch_graphs(model: CRIS) -> dict[str, Graph]:
    """The graphs `photo`, `phrase` and `pair` of a bundle, computed by a model in torch."""
    photo = model.photo_names
    return {
        "photo": _TorchGraph(model, model.photo, ("frame",), photo),
        "phrase": _TorchGraph(model, model.phrase, ("tokens",), PHRASE),
        "pair": _TorchGraph(model, model.pair, (*photo, *PHRASE), ("logits",)),
    }


class _TorchGraph:
    """A part of a model with the interface of an engine's graph; its values are tensors."""

    def __init__(
        self,
        model: CRIS,
        part: Callable[..., Tensor | tuple[Tensor, ...]],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ):
        self._model, self._part = model, part
        self._inputs, self._outputs = inputs, outputs

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the part where the model's parameters are."""
        if self._model.training:
            # Batch norm would take its statistics from this very photo, and keep them.
            raise EngineError("the model is in training mode; call its eval() before predicting")
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            result = self._part(*(torch.as_tensor(inputs[n]).to(device) for n in self._inputs))
        results = (result,) if isinstance(result, Tensor) else result
        return dict(zip(self._outputs, results, strict=True))

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array."""
        return np.asarray(value.cpu().numpy())
