"""What models cost, and that weights from elsewhere arrive where they belong."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from cris_edge.letterbox import Letterbox
from cris_edge.photo import as_photo
from tests.scenes import small_model, small_tokenizer
from training.errors import CheckpointError
from training.model import CRIS
from training.model.config import MODELS, STUDENT_M, STUDENT_S, STUDENT_XS, CRISConfig
from training.model.cost import PARTS, STAGES, main, multiply_adds, parameters, table
from training.model.pretrained import (
    copy_towers,
    efficientnet_lite_weights,
    load_clip,
    load_imagenet,
)

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "samples" / "photos"
SHIPPED = ROOT / "training" / "checkpoints" / "cris_edge_s.safetensors"


def without_storage(name: str) -> CRIS:
    with torch.device("meta"):
        return CRIS(MODELS[name])


# --- cost ---


@pytest.fixture(scope="module")
def student_table() -> str:
    return table(STUDENT_S)


def figures_of(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """Millions of parameters of each part, billions of multiply-adds of each stage."""
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines()[2:]]
    (split,) = (place for place, (name, _) in enumerate(rows) if name.startswith("once a"))
    held, costs = rows[:split], rows[split + 1 :]
    return {k: float(v) for k, v in held}, {k: float(v) for k, v in costs}


@pytest.mark.parametrize(
    ("config", "most_millions", "most_billions"),
    [(STUDENT_XS, 4.0, 0.6), (STUDENT_S, 10, 1.5), (STUDENT_M, 25, 4)],
    ids=lambda value: getattr(value, "name", None),
)
def test_students_keep_within_their_bounds(
    config: CRISConfig, most_millions: float, most_billions: float
) -> None:
    millions, billions = (figures["all"] for figures in figures_of(table(config)))
    assert millions < most_millions
    assert billions < most_billions
    assert millions == pytest.approx(parameters(without_storage(config.name)) / 1e6, abs=0.005)


def test_the_table_adds_up(student_table: str) -> None:
    assert student_table.splitlines()[0] == "cris_edge_s, 256 px"
    for figures, names in zip(figures_of(student_table), (PARTS, STAGES), strict=True):
        assert tuple(figures) == (*names, "all")
        total = sum(figures[name] for name in names)
        assert figures["all"] == pytest.approx(total, abs=0.03)


def test_the_command_prints_the_models_named(
    student_table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cris_edge_s"]) == 0
    assert capsys.readouterr().out == student_table + "\n"
    with pytest.raises(SystemExit) as ended:
        main(["cris_edge_xxl"])
    assert ended.value.code == 2
    assert "cris_edge_s" in capsys.readouterr().err
    assert main(["none.safetensors"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_command_counts_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHIPPED)]) == 0
    shipped = capsys.readouterr().out
    assert shipped.startswith("cris_edge_s, 320 px")
    millions, billions = (figures["all"] for figures in figures_of(shipped.strip()))
    assert millions < 10
    assert billions < 2.1


@pytest.mark.parametrize(("name", "count"), [("cris_r50", 146_849_122), ("cris_r101", 161_251_682)])
def test_full_models_have_the_published_number_of_parameters(name: str, count: int) -> None:
    model = without_storage(name)
    assert parameters(model) == count
    assert sum(parameters(model.get_submodule(part)) for part in PARTS) == count


def test_multiply_adds_are_those_worked_out_by_hand() -> None:
    costs = multiply_adds(MODELS["cris_r50"])
    layer = (
        4 * 512**2 * 676  # queries, keys, values, result of the pixels among each other
        + 2 * 676**2 * 512  # their scores and sums
        + 2 * 512**2 * 676  # queries and result of the pixels' attention to words
        + 2 * 676 * 17 * 512
        + 2 * 512 * 2048 * 676  # feed-forward
    )
    projector = (
        512 * 512 * 9 * 52**2  # 3x3 at stride 8
        + 512 * 256 * 9 * 104**2  # 3x3 at stride 4
        + 256 * 9 * 104**2  # each tap of the sentence's kernel, the 1x1 folded in
        + 9 * 9 * 104**2  # the taps added up
    )
    neck = (
        1024 * 512 * 13**2  # the gated C5's share of what it is merged into with C4
        + 512 * 512 * 26**2  # that of C4 and C5 in what they are merged into with C3
        + 1024 * 512 * 9 * 13**2 + 2 * 512 * 512 * 9 * 26**2  # three 3x3
        + 2 * 512 * 512 * 26**2 + 512 * 512 * 13**2  # merged
        + (514 + 512) * 512 * 9 * 26**2  # with coordinates, and the last
    )  # fmt: skip
    assert costs["pair"] == 3 * layer + projector + neck
    assert costs["photo"] > 0.3 * sum(costs.values())
    assert sum(costs.values()) < 66e9


# --- the photo side ---


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("cris_edge_xs", (40, 112, 192)),
        ("cris_edge_s", (48, 120, 208)),
        ("cris_edge_m", (128, 256, 512)),
    ],
)
def test_features_have_strides_8_16_and_32(name: str, channels: tuple[int, ...]) -> None:
    model = without_storage(name)
    assert model.image_encoder.channels == channels
    features = model.encode_image(torch.zeros(1, 3, 96, 64, device="meta"))
    for feature, count, stride in zip(features, channels, (8, 16, 32), strict=True):
        assert feature.shape == (1, count, 96 // stride, 64 // stride)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_blocks": 5}, "expected 0, or 6 to 7, .* got 5"),
        ({"image_blocks": 8}, "expected 0, or 6 to 7, .* got 8"),
        ({"image_blocks": -1}, "image_blocks must be a whole number from 0 up, not -1"),
        ({"image_encoder": "clip_resnet"}, "image_blocks must be 0, or .* not 6"),
        ({"image_encoder": "resnet18"}, "resnet18 has no stages of blocks; expected 0"),
        ({"image_encoder": "vit_tiny_patch16_224"}, r"expected features at strides \[8, 16, 32\]"),
    ],
)
def test_cuts_that_leave_no_three_strides_are_refused(sizes: dict[str, Any], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        CRIS(dataclasses.replace(STUDENT_XS, **sizes))


def test_sizes_that_were_written_before_there_were_cuts_still_read() -> None:
    values = json.loads(STUDENT_M.to_json())
    assert values.pop("image_blocks") == 0
    assert CRISConfig.from_json(json.dumps(values)) == STUDENT_M


# --- ImageNet ---


@functools.cache
def classifier_of(number: int) -> nn.Module:
    network = timm.create_model(f"tf_efficientnet_lite{number}")
    network.load_state_dict(efficientnet_lite_weights(number, network))
    return network.eval()


def best_guesses(network: nn.Module, photo: str) -> list[str]:
    """Names of ImageNet's five likeliest classes, the first of each one's synonyms."""
    frame = Letterbox(224, STUDENT_S.mean).frame(as_photo(PHOTOS / photo))
    image = CRIS(STUDENT_S).normalise(torch.from_numpy(frame[None]))
    with torch.no_grad():
        indices = network(image)[0].topk(5).indices.tolist()
    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in indices]


@pytest.mark.parametrize(
    ("number", "photo", "names", "places"),
    [
        (0, "000000000599.jpg", {"tabby", "tiger cat"}, 2),
        (0, "000000000785.jpg", {"ski"}, 1),
        (0, "000000006012.jpg", {"banana"}, 1),
        (0, "000000516008.jpg", {"laptop", "notebook"}, 2),
        (0, "000000000127.jpg", {"espresso", "cup", "plate"}, 5),
        (2, "000000000599.jpg", {"tabby", "tiger cat"}, 2),
        (2, "000000000785.jpg", {"ski"}, 1),
        (2, "000000006012.jpg", {"banana"}, 1),
        (2, "000000516008.jpg", {"notebook"}, 3),
        (2, "000000000127.jpg", {"espresso"}, 5),
    ],
)
def test_imagenets_weights_recognise_what_photos_show(
    number: int, photo: str, names: set[str], places: int
) -> None:
    assert names <= set(best_guesses(classifier_of(number), photo)[:places])


@pytest.mark.parametrize(("config", "number"), [(STUDENT_XS, 0), (STUDENT_S, 2)], ids=["xs", "s"])
def test_a_students_trunk_gets_just_the_weights_of_what_it_keeps(
    config: CRISConfig, number: int
) -> None:
    torch.manual_seed(0)
    model, classifier = CRIS(config).eval(), classifier_of(number)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_imagenet(model)
    weights = classifier.state_dict()
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("image_encoder.trunk.")
        assert torch.equal(tensor, before[name] if own == name else weights[own]), name
    kept = model.image_encoder.trunk.state_dict()
    skipped = {".".join(name.split(".")[:2]) for name in weights.keys() - kept.keys()}
    assert {name for name in skipped if name.startswith("blocks")} == {"blocks.6"}
    assert {name.split(".")[0] for name in skipped} == {"blocks", "conv_head", "bn2", "classifier"}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = classifier.bn1(classifier.conv_stem(image))
        for feature, stages in zip(model.encode_image(image), (3, 5, 6), strict=True):
            assert torch.allclose(feature, classifier.blocks[:stages](stem), atol=1e-5)


def test_a_whole_trunk_gets_all_weights() -> None:
    model = CRIS(
        dataclasses.replace(STUDENT_XS, image_blocks=0, input_size=64, embed_dim=64, text_width=64)
    ).eval()
    load_imagenet(model)
    classifier = classifier_of(0)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        c3, c4, c5 = model.encode_image(image)
        head = classifier.bn2(classifier.conv_head(c5))
        assert torch.allclose(classifier.forward_head(head), classifier(image), atol=1e-4)
    assert [f.shape[1:] for f in (c3, c4, c5)] == [(40, 8, 8), (112, 4, 4), (320, 2, 2)]


def test_imagenets_weights_for_other_networks_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"at hand for tf_efficientnet_lite0, .*not clip_resnet"
    ):
        load_imagenet(small_model(small_tokenizer()))
    with pytest.raises(CheckpointError, match="not the tensors of EfficientNet-Lite0"):
        efficientnet_lite_weights(0, timm.create_model("tf_efficientnet_lite0", num_classes=7))


# --- CLIP ---


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
