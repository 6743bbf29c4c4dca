"""Graphs with Q/DQ nodes, computed by ONNX Runtime as they are written.

Left to itself, it makes kernels of its own of Q/DQ nodes. Of graphs for TensorRT these are wrong:
it quantises biases too, with scales that float16 has no number for, and a CPU without VNNI adds
products of weights that use the whole range of int8 in 16 bits, which do not hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cris_edge import Segmenter
from cris_edge.bundle import FOR_TENSORRT, Bundle, GraphSpec
from cris_edge.engines import answers, installed
from cris_edge.engines.base import Value, check_inputs
from cris_edge.errors import EngineError
from cris_edge.segmenter import COMPUTED, Info
from cris_edge.tokenizer import Tokenizer

TENSORRT = "tensorrt"


class WrittenGraph:
    """A session that fuses no Q/DQ nodes; its tensors are arrays."""

    def __init__(self, path: Path, spec: GraphSpec, threads: int | None):
        """Load an ONNX file.

        Raises:
            EngineError: it cannot be loaded.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # The level above lays out images anew, and with graphs in half the process may die.
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base
            raise EngineError(f"onnxruntime cannot load {path.name}: {error}") from error
        self._spec = spec

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph."""
        check_inputs(self._spec, inputs)
        names = [tensor.name for tensor in self._spec.outputs]
        feeds = {tensor.name: inputs[tensor.name] for tensor in self._spec.inputs}
        try:
            results = self._session.run(names, feeds)
        except Exception as error:  # its exceptions have no common base
            raise EngineError(f"onnxruntime failed in {self._spec.file}: {error}") from error
        return dict(zip(names, results, strict=True))

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array, which it is."""
        return np.asarray(value)


def open_written(bundle: Bundle, threads: int | None) -> Segmenter:
    """A segmenter whose graphs are computed as they are written.

    Args:
        bundle: of ONNX graphs.
        threads: for one run of a graph; None lets ONNX Runtime choose.

    Raises:
        EngineError: a graph cannot be loaded.
    """
    segmenter = Segmenter.from_graphs(
        bundle.letterbox,
        Tokenizer.load(bundle.path(bundle.tokenizer)),
        bundle.word_len,
        bundle.threshold,
        {
            name: WrittenGraph(bundle.path(spec.file), spec, threads)
            for name, spec in bundle.graphs.items()
        },
        Info(
            model=bundle.name,
            precision=bundle.precision,
            input_size=bundle.letterbox.size,
            engine="onnxruntime",
            engine_version=onnxruntime.__version__,
            threads=threads,
            computed=COMPUTED.get(bundle.precision, "float32"),
        ),
    )
    segmenter.bundle = bundle
    return segmenter


def open_judged(path: Path, engine: str, threads: int | None) -> Segmenter:
    """A bundle to judge: by the engine, or as written where its graphs are for TensorRT.

    Args:
        path: a folder or zip file.
        engine: its name, or `auto`. Graphs for TensorRT run by TensorRT where it is named, or is
            there and `auto` is; no other engine gives what they mean.
        threads: for one run of a graph; None lets the engine choose.

    Raises:
        BundleError, EngineError: of the bundle, or its engine.
    """
    bundle = Bundle.open(path)
    by_tensorrt = engine == TENSORRT or (engine == "auto" and tensorrt_there())
    if bundle.target == FOR_TENSORRT and not by_tensorrt:
        return open_written(bundle, threads)
    return Segmenter(path, engine=engine, threads=threads)


def only_written(segmenter: Segmenter) -> bool:
    """Whether it computes graphs for TensorRT as they are written, which tells nothing of speed."""
    return any(isinstance(graph, WrittenGraph) for graph in segmenter.graphs.values())


def tensorrt_there() -> bool:
    """Whether TensorRT is installed, and a driver and a GPU answer."""
    return TENSORRT in installed() and answers(TENSORRT)
