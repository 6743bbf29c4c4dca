"""The model computes what the authors' code computes, and reads their checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.official import made_up
from training.errors import CheckpointError
from training.losses import cross_entropy
from training.model import CRIS
from training.model.official import read_official

DATA = Path(__file__).parent / "data"


def small(name: str) -> tuple[dict, dict[str, torch.Tensor], dict]:
    figures = dict(np.load(DATA / f"{name}.npz"))
    config = json.loads(str(figures["config"]))
    shapes = dict(json.loads(str(figures["keys"])))
    return config, {k: made_up(k, s, config["seed"]) for k, s in shapes.items()}, figures


def load(config: dict, state: dict[str, torch.Tensor]) -> CRIS:
    return CRIS.from_official(
        state, word_len=config["word_len"], decoder_heads=config["decoder_heads"]
    )


@pytest.mark.parametrize("name", ["small_square", "small_rect"])
def test_every_stage_agrees_with_the_authors(name: str) -> None:
    config, state, figures = small(name)
    model = load(config, state)
    with torch.no_grad():
        stages = model.stages(torch.tensor(figures["image"]), torch.tensor(figures["tokens"]))
        # What is taught is every fourth pixel of the mask.
        logits = stages["logits"][:, 0]
        target = torch.tensor(figures["mask"])[:, 0, ::4, ::4].float()
        loss = cross_entropy(logits, target, torch.ones_like(target)).mean()
    # What a model is taught by beside these, the authors' code does not name.
    published = stages.keys() - {"padding", "values"}
    assert len(published) == 8
    for stage in published:
        result = stages[stage]
        np.testing.assert_allclose(result.numpy(), figures[stage], atol=1e-4, rtol=0, err_msg=stage)
    assert abs(float(loss) - float(figures["loss"])) < 1e-4


def test_names_may_carry_the_prefix_of_data_parallel_training() -> None:
    config, state, figures = small("small_square")
    model = load(config, {"module." + name: tensor for name, tensor in state.items()})
    with torch.no_grad():
        image, tokens = torch.tensor(figures["image"]), torch.tensor(figures["tokens"])
        logits = model.stages(image, tokens)["logits"]
    np.testing.assert_allclose(logits.numpy(), figures["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "parameters"), [("official_r50", 146_849_122), ("official_r101", 161_251_682)]
)
def test_full_checkpoints_fit_whole(name: str, parameters: int) -> None:
    shapes = dict(json.loads((DATA / f"{name}_keys.json").read_text()))
    with torch.device("meta"):
        # Shapes without storage: 600 MB of made-up weights would prove no more.
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        model = CRIS.from_official(state, word_len=17, decoder_heads=8)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == len(shapes)
    assert math.prod(model.text_encoder.tower.token_embedding.weight.shape) == 49408 * 512


def test_what_is_missing_surplus_or_misshapen_is_listed() -> None:
    config, state, _ = small("small_square")
    del state["neck.aggr.1.bias"], state["decoder.norm.weight"]
    state["neck.stranger"] = torch.zeros(3)
    state["proj.txt.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load(config, state)
    for words in (
        "missing: neck.aggregate.1.bias",
        "missing: decoder.norm.weight",
        "surplus: neck.stranger",
        "projector.kernel.bias is (7,)",
    ):
        assert words in str(caught.value)


def test_something_else_altogether_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of the CRIS authors"):
        CRIS.from_official({"conv.weight": torch.zeros(3)}, word_len=17, decoder_heads=8)


def test_authors_file_is_read_without_running_what_it_holds(tmp_path: Path) -> None:
    config, state, figures = small("small_square")
    path = tmp_path / "best.pth"
    torch.save({"epoch": 3, "state_dict": {"module." + k: v for k, v in state.items()}}, path)
    model = load(config, read_official(str(path)))
    with torch.no_grad():
        stages = model.stages(torch.tensor(figures["image"]), torch.tensor(figures["tokens"]))
    np.testing.assert_allclose(stages["neck"].numpy(), figures["neck"], atol=1e-4, rtol=0)

    torch.save({"state_dict": Path("anything but a tensor")}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors"):
        read_official(str(path))
