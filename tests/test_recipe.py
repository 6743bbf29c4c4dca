"""Recipes: every file of ours reads, and what is wrong in one is said before anything trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import RecipeError
from training.model import CRIS
from training.model.config import MODELS
from training.recipe import CHOICES, Recipe, as_override, read_recipe
from training.schedule import STEP

FOLDER = Path(__file__).parents[1] / "training" / "configs"
CONFIGS = sorted(FOLDER.iterdir())


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_of_ours_reads_and_makes_its_model(path: Path) -> None:
    recipe = read_recipe(path)
    config = recipe.config()
    assert config.name == recipe.model
    with torch.device("meta"):
        model = CRIS(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6


def test_there_are_recipes() -> None:
    assert {"cris_edge_s.yaml", "scenes.yaml"} <= {path.name for path in CONFIGS}
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize(
    ("dataset", "words"),
    [("refcoco", 17), ("refcoco+", 17), ("refcocog_umd", 22), ("refcocog_google", 22)],
)
def test_the_papers_recipes_are_the_papers(dataset: str, words: int, depth: int) -> None:
    recipe = read_recipe(FOLDER / f"{dataset}_r{depth}.yaml")
    assert (recipe.kind, recipe.data) == ("references", f"data/prepared/{dataset}")
    assert recipe.pretrained == "openai"
    config = recipe.config()
    assert (config.input_size, config.word_len) == (416, words)
    assert config == dataclasses.replace(MODELS[f"cris_r{depth}"], word_len=words)
    # Section 4.2 of arXiv 2111.15174, and the authors' code where it says no more.
    assert (recipe.optimiser, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-4, 0)
    assert (recipe.image_encoder_rate, recipe.text_encoder_rate) == (0.1, 0.1)
    assert (recipe.schedule, recipe.milestones, recipe.epochs) == ("steps", [35], 50)
    assert STEP == 0.1
    assert (recipe.photos, recipe.accumulate, recipe.phrases) == (64, 1, 1)
    assert recipe.precision == "float16"
    # Cross-entropy alone, and nothing else that the paper does not have.
    others = (
        "dice", "which", "referent", "naming", "clip_norm", "ema", "mirror", "absent",
        "several", "warmup_steps", "quiet", "pasted",
    )  # fmt: skip
    assert not any(getattr(recipe, name) for name in others)
    assert not recipe.frozen_statistics
    assert recipe.outlines == "published"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_recipe_has_the_defaults(text: str, tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, text)) == Recipe()


def test_values_of_the_file_and_then_overrides_count(tmp_path: Path) -> None:
    path = write(
        tmp_path, "epochs: 3\nphotos: 4\ndata: /photos\nprecision: bfloat16\nsizes: {dropout: 0.1}"
    )
    recipe = read_recipe(path, ["epochs=5", "learning_rate=1.0e-3", "pretrained=null"])
    changed: dict[str, Any] = {
        "epochs": 5,
        "photos": 4,
        "data": "/photos",
        "precision": "bfloat16",
        "pretrained": None,
    }
    expected = dataclasses.replace(Recipe(), **changed, learning_rate=1e-3, sizes={"dropout": 0.1})
    assert recipe == expected


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("compile=true", "compile", True),
        ("pretrained=openai", "pretrained", "openai"),
        ("data=/a=b", "data", "/a=b"),
        ("absent=1", "absent", 1.0),
        ("sizes={input_size: 320, separable: false}", "sizes",
         {"input_size": 320, "separable": False}),
    ],
)  # fmt: skip
def test_overrides_are_read_as_yaml(
    override: str, name: str, value: object, tmp_path: Path
) -> None:
    read = getattr(read_recipe(write(tmp_path, ""), [override]), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("path", ["2026-11-27", "null", "a #2", 'a "b" \\c', "übung 日本 😀"])
def test_text_may_be_given_as_it_stands(path: str, tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, ""), [as_override("data", path)]).data == path


def test_sizes_change_the_named_model_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "model: cris_r101\nsizes: {word_len: 22, neck_channels: [64, 128, 256]}")
    config = read_recipe(path).config()
    expected = dataclasses.replace(MODELS["cris_r101"], word_len=22, neck_channels=(64, 128, 256))
    assert config == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", r"unknown names \['epoch'\]; a recipe has .*epochs"),
        ("1: 3\nlr: 4", r"unknown names \['1', 'lr'\]"),
        ("epochs: ten", r"epochs: expected int, got 'ten' \(str\)"),
        ("epochs: 2.5", r"epochs: expected int, got 2.5 \(float\)"),
        ("epochs: true", r"epochs: expected int, got True \(bool\)"),
        ("epochs:", r"epochs: expected int, got None"),
        ("compile: 1", r"compile: expected bool, got 1 \(int\)"),
        ("learning_rate: 6e-4", r"expected float, got '6e-4' \(str\).*need a point.*6.0e-4"),
        ("pretrained: 5", r"pretrained: expected str, got 5"),
        ("sizes: 5", r"sizes: expected dict, got 5"),
        ("data: null", r"data: expected str, got None"),
        ("epochs: 0", r"epochs: expected a number from 1 up, got 0"),
        ("photos: -8", r"photos: expected a number from 1 up, got -8"),
        ("validate_every: 0", r"validate_every: expected a number from 1 up, got 0"),
        ("seed: -1", r"seed: expected a number from 0 to 4294967295, got -1"),
        ("seed: 5000000000", r"seed: expected a number from 0 to 4294967295, got 5000000000"),
        ("learning_rate: -0.1", r"learning_rate: expected a number from 0 up"),
        ("learning_rate: .nan", r"learning_rate: expected a number from 0 up, got nan"),
        ("clip_norm: .inf", r"clip_norm: expected a number from 0 up, got inf"),
        ("ema: 1.5", r"ema: expected a number from 0 to 1, got 1.5"),
        ("mirror: -0.5", r"mirror: expected a number from 0 to 1, got -0.5"),
        ("milestones: 35", r"milestones: expected list, got 35"),
        ("milestones: [35, ten]", r"milestones: expected whole epochs, got \[35, 'ten'\]"),
        ("milestones: [35, -1]", r"milestones: expected whole epochs, got \[35, -1\]"),
        ("bf16: true", r"unknown names \['bf16'\]; a recipe has .*precision"),
        ("naming: 0.5", "naming: only `kind: photos`"),
        ("naming: 0.5\nkind: scenes", "naming: only `kind: photos`"),
        ("epochs 3", r"expected lines of the form `name: value`, got 'epochs 3'"),
        ("- epochs\n- 3", r"expected lines of the form"),
        ("0", r"expected lines of the form"),
        ("epochs: [3", r"recipe.yaml: not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(write(tmp_path, text))


@pytest.mark.parametrize("name", list(CHOICES))
def test_what_is_no_choice_is_refused_with_what_there_is(name: str, tmp_path: Path) -> None:
    for choice in CHOICES[name]:
        assert getattr(read_recipe(write(tmp_path, f"{name}: {choice}")), name) == choice
    path = write(tmp_path, f"{name}: best")
    with pytest.raises(RecipeError, match=rf"{name}: 'best' is none of {', '.join(CHOICES[name])}"):
        read_recipe(path)


def test_losses_that_need_categories_go_with_photos(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "naming: 0.5\nkind: photos")).naming == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "override 'epochs': expected name=value"),
        ("epochs:5", "expected name=value"),
        ("epocs=5", r"unknown names \['epocs'\]"),
        ("epochs=many", "epochs: expected int, got 'many'"),
        ("sizes={a: [}", "not YAML"),
        ("=5", r"unknown names \[''\]"),
    ],
)
def test_overrides_that_cannot_be_are_refused(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(write(tmp_path, "epochs: 3"), [override])


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 no text")
    with pytest.raises(RecipeError, match=r"photo\.jpg: not YAML"):
        read_recipe(path)


def test_a_recipe_is_read_without_making_objects(tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    path = write(tmp_path, f"data: !!python/object/apply:builtins.open ['{marker}', 'w']")
    with pytest.raises(RecipeError, match="not YAML"):
        read_recipe(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: cris_edge_xxl", "model: 'cris_edge_xxl' is none of .*cris_edge_s"),
        ("sizes: {widht: 3}", r"sizes: unknown sizes \['widht'\]"),
        ("sizes: {input_size: 250}", "input_size must be a positive multiple of 32, not 250"),
        ("sizes: {input_size: large}", "input_size must be a whole number from 32 up, not 'large'"),
        (
            "sizes: {neck_channels: 32}",
            "must be a list of 3, each a whole .*, not 32",
        ),
        (
            "sizes: {neck_channels: [16, 32]}",
            r"must be a list of 3.*, not \(16, 32\)",
        ),
        ("sizes: {vision_layers: [1, 1]}", "vision_layers must be a list of 4"),
        ("sizes: {vision_width: 0}", "vision_width must be a whole number from 1 up, not 0"),
        ("sizes: {text_layers: -1}", "text_layers must be a whole number from 1 up, not -1"),
        ("sizes: {decoder_ffn: true}", "decoder_ffn must be a whole number from 1 up, not True"),
        ("sizes: {word_len: 2}", "word_len must be a whole number from 3 up, not 2"),
        ("sizes: {dropout: 2.0}", "dropout must be at least 0 and below 1, not 2.0"),
        ("sizes: {mean: [0.5]}", "mean must be a list of 3, each a number"),
        ("sizes: {std: [1, 0, 1]}", r"std must be positive, not \(1, 0, 1\)"),
        ("sizes: {image_encoder: 5}", "image_encoder must be a name, not 5"),
        ("sizes: {separable: 1}", "separable must be true or false, not 1"),
        ("sizes: {word_len: 78}", "word_len 78 is longer than context_length"),
        ("sizes: {decoder_heads: 7}", "twice its 7 heads"),
        ("sizes: {decoder_heads: 0}", "decoder_heads must be a whole number from 1 up"),
        ("sizes: {text_width: 100}", "text_width must be a multiple of 64, not 100"),
    ],
)
def test_models_that_cannot_be_are_refused(text: str, words: str, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, text))
    with pytest.raises(RecipeError, match=words):
        recipe.config()
