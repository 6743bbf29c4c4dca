"""Fine-tuning for INT8: what is rounded is what INT8 rounds, and weights learn to bear it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from quantize import finetune
from quantize.calibration import quantise
from quantize.candidate import Candidates
from quantize.finetune import Finetuning, open_float
from quantize.graphs import head_layers, read_float
from quantize.grids import HALF, WHOLE, round_activation, round_weight
from quantize.recipe import DistillRecipe
from quantize.rounding import Rounding
from quantize.samples import Feeds, choose
from quantize.teachers import BundleTeacher, CheckpointTeacher
from tests.export_models import PARTS, make_model
from tests.scenes import photo, sensitive_model, small_tokenizer, write_bundle
from tests.training_run import (
    LOSSES,
    RECIPE,
    SIZES,
    contents,
    epochs,
    interrupted,
    last_line,
    log,
    photos_recipe,
    same_run,
    states,
    steps,
    torchrun,
    write_recipe,
)
from training import checkpoint
from training.data.batches import build_data
from training.data.scene_phrases import vocabulary
from training.data.vocabulary import student_tokenizer
from training.model import CRIS
from training.model.config import STUDENT_M, THRESHOLD
from training.predictor import letterbox_of, torch_segmenter
from training.recipe import read_recipe
from training.selection import SceneData, select
from training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CHANGES: dict[str, Any] = {
    "kind": "scenes",
    "data": str(ROOT / "samples" / "photos"),
    "scenes": 6,
    "naming": 0.0,
    "epochs": 2,
    "learning_rate": 1e-4,
    "frozen_statistics": False,
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("training.data.batches.JUDGED_SCENES", 2)
    return write_recipe(tmp_path / "recipe.yaml", RECIPE, **CHANGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the recipe's sizes whose masks depend on photo and phrase."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = read_recipe(write_recipe(folder / "recipe.yaml", RECIPE)).config()
    tokenizer = student_tokenizer(vocabulary(), first=0)
    torch.manual_seed(0)
    model = CRIS(dataclasses.replace(sizes, vocab_size=tokenizer.vocab_size))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None
    frames, _ = some_frames(model), model.train()
    texts = ["red circle", "the small blue square", "left star", "green ring"]
    ids = np.stack([tokenizer.encode(text, sizes.word_len) for text in texts])
    with torch.no_grad():
        model(frames, torch.from_numpy(ids))
    checkpoint.save(folder / "trained.safetensors", model.eval(), tokenizer, {}, threshold=0.3)
    return folder / "trained.safetensors"


def some_frames(model: CRIS, photos: int = 4) -> Tensor:
    box = letterbox_of(model.config)
    return torch.from_numpy(np.stack([box.frame(photo(seed)) for seed in range(photos)]))


def run(recipe: Path, out: Path, trained: Path, *more: str) -> int:
    with patch.object(torch.cuda, "is_available", return_value=False):
        return finetune.main(
            ["--checkpoint", str(trained), "--config", str(recipe), "--out", str(out), *more]
        )


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return last_line(capsys.readouterr().err)


def test_branches_that_export_merges_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab_size": 600, "text_width": 64, "text_layers": 1, "decoder_layers": 1}
    model = CRIS(dataclasses.replace(STUDENT_M, input_size=64, **sizes)).eval()
    checkpoint.save(tmp_path / "m.safetensors", model, small_tokenizer(), {})
    path = write_recipe(
        tmp_path / "m.yaml",
        RECIPE,
        **CHANGES,
        model="cris_edge_m",
        sizes=sizes | {"input_size": 64},
    )
    line = refused(capsys, path, tmp_path / "out", tmp_path / "m.safetensors")
    assert "its photo side has branches side by side, which export merges" in line
    assert not (tmp_path / "out").exists()


# --- the run ---


def test_what_comes_out_is_an_ordinary_checkpoint(
    recipe: Path, trained: Path, tmp_path: Path
) -> None:
    before = trained.read_bytes()
    assert run(recipe, tmp_path / "out", trained) == 0
    losses = log(tmp_path / "out")[0]["losses"]
    assert losses.keys() == LOSSES | {"soft_masks", "relations", "features"}
    assert all(value > 0 for value in losses.values())
    tensors, header = contents(tmp_path / "out" / "best.safetensors")
    originals, heading = contents(trained)
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in originals.items()}
    same = ("config", "tokenizer", "threshold")
    assert [header[name] for name in same] == [heading[name] for name in same]
    assert json.loads(header["accuracy"])["of"] == "the model rounded as INT8"
    moved = [n for n in tensors if not torch.equal(tensors[n], originals[n])]
    assert moved
    # Batch norms keep the statistics that are folded into the weights.
    assert not [name for name in moved if "running" in name or "tracked" in name]
    assert trained.read_bytes() == before
    kept = checkpoint.load(tmp_path / "out" / "best.safetensors")
    write_bundle(tmp_path / "bundle", kept.model, kept.tokenizer, kept.threshold)
    exported = Segmenter(tmp_path / "bundle", engine="onnxruntime", threads=1)
    ours = torch_segmenter(kept.model, kept.tokenizer).predict(photo(), "red circle")
    theirs = exported.predict(photo(), "red circle")
    np.testing.assert_allclose(theirs.probability, ours.probability, atol=1e-4)


def test_a_run_that_was_stopped_goes_on_as_if_it_were_not(
    recipe: Path, trained: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path / "whole", trained) == 0
    with interrupted(4):
        run(recipe, tmp_path / "out", trained)
    assert run(recipe, tmp_path / "out", trained, "--resume") == 0
    same_run(tmp_path / "out", tmp_path / "whole")


def test_a_run_without_a_moving_average(recipe: Path, trained: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "out", trained, "ema=0", "epochs=1") == 0
    assert epochs(tmp_path / "out")[0]["val"]["scenes"]["mIoU"] >= 0
    state = next(iter((tmp_path / "out").glob("state-*.safetensors")))
    tensors, _ = contents(state)
    assert tensors["helpers.rounding.batches"] == 4
    assert (tensors["helpers.rounding.ranges"][:, 1] > 0).float().mean() > 0.9


@pytest.mark.slow
def test_processes_round_by_the_same_ranges(trained: Path, tmp_path: Path) -> None:
    # Without losses that halves of a batch have another part of.
    recipe = photos_recipe(tmp_path, epochs=1, learning_rate=1e-5, relations=0.0, features=0.0)
    assert run(recipe, tmp_path / "one", trained) == 0
    command = ["--checkpoint", str(trained), "--config", str(recipe), "--out"]
    process = torchrun("-m", "quantize.finetune", *command, str(tmp_path / "two"))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    alone, together = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert together[1] == pytest.approx(alone[1], rel=1e-3)
    # What is a last digit's difference before rounding is a whole level's after it.
    assert together[2] == pytest.approx(alone[2], rel=0.05)
    ranges = [
        contents(states(tmp_path / name)[-1])[0]["helpers.rounding.ranges"]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(*ranges, rtol=0.02, atol=0.05)


# --- what is refused ---


def test_without_a_checkpoint_nothing_begins(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "no such file" in refused(capsys, recipe, out, tmp_path / "none.safetensors")
    assert not out.exists()


def test_a_checkpoint_of_other_sizes_is_refused(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "sizes=" + str(SIZES | {"input_size": 96, "text_layers": 2}).replace("'", "")
    line = refused(capsys, recipe, tmp_path / "out", trained, other)
    assert "input_size is 64 and not 96, text_layers is 1 and not 2" in line


def test_the_recipe_is_of_the_sizes_of_the_model_that_ships() -> None:
    own = f"start_from={ROOT / 'training' / 'checkpoints' / 'cris_edge_s.safetensors'}"
    recipe = read_recipe(ROOT / "training" / "configs" / "int8_s.yaml", [own], DistillRecipe)
    teacher, _ = open_float(recipe, torch.device("cpu"))
    assert teacher.model.config.input_size == recipe.config().input_size


def test_weights_that_are_no_numbers_are_refused(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint.load(trained)
    with torch.no_grad():
        kept.model.neck.c5[0].weight[0] = torch.nan
    checkpoint.save(tmp_path / "nan.safetensors", kept.model, kept.tokenizer, {})
    line = refused(capsys, recipe, tmp_path / "out", tmp_path / "nan.safetensors")
    assert "neck.c5.0.weight holds what is no number" in line


def test_a_run_that_breaks_down_says_so(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["learning_rate=1.0e+30", "warmup_steps=0", "clip_norm=0"]
    assert "the loss is nan" in refused(capsys, recipe, tmp_path / "out", trained, *more)


@pytest.mark.parametrize("override", ["recompute=true", "compile=true", "texts=phrases.txt"])
def test_what_would_not_be_rounded_is_refused(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    line = refused(capsys, recipe, tmp_path / "out", trained, override)
    name, _, value = override.partition("=")
    assert f"give {name}={'false' if value == 'true' else 'null'}" in line


# --- what is rounded ---


@pytest.mark.parametrize("parts", PARTS)
def test_a_model_is_rounded_in_all_that_it_is_asked(parts: str) -> None:
    tokenizer = small_tokenizer()
    model = make_model(parts, tokenizer)
    plain, names = copy.deepcopy(model), list(model.state_dict())
    rounding = Rounding(model)
    frames, length = some_frames(model, 2), model.config.word_len
    ids = torch.from_numpy(np.stack([tokenizer.encode(t, length) for t in ("red car", "a dog")]))
    rounding.begin(lambda: model(frames, ids))
    with torch.inference_mode():
        rounded, there = model(frames, ids), model.stages(model.normalise(frames), ids)
        expected = plain(frames, ids)
        assert torch.equal(rounded, there["logits"])
        assert torch.equal(copy.deepcopy(model)(frames, ids), rounded)
    apart = (rounded - expected).abs().max()
    assert 0 < apart < 0.2 * expected.abs().max()
    assert list(model.state_dict()) == names
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_weights_learn_to_bear_it(recipe: Path, trained: Path) -> None:
    read = read_recipe(recipe, [f"start_from={trained}", f"teacher={trained}"], DistillRecipe)
    teacher, _ = open_float(read, torch.device("cpu"))
    data = build_data(read)
    data.readers["teacher"] = (teacher.tokenizer, teacher.word_len)
    trainer = Trainer(
        read, data, torch.device("cpu"), teach=lambda model, _: Finetuning(model, read, teacher)
    )
    batch = next(iter(data.batches(read)))
    objective, model = trainer.objective.train(), trainer.model
    taught = teacher.show(batch["image"], batch["teacher_tokens"])["logits"]

    def apart() -> float:
        with torch.no_grad():
            mine = model.stages(model.normalise(batch["image"]), batch["tokens"])["logits"]
        return float((mine - taught).square().mean().sqrt())

    optimiser = torch.optim.Adam(model.parameters(), 1e-4)
    found = []
    for _ in range(30):
        lesson = objective(batch)["soft_masks"]
        found.append(apart())
        optimiser.zero_grad()
        lesson.backward()
        optimiser.step()
    assert found[0] > 0.01
    assert apart() < 0.8 * found[0]


@pytest.mark.slow
def test_a_rounded_model_errs_as_the_int8_bundle_does(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    model = sensitive_model(tokenizer)
    source = write_bundle(tmp_path / "float", model, tokenizer, THRESHOLD)
    segmenter = Segmenter(source.folder, engine="onnxruntime", threads=1)
    data = SceneData(2)
    judged = select(data, (), limit=None)
    samples = choose(data, judged, 6)
    int8 = BundleTeacher(int8_of(source, Feeds(segmenter, samples), tmp_path / "int8"))
    plain = CheckpointTeacher(copy.deepcopy(model), tokenizer)
    rounding = Rounding(model)

    def feed(sample: Any) -> tuple[Tensor, Tensor]:
        frame = segmenter.letterbox.frame(sample.photo.read())
        ids = tokenizer.encode(sample.text, model.config.word_len)
        return torch.from_numpy(frame)[None], torch.from_numpy(ids)[None]

    first, *others = map(feed, samples)
    rounding.begin(lambda: model(*first))
    for frames, ids in others:
        model(frames, ids)
        rounding.settle()
    ours, theirs = [], []
    for sample in judged[0].samples[:8]:
        frames, ids = feed(sample)
        expected = plain.show(frames, ids)["logits"]
        with torch.inference_mode():
            ours.append(model(frames, ids) - expected)
        theirs.append(int8.show(frames, ids)["logits"] - expected)
    errors = torch.stack([torch.cat(ours).flatten(), torch.cat(theirs).flatten()])
    ratio = errors[0].std() / errors[1].std()
    assert 0.6 < ratio < 1.6
    assert torch.corrcoef(errors)[0, 1] > 0.5


def int8_of(source: Bundle, feeds: Feeds, folder: Path) -> Segmenter:
    """All layers in INT8 but the mask head's last ones."""
    floats = read_float(source)
    quantised = {name: quantise(name, graph, feeds) for name, graph in floats.items()}
    candidates = Candidates(source, "onnx", floats, quantised)
    head = head_layers(floats["pair"], candidates.layers)
    kept = [layer for layer in candidates.layers if layer not in head]
    return Segmenter(candidates.write(kept, folder).folder, engine="onnxruntime", threads=1)


