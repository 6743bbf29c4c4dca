"""INT8 for TensorRT of the models that are offered: NVIDIA's parser and builder take all graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.jetson import OPSET
from quantize.job import Job, calibrate
from tests.scenes import small_tokenizer
from tests.test_jetson import TARGETS, build_engine, check_for_10_3, make_model, on_x86
from training import checkpoint
from training.selection import SceneData


@on_x86
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cris_edge_xs", "cris_edge_s", "cris_edge_m", "cris_r50", "cris_r101"]
)
def test_nvidias_builder_takes_int8_of_every_model(tmp_path: Path, name: str) -> None:
    tokenizer, path = small_tokenizer(), tmp_path / "model.safetensors"
    checkpoint.save(path, make_model(name, tokenizer), tokenizer, {})
    job = Job(
        tmp_path / "int8", SceneData(2), checkpoint=path, target="jetson",
        budget=100.0, samples=2, limit=1, force=True,
    )  # fmt: skip
    said: list[str] = []
    made = calibrate(job, said.append)
    # By calibrate itself, for Ampere.
    assert any("parser and builder of TensorRT" in line for line in said)
    report = made.about["quantization"]["layers"]
    assert report["int8"] > 10 * len(report["float"])
    for graph in made.graphs.values():
        check_for_10_3(made.path(graph.file), OPSET)
        assert build_engine(made.path(graph.file), TARGETS[0]) > 1e5
