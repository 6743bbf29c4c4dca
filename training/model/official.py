"""Checkpoints of the CRIS authors' code: their names, and every size read from the shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.errors import CheckpointError
from training.model.config import R50, R101, CRISConfig
from training.model.cris import CRIS
from training.model.pickles import refusal

# Prefixes of the authors' names and ours. The first that fits is taken.
RENAMES = {
    r"backbone\.visual\.": "image_encoder.trunk.",
    r"backbone\.logit_scale$": "text_encoder.logit_scale",
    r"backbone\.": "text_encoder.tower.",
    r"neck\.txt_proj\.": "neck.sentence.",
    r"neck\.f1_v_proj\.": "neck.c5.",
    r"neck\.norm_layer\.": "neck.gated.",
    r"neck\.f2_v_proj\.": "neck.c4.",
    r"neck\.f2_cat\.": "neck.merge4.",
    r"neck\.f3_v_proj\.": "neck.c3.",
    r"neck\.f3_cat\.": "neck.merge3.",
    r"neck\.f4_proj([345])\.": r"neck.lateral\1.",
    r"neck\.aggr\.": "neck.aggregate.",
    r"neck\.coordconv\.0\.conv1\.": "neck.located.",
    r"neck\.coordconv\.1\.": "neck.final.",
    r"decoder\.layers\.(\d+)\.self_attn_norm\.": r"decoder.layers.\1.self_out_norm.",
    r"decoder\.layers\.(\d+)\.cross_attn_norm\.": r"decoder.layers.\1.cross_out_norm.",
    r"decoder\.layers\.(\d+)\.self_attn\.": r"decoder.layers.\1.self_attention.",
    r"decoder\.layers\.(\d+)\.multihead_attn\.": r"decoder.layers.\1.cross_attention.",
    r"decoder\.layers\.(\d+)\.ffn\.": r"decoder.layers.\1.feed.",
    r"decoder\.layers\.(\d+)\.norm1\.": r"decoder.layers.\1.self_norm.",
    r"decoder\.layers\.(\d+)\.norm2\.": r"decoder.layers.\1.cross_norm.",
    r"decoder\.layers\.(\d+)\.norm3\.": r"decoder.layers.\1.feed_norm.",
    r"decoder\.norm\.": "decoder.norm.",
    r"proj\.vis\.1\.": "projector.stride8.",
    r"proj\.vis\.3\.": "projector.stride4.",
    r"proj\.vis\.4\.": "projector.pixels.",
    r"proj\.txt\.": "projector.kernel.",
}


def our_name(name: str) -> str:
    """The name in our model of a tensor of the authors'; an unknown name comes back as it is."""
    name = name.removeprefix("module.")
    for pattern, ours in RENAMES.items():
        renamed, count = re.subn("^" + pattern, ours, name)
        if count:
            return renamed
    return name


def read_config(
    state_dict: Mapping[str, Tensor], *, word_len: int, decoder_heads: int
) -> CRISConfig:
    """Read every size from the tensors' shapes; the name is the published model's, else `cris`.

    Raises:
        CheckpointError: a tensor that tells a size is missing.
    """
    shapes = {our_name(name): tuple(tensor.shape) for name, tensor in state_dict.items()}
    absent: list[str] = []

    def size(name: str, axis: int) -> int:
        if name not in shapes or len(shapes[name]) <= axis:
            absent.append(name)
            return 1
        return shapes[name][axis]

    def count(pattern: str) -> int:
        found = {match[1] for name in shapes if (match := re.match(pattern, name))}
        if not found:
            absent.append(pattern)
        return len(found)

    tower = "text_encoder.tower."
    sizes = {
        "name": "cris",
        "vision_layers": tuple(
            count(rf"image_encoder\.trunk\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)
        ),
        "vision_width": size("image_encoder.trunk.conv3.weight", 0),
        "vision_grid": math.isqrt(size("image_encoder.trunk.attnpool.positional_embedding", 0)),
        "embed_dim": size(tower + "text_projection", 1),
        "word_len": word_len,
        "vocab_size": size(tower + "token_embedding.weight", 0),
        "context_length": size(tower + "positional_embedding", 0),
        "text_width": size(tower + "positional_embedding", 1),
        "text_layers": count(r"text_encoder\.tower\.transformer\.resblocks\.(\d+)\."),
        "neck_channels": tuple(size(f"neck.c{level}.0.weight", 0) for level in (3, 4, 5)),
        "decoder_layers": count(r"decoder\.layers\.(\d+)\."),
        "decoder_heads": decoder_heads,
        "decoder_ffn": size("decoder.layers.0.feed.0.weight", 0),
        "projector_channels": tuple(size(f"projector.stride{s}.0.weight", 0) for s in (8, 4)),
    }
    if absent:
        raise CheckpointError(
            "not a checkpoint of the CRIS authors' code: these tensors, which tell the model's "
            f"sizes, are missing (in our names): {', '.join(absent)}"
        )
    try:
        return _named(CRISConfig.from_dict(sizes))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's shapes make no model: {error}") from error


def _named(config: CRISConfig) -> CRISConfig:
    """The same sizes under the published model's name, where they are its sizes."""
    for published in (R50, R101):
        named = dataclasses.replace(config, name=published.name)
        if named == dataclasses.replace(published, word_len=config.word_len):
            return named
    return config


def convert(state_dict: Mapping[str, Tensor], model: CRIS) -> None:
    """Load a checkpoint of the authors' code into a model of the same sizes.

    Raises:
        CheckpointError: with every tensor that is missing, surplus or of a wrong shape.
    """
    given = {our_name(name): tensor for name, tensor in state_dict.items()}
    wanted = model.state_dict()
    complaints = [f"missing: {name}" for name in wanted if name not in given]
    complaints += [f"surplus: {name}" for name in given if name not in wanted]
    complaints += [
        f"shape: {name} is {tuple(given[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if complaints:
        listed = "\n  ".join(complaints)
        raise CheckpointError(f"the checkpoint does not fit CRIS (in our names):\n  {listed}")
    model.load_state_dict(given)


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of an authors' checkpoint, `{"state_dict": {...}}` or the inner dictionary.

    A pickle, but tensors and plain containers alone are admitted: nothing in the file is run.

    Raises:
        CheckpointError: there is no such file, or it cannot be read so.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint written by torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = refusal(error) or "damaged, or not written by torch.save"
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain containers: {reason}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{path}: expected a dictionary of tensors by their names")
    return content
