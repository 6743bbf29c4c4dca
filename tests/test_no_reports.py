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
print(Segmenter(sys.argv[1], "onnxruntime").predict(np.zeros((48, 64, 3), np.uint8), "red car"))
"""
RACE = """
import sys, quantize.students, export.tensorrt
from cris_edge import Segmenter
Segmenter(sys.argv[1], "onnxruntime")
"""


def left_at_home(code: str, bundle: Path, home: Path) -> list[str]:
    """What a program with a home of its own leaves in it."""
    # CI's name in the environment silences ONNX Runtime too.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        env=kept | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(path.name for path in home.rglob("*") if "onnxruntime" in str(path))


@pytest.mark.parametrize("code", [PREDICT, RACE])
def test_onnx_runtime_leaves_nothing(code: str, small_bundle: Path, tmp_path: Path) -> None:
    assert left_at_home(code, small_bundle, tmp_path) == []
