"""The gate in INT8: a student of the made-up world loses at most a point, no layer given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.job import Job, calibrate
from tests.test_scenes_gate import CHECKPOINT, SCENES
from training.selection import SceneData

LOST = 1.0
"""Points of mIoU."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_int8_keeps_what_was_learnt(tmp_path: Path, target: str) -> None:
    job = Job(
        out=tmp_path / "int8",
        data=SceneData(SCENES),
        checkpoint=CHECKPOINT,
        target=target,
        budget=LOST,
        # Whether it is faster depends on the processor.
        force=True,
    )
    report = calibrate(job, say=lambda line: None).about["quantization"]
    assert report["lost"] <= LOST
    assert report["int8"]["scores"]["scenes"]["mIoU"] >= 0.8
    # Those of the mask head, which are never quantised without a sweep.
    assert [name.partition(":")[0] for name in report["layers"]["float"]] == ["pair", "pair"]
