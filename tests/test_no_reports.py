"""Nothing is told of what a device computes, nor an identifier left on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PREDICT = """
import sys, numpy as np
from cris_edge import Segmenter
Segmenter(sys.argv[1], sys.argv[2]).predict(np.zeros((48, 64, 3), np.uint8), "red car")
"""
EXPORT = """
import sys, quantize.students, export.tensorrt, export.openvino
from cris_edge import Segmenter
Segmenter(sys.argv[1], sys.argv[2])
"""


def left_at_home(code: str, bundle: Path, engine: str, home: Path) -> list[Path]:
    """What a program with a home of its own leaves in it, as all that report do."""
    # CI's name in the environment silences the engines too.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), engine],
        env=kept | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "auto"])
def test_prediction_leaves_nothing(engine: str, small_bundle: Path, tmp_path: Path) -> None:
    assert left_at_home(PREDICT, small_bundle, engine, tmp_path) == []


def test_export_and_calibration_leave_nothing(small_bundle: Path, tmp_path: Path) -> None:
    assert left_at_home(EXPORT, small_bundle, "onnxruntime", tmp_path) == []