# --- the grids ---


@pytest.mark.parametrize(("steps", "most"), [(HALF, 64), (WHOLE, 127)])
def test_weights_are_whole_steps_of_their_channel(steps: float, most: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([1.0, 10, 0.1, 1, 0])[:, None, None, None]
    rounded = round_weight(weight, 0, steps)
    step = weight.abs().amax((1, 2, 3)) / steps
    assert not rounded[4].any()
    whole = (rounded / step[:, None, None, None])[:4]
    torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    assert whole.abs().max() == pytest.approx(most)
    apart = (rounded - weight).abs().amax((1, 2, 3))
    assert (apart <= 0.5001 * step).all()


def test_a_folded_batch_norm_changes_nothing_of_rounding() -> None:
    torch.manual_seed(0)
    weight, norm = torch.randn(6, 4, 3, 3), torch.randn(6)[:, None, None, None]
    folded, rounded = round_weight(weight * norm, 0, WHOLE), round_weight(weight, 0, WHOLE)
    torch.testing.assert_close(folded, rounded * norm)


@pytest.mark.parametrize("symmetric", [False, True])
def test_activations_have_256_levels_with_zero_among_them(symmetric: bool) -> None:
    values = torch.linspace(-5, 5, 4001).requires_grad_()
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    rounded = round_activation(values, low, high, symmetric)
    levels = rounded.detach().unique()
    assert len(levels) == 256
    assert 0 in levels
    inside = (values >= (-3 if symmetric else -0.99)) & (values <= 2.99)
    step = 3 / 127 if symmetric else 4 / 255
    assert (rounded - values)[inside].abs().max() <= 0.51 * step
    rounded.sum().backward()
    assert values.grad is not None
    assert values.grad[inside].eq(1).all()
    assert values.grad[values > 3.05].eq(0).all()
