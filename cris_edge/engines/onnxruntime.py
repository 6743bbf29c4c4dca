"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cris_edge.bundle import GraphSpec, TensorSpec
from cris_edge.engines.base import Arrays, Graph, check_inputs, check_tensors
from cris_edge.errors import EngineError

PROVIDER = "CPUExecutionProvider"


KINDS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


def _describe(tensors: Sequence[Any]) -> list[TensorSpec]:
    """What goes in or out of a session; an axis that is not static comes out by its name."""
    return [TensorSpec(t.name, KINDS.get(t.type, t.type), tuple(t.shape)) for t in tensors]


class OnnxRuntimeGraph:
    """A session, which any number of threads may run at once."""

    def __init__(self, path: Path, spec: GraphSpec, threads: int | None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:  # its exceptions have no common base
            raise EngineError(f"onnxruntime cannot load {path.name}: {error}") from error
        inputs, outputs = (
            _describe(self._session.get_inputs()),
            _describe(self._session.get_outputs()),
        )
        check_tensors("onnxruntime", path, spec, inputs, outputs)
        self._spec = spec
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run the graph."""
        check_inputs(self._spec, inputs)
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # its exceptions have no common base
            raise EngineError(f"onnxruntime failed in {self._spec.file}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__
    suffixes = (".onnx",)

    def load(self, path: Path, spec: GraphSpec, threads: int | None) -> Graph:
        """Load an ONNX file."""
        return OnnxRuntimeGraph(path, spec, threads)
