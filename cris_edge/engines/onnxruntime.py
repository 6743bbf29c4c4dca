"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cris_edge.bundle import GraphSpec
from cris_edge.engines.base import Arrays, Graph, check_inputs, check_names
from cris_edge.errors import EngineError

PROVIDER = "CPUExecutionProvider"


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
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        check_names("onnxruntime", path, {tensor.name: tensor for tensor in tensors}, spec)
        self._spec = spec
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run the graph."""
        check_inputs(self._spec, inputs)
        results = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, results, strict=True))


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__
    suffixes = (".onnx",)

    def load(self, path: Path, spec: GraphSpec, threads: int | None) -> Graph:
        """Load an ONNX file."""
        return OnnxRuntimeGraph(path, spec, threads)
