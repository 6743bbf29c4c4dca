"""OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cris_edge.bundle import GraphSpec, TensorSpec
from cris_edge.engines.base import Arrays, Graph, check_inputs, check_tensors
from cris_edge.errors import EngineError

KINDS = {"f32": "float32", "i64": "int64", "boolean": "bool"}


def _describe(ports: Sequence[Any]) -> list[TensorSpec]:
    """What goes in or out of a compiled model; a shape that is not static comes out as ()."""
    return [
        TensorSpec(
            port.get_any_name(),
            KINDS.get(kind := port.element_type.get_type_name(), kind),
            tuple(port.partial_shape.to_shape()) if port.partial_shape.is_static else (),
        )
        for port in ports
    ]


class OpenVinoGraph:
    """A compiled model with one infer request a thread, as OpenVINO asks."""

    def __init__(self, core: Any, path: Path, spec: GraphSpec, threads: int | None):
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Without it the CPU may compute in bfloat16, and answers would depend on the machine.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.compile_model(core.read_model(str(path)), "CPU", options)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot load {path.name}: {error}") from error
        ports = {port.get_any_name(): port for port in (*self._model.inputs, *self._model.outputs)}
        inputs, outputs = _describe(self._model.inputs), _describe(self._model.outputs)
        check_tensors("openvino", path, spec, inputs, outputs)
        self._spec = spec
        self._outputs = [(tensor.name, ports[tensor.name]) for tensor in spec.outputs]
        self._local = threading.local()

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run the graph."""
        check_inputs(self._spec, inputs)
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        results = self._local.request.infer(dict(inputs), share_inputs=True)
        # The request writes its next results into the same memory.
        return {name: np.array(results[port]) for name, port in self._outputs}


class OpenVino:
    """OpenVINO's CPU device."""

    name = "openvino"
    version: str = openvino.__version__.split("-")[0]
    suffixes = (".xml", ".onnx")

    def __init__(self) -> None:
        self._core = openvino.Core()

    def load(self, path: Path, spec: GraphSpec, threads: int | None) -> Graph:
        """Load an OpenVINO IR or an ONNX file."""
        return OpenVinoGraph(self._core, path, spec, threads)
