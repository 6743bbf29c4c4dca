"""The benchmark of training: it trains for real and prints figures that fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training_run import SIZES
from training.benchmark import flops_of_step, main
from training.model.cost import multiply_adds
from training.recipe import Recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "recipe.yaml"
    content = {
        "kind": "scenes",
        "data": str(ROOT / "samples" / "photos"),
        "model": "cris_edge_s",
        "sizes": SIZES,
        "scenes": 12,
        "photos": 4,
        "phrases": 2,
        "precision": "float32",
        "workers": 0,
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(recipe: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    steps = ["--warm", "1", "--steps", "4"]
    assert main(["--config", str(recipe), *steps, *more]) == 0
    return capsys.readouterr().out


def test_ways_are_measured_side_by_side(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = ["--way", "channels_last=false", "--way", "channels_last=true phrases=4"]
    content: dict[str, Any] = json.loads(run(recipe, capsys, "--json", *ways))
    assert {"date", "machine", "versions", "config"} < set(content)
    first, second = content["ways"]
    assert (first["way"], second["way"]) == ("channels_last=false", "channels_last=true phrases=4")
    for way in (first, second):
        assert way["milliseconds"] * way["photos_per_second"] == pytest.approx(4000)
        assert way["utilisation"] == pytest.approx(way["teraflops"] / way["peak_teraflops"])
        assert 0 <= way["waiting"] < 1
        assert 0 < way["memory_gib"] < 30
        assert 0 < way["utilisation"] < 1


def test_the_table_has_a_line_a_way(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(recipe, capsys, "--way", "accumulate=1", "--way", "accumulate=2")
    facts, heading, *lines = text.splitlines()
    assert "torch" in facts
    assert heading.split() == [
        "photos/s", "ratio", "ms/step", "waiting", "GiB", "TFLOP/s", "of", "peak",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == ["accumulate=1", "accumulate=2"]
    assert lines[0].split()[2] == "1.00"


def test_work_of_a_step_is_counted_from_the_model() -> None:
    one = Recipe(model="cris_edge_s", photos=1, phrases=1)
    costs = multiply_adds(one.config())
    assert flops_of_step(one) == 6 * sum(costs.values())
    # What needs no phrase is computed once for all phrases of a photo.
    many = Recipe(model="cris_edge_s", photos=10, phrases=3)
    each = costs["phrase"] + costs["pair"]
    assert flops_of_step(many) == 60 * (costs["photo"] + 3 * each)


def test_a_recipe_that_cannot_be_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(recipe), "--way", "precision=int8"]) == 2
    assert "precision: 'int8' is none of" in capsys.readouterr().err
