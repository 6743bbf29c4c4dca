"""A model in parts: once a photo, once a phrase, once a pair; and the parts are the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.graphs import split
from tests.scenes import sensitive_model, small_model, small_tokenizer
from training.model import CRIS
from training.model.config import STUDENT_S

SIZE = 64


def student() -> CRIS:
    """The student, small, with statistics of batch norm that are not those of a new layer."""
    torch.manual_seed(1)
    config = dataclasses.replace(
        STUDENT_S, input_size=SIZE, vocab_size=small_tokenizer().vocab_size
    )
    model = CRIS(config)
    with torch.no_grad():
        model.train()(*inputs(model, photos=6, each=1))
    return model.eval()


def inputs(model: CRIS, photos: int, each: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (photos, SIZE, SIZE, 3), dtype=np.uint8)
    texts = [f"the {a} {b}" for a in ("red", "left", "dog") for b in ("man", "car", "hat")]
    tokens = [small_tokenizer().encode(t, model.config.word_len) for t in texts[: photos * each]]
    return torch.from_numpy(frames), torch.from_numpy(np.stack(tokens))


@pytest.fixture(scope="module", params=["published", "student"])
def model(request: pytest.FixtureRequest) -> CRIS:
    return student() if request.param == "student" else sensitive_model(small_tokenizer())


def test_the_parts_are_the_whole(model: CRIS) -> None:
    frames, tokens = inputs(model, photos=2, each=3)
    with torch.no_grad():
        whole = model(frames, tokens)
        graphs = {name: source.module for name, source in split(model).items()}
        parts = [
            graphs["pair"](*graphs["photo"](frame[None]), *graphs["phrase"](said))
            for frame, said in zip(frames, tokens.chunk(2), strict=True)
        ]
    assert whole.shape == (6, 1, SIZE // 4, SIZE // 4)
    assert whole.std() > 0.01
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)


def plainly(model: CRIS, features: Tensor, sentence: Tensor, c3: Tensor) -> Tensor:
    """The projector as published: a 1x1 convolution, then one with each phrase's own kernel."""
    projector = model.projector
    kernel, bias, *detail = *projector.read(sentence), *projector.look(c3)
    del kernel, bias
    up = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
    up = torch.cat([up, *detail], dim=1)
    up = F.interpolate(
        projector.stride8(up), scale_factor=2.0, mode="bilinear", align_corners=False
    )
    pixels = projector.pixels(projector.stride4(up))
    weights = projector.kernel(sentence)
    logits = [
        F.conv2d(p[None], w[:-1].reshape(1, -1, 3, 3), w[-1:], padding=1)
        for p, w in zip(pixels, weights, strict=True)
    ]
    return torch.cat(logits)


def test_the_folded_kernel_is_right_up_to_the_border(model: CRIS) -> None:
    generator = torch.Generator().manual_seed(2)
    width, side = model.config.decoder_width, SIZE // 16
    features = torch.randn(3, width, side, side, generator=generator)
    sentence = torch.randn(3, model.config.embed_dim, generator=generator)
    c3 = torch.randn(3, model.image_encoder.channels[0], 2 * side, 2 * side, generator=generator)
    with torch.no_grad():
        # A bias that would show where padding was not left out.
        model.projector.pixels.bias.add_(3)
        found = model.projector(
            features, *model.projector.read(sentence), *model.projector.look(c3)
        )
        wanted = plainly(model, features, sentence, c3)
        model.projector.pixels.bias.sub_(3)
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_phrase_alone_is_what_it_is_in_a_batch(model: CRIS) -> None:
    _, tokens = inputs(model, photos=1, each=4)
    with torch.no_grad():
        together = model.phrase(tokens)
        alone = [model.phrase(one[None]) for one in tokens]
    for place, part in enumerate(together):
        rows = torch.cat([one[place] for one in alone])
        torch.testing.assert_close(part, rows, atol=1e-5, rtol=0)


def test_small_models_without_detail_keep_three_tensors_of_a_photo() -> None:
    assert small_model(small_tokenizer()).photo_names == ("p3", "p4", "p5")
    assert student().photo_names == ("p3", "p4", "p5", "detail")
