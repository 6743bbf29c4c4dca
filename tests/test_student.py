"""A student's photo side, and that ImageNet's weights arrive where they belong."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from cris_edge.letterbox import Letterbox
from cris_edge.photo import as_photo
from tests.scenes import small_model, small_tokenizer, without_storage
from training.errors import CheckpointError
from training.model import CRIS
from training.model.config import STUDENT_M, STUDENT_S, STUDENT_XS, CRISConfig
from training.model.pretrained import efficientnet_lite_weights, load_imagenet

PHOTOS = Path(__file__).parents[1] / "samples" / "photos"


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
