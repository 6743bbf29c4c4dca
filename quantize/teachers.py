"""Whom a student learns from: a checkpoint shows all its stages, a bundle its masks alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cris_edge import Segmenter
from cris_edge.bundle import MAX_PHRASES, SPECIFICATION, sha256
from cris_edge.errors import BundleError
from cris_edge.tokenizer import Tokenizer
from quantize import lessons
from quantize.recipe import LESSONS, DistillRecipe
from training import checkpoint
from training.errors import CheckpointError, RecipeError, TrainingError
from training.model import CRIS
from training.model.decoder import DecoderLayer

KEPT = 1024
"""Phrases that a bundle is not asked again: 80 MB of the smallest model, 220 MB of full CRIS."""


class Teacher(Protocol):
    """Shows what it makes of photos and phrases."""

    tokenizer: Tokenizer
    word_len: int
    lessons: tuple[str, ...]
    """Those of `LESSONS` that it shows enough for."""
    channels: dict[str, int]
    """Of the features that it shows."""

    def show(self, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """What is learnt from, by name, where `frames` are; no gradients.

        Args:
            frames: (B, S, S, 3) uint8 RGB, letterboxed to a square of any size. They are resized to
                the teacher's own: the padding keeps the student's colour, and a larger input is no
                sharper than the student's.
            tokens: (B * K, word_len), K phrases of each photo.

        Returns:
            For `soft_masks` logits (B * K, 1, h, w); for other lessons `relation` and the features
            that `channels` names.
        """


class CheckpointTeacher:
    """A model in torch."""

    lessons: tuple[str, ...] = LESSONS

    def __init__(self, model: CRIS, tokenizer: Tokenizer):
        """Teach by a model in evaluation mode, which stays as it is and where it is."""
        self.model = model.requires_grad_(False)
        self.tokenizer, self.word_len = tokenizer, model.config.word_len
        self.channels = channels(model)

    @torch.no_grad()
    def show(self, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Every stage, and `relation`."""
        image = self.model.normalise(_resized(frames, self.model.config.input_size))
        stages = self.model.stages(image, tokens)
        return stages | {"relation": relation_of(self.model, stages)}


class BundleTeacher:
    """A bundle in its engine: a photo is encoded once, and a phrase too while it is remembered."""

    lessons: tuple[str, ...] = ("soft_masks",)

    def __init__(self, segmenter: Segmenter):
        """Teach by the graphs of a segmenter."""
        self.tokenizer, self.word_len = segmenter.phrases.tokenizer, segmenter.phrases.word_len
        self.channels: dict[str, int] = {}
        self._segmenter = segmenter
        self._said = functools.lru_cache(KEPT)(self._read)

    # An engine is nothing that torch could compile.
    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def show(self, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Logits.

        Raises:
            EngineError: the engine failed.
            TrainingError: the logits are no numbers.
        """
        photos = _resized(frames, self._segmenter.letterbox.size).cpu().numpy()
        phrases = tokens.cpu().numpy().reshape(len(photos), -1, self.word_len)
        logits = np.concatenate([self._logits(*pair) for pair in zip(photos, phrases, strict=True)])
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"the teacher {self._segmenter.info.model} gives logits that are no numbers in "
                f"{self._segmenter.info.engine}: its weights are damaged"
            )
        return {"logits": torch.from_numpy(logits).to(frames.device)}

    def _logits(self, frame: NDArray[np.uint8], phrases: NDArray[np.int64]) -> NDArray[np.float32]:
        """(S, S, 3) and (K, word_len) to (K, 1, h, w)."""
        graphs = self._segmenter.graphs
        photo = graphs["photo"]({"frame": frame[None]})
        said = [self._said(tokens.tobytes()) for tokens in phrases]
        found = []
        for first in range(0, len(said), MAX_PHRASES):
            some = said[first : first + MAX_PHRASES]
            phrase = {name: np.concatenate([one[name] for one in some]) for name in some[0]}
            found.append(graphs["pair"].fetch(graphs["pair"]({**photo, **phrase})["logits"]))
        return np.concatenate(found).astype(np.float32)

    def _read(self, tokens: bytes) -> dict[str, NDArray[np.generic]]:
        """What the graph `phrase` gives of one phrase."""
        graph = self._segmenter.graphs["phrase"]
        found = graph({"tokens": np.frombuffer(tokens, np.int64)[None].copy()})
        return {name: graph.fetch(value) for name, value in found.items()}


def open_teacher(path: str, device: torch.device) -> Teacher:
    """The teacher at a path.

    Args:
        path: a checkpoint (.safetensors), or a bundle, folder or zip file, which runs in the best
            engine there is.
        device: of a checkpoint's model.

    Raises:
        CheckpointError: it is none of our checkpoints and no bundle, or damaged.
        EngineError: no engine runs the bundle.
    """
    if is_checkpoint(path):
        kept = checkpoint.load(path)
        return CheckpointTeacher(kept.model.to(device), kept.tokenizer)
    try:
        return BundleTeacher(Segmenter(path))
    except BundleError as error:
        raise CheckpointError(
            f"teacher: expected a checkpoint (.safetensors) or a bundle: {path}: {error}. A "
            "checkpoint of the CRIS authors' code goes through python -m training.convert first"
        ) from error


def is_checkpoint(path: str) -> bool:
    """Whether a path is that of a checkpoint; else it is a bundle's."""
    return Path(path).suffix == ".safetensors"


def fingerprint(path: str) -> str:
    """A hash that tells the teacher at a path, which `open_teacher` took, from any other there."""
    file = Path(path)
    # A bundle's folder has the hashes of its files in one of them.
    return sha256(file / SPECIFICATION if file.is_dir() else file)


def check_lessons(recipe: DistillRecipe, teacher: Teacher) -> None:
    """Refuse lessons that a teacher cannot give.

    Raises:
        RecipeError: tells how to leave them out.
    """
    missing = [n for n in LESSONS if getattr(recipe, n) and n not in teacher.lessons]
    if missing:
        without = " ".join(f"{name}={'null' if name == 'texts' else 0}" for name in missing)
        raise RecipeError(
            f"{', '.join(missing)}: expected a checkpoint as the teacher, got {recipe.teacher}. A "
            f"bundle shows its masks alone: give {without}, or the checkpoint it was exported from"
        )


def channels(model: CRIS) -> dict[str, int]:
    """Stages whose features are learnt, with their channels."""
    return {"c5": model.image_encoder.channels[2], "decoder": model.config.decoder_width}


def relation_of(model: CRIS, stages: dict[str, Tensor]) -> Tensor:
    """Pixels of the decoder against what each word would add to them in its last layer.

    In float32, whatever the precision of the run.
    """
    last = cast("DecoderLayer", model.decoder.layers[-1])
    with torch.autocast(stages["decoder"].device.type, enabled=False):
        words = last.cross_attention.out_proj(stages["values"][:, -1].float())
        return lessons.relation(stages["decoder"].float(), words)


def _resized(frames: Tensor, side: int) -> Tensor:
    """(B, S, S, 3) uint8 to (B, side, side, 3) uint8."""
    if frames.shape[1] == side:
        return frames
    planes = lessons.resized(frames.permute(0, 3, 1, 2).float(), (side, side))
    return planes.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
