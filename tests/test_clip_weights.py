"""CLIP's weights arrive where they belong, and others are refused."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from tests.scenes import small_model, small_tokenizer, without_storage
from training.errors import CheckpointError
from training.model import CRIS
from training.model.pretrained import copy_towers, load_clip


@pytest.fixture(scope="module")
def model() -> CRIS:
    """Named as what CLIP's weights fit, and small."""
    small = small_model(small_tokenizer())
    return CRIS(dataclasses.replace(small.config, name="cris_r50")).eval()


def small_clip(config: Any, quick_gelu: bool = True) -> open_clip.CLIP:
    """open_clip's own model of the same sizes, every number of it at random."""
    torch.manual_seed(5)
    clip = open_clip.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg={
            "layers": list(config.vision_layers),
            "width": config.vision_width,
            "image_size": 32 * config.vision_grid,
        },
        text_cfg={
            "context_length": config.context_length,
            "vocab_size": config.vocab_size,
            "width": config.text_width,
            "heads": config.text_width // 64,
            "layers": config.text_layers,
        },
        quick_gelu=quick_gelu,
    )
    for name, tensor in clip.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn_like(tensor))
    return clip.eval()


def trunk_c4(clip: open_clip.CLIP, image: Tensor) -> Tensor:
    """What the third stage of open_clip's visual trunk gives in a pass of its own."""
    kept: list[Tensor] = []
    hook = clip.visual.layer3.register_forward_hook(lambda *given: kept.append(given[2]))
    clip.encode_image(image)
    hook.remove()
    return kept[0]


def tokens_of(model: CRIS) -> Tensor:
    end = model.config.vocab_size - 1
    return torch.tensor([[end - 1, 7, 300, end, 0, 0, 0, 0], [end - 1, 5, 4, 3, 2, 1, 9, end]])


def test_clips_towers_compute_in_cris_what_they_compute_in_open_clip(model: CRIS) -> None:
    clip, tokens, image = small_clip(model.config), tokens_of(model), torch.randn(2, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        assert not torch.allclose(model.encode_text(tokens)[1], clip.encode_text(tokens), atol=0.1)
        copy_towers(clip.state_dict(), model)
        sentence, (_, c4, _) = model.encode_text(tokens)[1], model.encode_image(image)
        assert torch.allclose(sentence, clip.encode_text(tokens), atol=1e-5)
        assert torch.allclose(c4, trunk_c4(clip, image), atol=1e-5)
        # The activation is CLIP's own: the usual one gives other figures.
        plain = small_clip(model.config, quick_gelu=False)
        assert not torch.allclose(sentence, plain.encode_text(tokens), atol=1e-3)
    pool = model.image_encoder.trunk.attnpool
    for name in ("positional_embedding", "q_proj.weight", "c_proj.bias"):
        assert torch.equal(pool.state_dict()[name], clip.visual.attnpool.state_dict()[name])
    for name, tensor in model.state_dict().items():
        if ".connect." in name or not name.startswith(("image_encoder.", "text_encoder.")):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(
    ("name", "theirs"), [("cris_r50", "RN50-quickgelu"), ("cris_r101", "RN101-quickgelu")]
)
def test_the_full_towers_fit_tensor_by_tensor(name: str, theirs: str) -> None:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(theirs))
    copy_towers(clip.state_dict(), without_storage(name))
    other = {"cris_r50": "cris_r101", "cris_r101": "cris_r50"}[name]
    with pytest.raises(CheckpointError, match="other shapes"):
        copy_towers(clip.state_dict(), without_storage(other))


def lacking(weights: dict[str, Tensor]) -> None:
    del weights["transformer.resblocks.0.mlp.c_fc.bias"]


def with_more(weights: dict[str, Tensor]) -> None:
    weights["visual.layer5.0.conv1.weight"] = torch.zeros(1)


def misshapen(weights: dict[str, Tensor]) -> None:
    weights["visual.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lacking, "missing .*mlp.c_fc.bias"),
        (with_more, "surplus .*layer5.0.conv1"),
        (misshapen, "other shapes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    spoil: Callable[[dict[str, Tensor]], None], words: str, model: CRIS
) -> None:
    weights = dict(small_clip(model.config).state_dict())
    spoil(weights)
    with pytest.raises(CheckpointError, match=words):
        copy_towers(weights, model)


def test_clips_weights_are_asked_for_by_the_name_with_their_activation(
    model: CRIS, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, asked = small_clip(model.config), []

    def create_model(name: str, pretrained: str) -> open_clip.CLIP:
        asked.append((name, pretrained))
        return clip

    monkeypatch.setattr(open_clip, "create_model", create_model)
    load_clip(model, "weights.pt")
    assert asked == [("RN50-quickgelu", "weights.pt")]
    with torch.no_grad():
        sentence = model.encode_text(tokens_of(model))[1]
        assert torch.allclose(sentence, clip.encode_text(tokens_of(model)), atol=1e-5)


def test_without_clips_weights_the_log_says_so(
    model: CRIS, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        load_clip(model, None)
    assert "cris_r50: no CLIP weights given, both towers start at random" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_students_have_no_use_for_clips_weights() -> None:
    with pytest.raises(CheckpointError, match=r"fit .*cris_r101.*cris_r50.*, not 'cris_edge_s'"):
        load_clip(without_storage("cris_edge_s"), "openai")


class Opens:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_files_that_hold_no_weights_of_clip_are_refused(model: CRIS, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"open_clip cannot load RN50-quickgelu from .*none"):
        load_clip(model, str(tmp_path / "none.pt"))
    marker, trap = tmp_path / "was_run", tmp_path / "trap.pt"
    torch.save(Opens(marker), trap)
    with pytest.raises(CheckpointError, match=r"it asks for .*open, which was not run") as caught:
        load_clip(model, str(trap))
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
