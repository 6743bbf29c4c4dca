"""The photo side of `cris_edge_m`: MobileCLIP2-S0's weights, and branches that become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from timm.models.fastvit import MobileOneBlock, ReparamLargeKernelConv, RepMixer
from torch import Tensor, nn

from export.weights import count_batch_norms, fold_batch_norms
from tests.export_models import seasoned
from training.errors import CheckpointError
from training.model import CRIS
from training.model.config import STUDENT_M
from training.model.pretrained import copy_photo_side, load_clip

NAME = "MobileCLIP2-S0"
# Neither photo side nor text side of open_clip's model depends on this one's text.
LITTLE_TEXT = {"context_length": 8, "vocab_size": 600, "width": 64, "heads": 1, "layers": 1}


def awake(model: nn.Module) -> nn.Module:
    """Blocks that count: FastViT's start with scales of 1e-5."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, scale in model.named_parameters():
            if name.endswith("layer_scale.gamma") or ".layer_scale_" in name:
                scale.copy_(0.3 * torch.randn(scale.shape, generator=generator))
    return model


def mobileclip(**sizes: Any) -> nn.Module:
    """open_clip's own model, every number of its photo side at random."""
    torch.manual_seed(5)
    clip = awake(open_clip.create_model(NAME, pretrained=None, **sizes))
    for name, tensor in clip.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn_like(tensor))
    return clip.eval()


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return mobileclip(text_cfg=LITTLE_TEXT)


@pytest.fixture
def model() -> CRIS:
    """With the whole photo side and little else."""
    little = {"vocab_size": 600, "text_width": 64, "text_layers": 1, "decoder_layers": 1}
    torch.manual_seed(0)
    return CRIS(dataclasses.replace(STUDENT_M, input_size=64, **little)).eval()


def features_of(clip: Any, image: Tensor) -> list[Tensor]:
    """What the stages at strides 8, 16 and 32 give in a pass of open_clip's own."""
    kept: list[Tensor] = []
    hooks = [
        stage.register_forward_hook(lambda *given: kept.append(given[2]))
        for stage in clip.visual.trunk.stages[1:]
    ]
    clip.encode_image(image)
    for hook in hooks:
        hook.remove()
    return kept


# --- weights ---


def test_the_configuration_is_open_clips() -> None:
    theirs = open_clip.get_model_config(NAME)
    assert STUDENT_M.image_encoder == theirs["vision_cfg"]["timm_model_name"]
    assert STUDENT_M.input_size == theirs["vision_cfg"]["image_size"]
    weights = open_clip.get_pretrained_cfg(NAME, "dfndr2b")
    assert (STUDENT_M.mean, STUDENT_M.std) == (weights["mean"], weights["std"])


def test_the_photo_side_computes_in_cris_what_it_computes_in_open_clip(
    clip: nn.Module, model: CRIS
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy_photo_side(clip.state_dict(), model)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, wanted = model.encode_image(image), features_of(clip, image)
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.std() > 0.01
        assert torch.allclose(ours, theirs, atol=1e-5)
    for name, tensor in model.state_dict().items():
        of_photo = name.startswith("image_encoder.")
        assert of_photo or torch.equal(tensor, before[name]), name


def lacking(weights: dict[str, Tensor]) -> None:
    del weights["visual.trunk.stages.2.blocks.3.mlp.fc1.bias"]


def with_more(weights: dict[str, Tensor]) -> None:
    weights["visual.trunk.stages.4.blocks.0.mlp.fc1.bias"] = torch.zeros(1)


def of_another_kind(weights: dict[str, Tensor]) -> None:
    weights["visual.conv1.weight"] = torch.zeros(1)


def misshapen(weights: dict[str, Tensor]) -> None:
    weights["visual.trunk.stem.0.conv_kxk.0.conv.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lacking, r"missing .*stages_2\.blocks\.3\.mlp\.fc1\.bias"),
        (with_more, r"surplus .*stages_4\.blocks\.0\.mlp\.fc1\.bias"),
        (of_another_kind, r"surplus .*visual\.conv1"),
        (misshapen, r"other shapes.*stem_0\.conv_kxk"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    spoil: Callable[[dict[str, Tensor]], None], words: str, clip: nn.Module, model: CRIS
) -> None:
    weights = dict(clip.state_dict())
    spoil(weights)
    with pytest.raises(CheckpointError, match=f"(?s){words}"):
        copy_photo_side(weights, model)


class Opens:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.slow
def test_a_file_of_the_whole_model_is_read(tmp_path: Path, model: CRIS) -> None:
    weights = mobileclip().state_dict()
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "open_clip_model.pt")
    last = model.image_encoder.trunk.get_parameter("stages_3.blocks.1.token_mixer.qkv.weight")
    wanted = weights["visual.trunk.stages.3.blocks.1.token_mixer.qkv.weight"]
    for suffix in ("safetensors", "pt"):
        last.data.zero_()
        load_clip(model, str(tmp_path / f"open_clip_model.{suffix}"))
        assert torch.equal(last, wanted)
    lacking(weights)
    save_file(weights, tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)cannot load MobileCLIP2-S0.*mlp\.fc1\.bias"):
        load_clip(model, str(tmp_path / "damaged.safetensors"))
    marker = tmp_path / "was_run"
    torch.save(Opens(marker), tmp_path / "trap.pt")
    with pytest.raises(CheckpointError, match=r"it asks for .*open, which was not run"):
        load_clip(model, str(tmp_path / "trap.pt"))
    assert not marker.exists()


# --- gradients ---


def test_the_first_convolutions_gradient_is_that_of_another_layout(model: CRIS) -> None:
    """Channels last, as photos come; torch's CPU kernel for a strided 1x1 fails at that."""
    scale = model.image_encoder.trunk.get_submodule("stem_0.conv_scale.conv")
    image = torch.rand(2, 64, 64, 3).permute(0, 3, 1, 2)
    given = torch.randn(2, 64, 32, 32).to(memory_format=torch.channels_last)
    scale(image).backward(given)
    weights = scale.weight.detach().clone().requires_grad_()
    plain = image.contiguous()[:, :, ::2, ::2]
    torch.einsum("bchw,oc->bohw", plain, weights[:, :, 0, 0]).backward(given)
    assert torch.allclose(scale.weight.grad, weights.grad, atol=1e-3)


# --- branches ---


def branches(model: nn.Module) -> int:
    """Modules that compute side by side what one convolution could."""
    kinds = (MobileOneBlock, ReparamLargeKernelConv, RepMixer)
    found = [module for module in model.modules() if isinstance(module, kinds)]
    assert found
    return sum(module.reparam_conv is None for module in found)


def test_branches_become_one_convolution_that_computes_the_same(model: CRIS) -> None:
    seasoned(awake(model))
    fused = fold_batch_norms(model)
    assert branches(model) > 40
    assert branches(fused) == 0
    # Those before the attention of the last stage, which follow no convolution.
    assert count_batch_norms(fused) == 2
    frame = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    tokens = torch.tensor([[598, 7, 300, 599] + 13 * [0], [598, 5, 4, 3, 599] + 12 * [0]])
    with torch.no_grad():
        wanted, found = model(frame, tokens), fused(frame, tokens)
        assert wanted.std() > 0.01
        assert torch.allclose(found, wanted, atol=1e-4)
        # Of the photo, since masks of random weights depend on it by little.
        image = model.normalise(frame)
        for ours, theirs in zip(fused.encode_image(image), model.encode_image(image), strict=True):
            assert theirs.std() > 0.01
            assert torch.allclose(ours, theirs, atol=1e-4)
