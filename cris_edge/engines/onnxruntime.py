"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cris_edge.bundle import Bundle, GraphSpec, TensorSpec
from cris_edge.engines.base import Graph, Value, check_inputs, check_tensors, unfit_for_cpus
from cris_edge.errors import EngineError

PROVIDER = "CPUExecutionProvider"


KINDS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def _describe(tensors: Sequence[Any]) -> list[TensorSpec]:
    """What goes in or out of a session; an axis that is not static comes out by its name."""
    return [TensorSpec(t.name, KINDS.get(t.type, t.type), tuple(t.shape)) for t in tensors]


class OnnxRuntimeGraph:
    """A session, which any number of threads may run at once."""

    def __init__(self, path: Path, spec: GraphSpec, threads: int | None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each graph has threads of its own. Those of the graph that ran last would spin while they
        # wait, and take the cores from the one that runs next: with two threads on two cores a
        # photo and a phrase took 38 ms and more instead of 25.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not any(len(tensor.shape) == 4 for tensor in spec.inputs):
            # The level above lays out images for convolutions. A graph without any gains nothing by
            # it, and in half precision the process dies (ONNX Runtime 1.32).
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = level
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

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph; values are its own `OrtValue`s, or arrays, and are not copied."""
        check_inputs(self._spec, inputs)
        feeds = {tensor.name: _value(inputs[tensor.name]) for tensor in self._spec.inputs}
        try:
            results = self._session.run_with_ort_values(self._outputs, feeds)
        except Exception as error:  # its exceptions have no common base
            raise EngineError(f"onnxruntime failed in {self._spec.file}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array."""
        return np.asarray(value.numpy())


def _value(value: Value) -> onnxruntime.OrtValue:
    if isinstance(value, np.ndarray):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
    return value


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__

    @classmethod
    def unfit(cls, bundle: Bundle) -> str | None:
        """What has no ONNX files, and INT8 for TensorRT."""
        return unfit_for_cpus(cls.name, (".onnx",), bundle)

    def refuses(self, precision: str) -> str | None:
        """Any precision.

        Its nearest, `mlas.enable_gemm_fastmath_arm64_bfloat16`, is for matrix products and, in
        late versions, some convolutions, on ARM CPUs with bfloat16, which those of a Jetson Orin
        or a Raspberry Pi 5 lack; elsewhere it is ignored without a word.
        """
        return f"onnxruntime cannot compute in {precision}, only in what the bundle says"

    def load(
        self, path: Path, spec: GraphSpec, threads: int | None, precision: str | None = None
    ) -> Graph:
        """Load an ONNX file."""
        del precision  # all are refused
        return OnnxRuntimeGraph(path, spec, threads)
