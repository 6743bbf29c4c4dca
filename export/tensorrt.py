"""Graphs for TensorRT on a Jetson: strongly typed ONNX, in half precision where half is enough.

The device builds its own engines from them, since an engine runs on no other kind of GPU and under
no other version of TensorRT than it was built with.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.engines import installed, open_engine
from cris_edge.engines.tensorrt_build import Job as BuildJob
from cris_edge.engines.tensorrt_build import build_plan
from cris_edge.errors import EngineError
from cris_edge.photo import Photo, as_photo
from cris_edge.segmenter import Info
from cris_edge.tokenizer import Tokenizer
from export.errors import ExportError
from export.graphs import Source
from export.onnx import export_onnx, strip
from export.verify import run_graphs

VERSIONS = ">=10.3,<12"
"""Of TensorRT: JetPack 6.1 has 10.3, whose parser knows the opset and every node; 7.2 has 11."""
SINGLE = ("LayerNormalization", "Softmax")
"""Nodes that compute in float32: the sums of both lose too much in half."""
RTX = "tensorrt_rtx_bindings"
"""TensorRT for RTX, which needs no GPU to build."""
AMPERE = "8.6"
"""The compute capability it builds for: next to Orin's 8.7, which it does not know."""
MAX_HALF = 65504.0
"""The largest number of float16. TensorRT makes infinity of what is beyond."""


def export_jetson(source: Source, path: Path, precision: str) -> None:
    """Write one graph.

    Args:
        source: the module with example inputs, which fix every shape.
        path: the file to write.
        precision: `float32`, or `fp16` to compute in half precision.

    Raises:
        ExportError: torch cannot export the module, the graph is not as it must be, or a weight is
            beyond float16.
    """
    export_onnx(source, path, "float32")
    if precision == "fp16":
        model = compute_in_half(onnx.load(path), path.name)
        path.write_bytes(model.SerializeToString())


def compute_in_half(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Make the tensors and weights of a float32 graph float16.

    Inputs and outputs keep their types, so that the runtime is the same for every graph. Layer
    norms, softmax and the normalisation of the frame stay in float32, with casts around them.

    Args:
        model: a graph in float32.
        name: of the graph, for messages.

    Raises:
        ExportError: a weight is beyond float16, or operands would have mixed types, which a
            strongly typed network refuses.
    """
    check_weights(model, name)
    half = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=list(SINGLE),
        node_block_list=_before_convolution(model.graph),
    )
    graph = OnnxModel(half)
    graph.topological_sort()
    # From float32 to half and straight back, between two nodes that stay in float32.
    graph.remove_cascaded_cast_nodes()
    graph.remove_useless_cast_nodes()
    strip(half)
    check_types(half, name)
    return half


def _before_convolution(graph: onnx.GraphProto) -> list[str]:
    """Nodes that turn a frame of uint8 into what the first convolution, or its quantiser, takes."""
    reached = {
        value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8
    }
    names = []
    for node in graph.node:
        if node.op_type not in ("Conv", "QuantizeLinear") and reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names


def check_weights(model: onnx.ModelProto, name: str) -> None:
    """Refuse weights and constants that float16 has no number for; conversion would clip them.

    Raises:
        ExportError: names the tensor.
    """
    for tensor in _constants(model.graph):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.size:
            check_peak(f"{name}: {tensor.name}", float(np.max(np.abs(values))))


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def check_peak(what: str, peak: float) -> None:
    """Refuse what float16 has no number for.

    Args:
        what: the tensor, for the message.
        peak: the largest magnitude in it.

    Raises:
        ExportError: names the tensor.
    """
    # Not the other way round: what is no number is refused too.
    if not peak <= MAX_HALF:
        raise ExportError(
            f"{what}: float16 holds values up to {MAX_HALF:.0f}, this tensor reaches {peak:.3g}; "
            "export with --precision float32"
        )


def check_types(model: onnx.ModelProto, name: str) -> None:
    """Refuse a graph in which a node's operands do not have the types that ONNX asks for.

    Raises:
        ExportError: with what the checker says.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: the graph's types are not consistent: {error}") from error


def prove(bundle: Bundle, photos: Sequence[Path], say: Callable[[str], None]) -> None:
    """Look for overflow, then build the engines where TensorRT is installed.

    Raises:
        ExportError: a tensor is beyond float16, or TensorRT refuses a graph.
        InputError: a photo cannot be read.
    """
    if bundle.precision == "fp16":
        for name, (tensor, peak) in largest_halves(bundle, photos).items():
            say(f"  {name:8} largest value in float16: {peak:.4g} of {MAX_HALF:.0f} ({tensor})")
            check_peak(f"{name}: {tensor}", peak)
    build_engines(bundle, say)


def largest_halves(bundle: Bundle, photos: Sequence[Path | Photo]) -> dict[str, tuple[str, float]]:
    """The float16 tensor of each graph that holds the largest value, over photos and phrases.

    The comparison with torch does not find what overflows: engines on the CPU read a graph in half
    precision and compute in float32, which goes on where a GPU has infinity.

    Args:
        bundle: its graphs are computed in half precision.
        photos: files, or uint8 (H, W, 3) BGR; each is paired with every phrase of `export.verify`.

    Returns:
        For each graph the tensor's name and the largest magnitude in it; infinity beyond float16.

    Raises:
        InputError: a photo cannot be read.
    """
    probes = {name: _Probe(bundle.path(spec.file)) for name, spec in bundle.graphs.items()}
    segmenter = Segmenter.from_graphs(
        bundle.letterbox,
        Tokenizer.load(bundle.path(bundle.tokenizer)),
        bundle.word_len,
        bundle.threshold,
        probes,
        Info(bundle.name, bundle.precision, bundle.letterbox.size, "probe", "", None),
    )
    for photo in photos:
        run_graphs(segmenter, as_photo(photo))
    return {name: probe.largest() for name, probe in probes.items()}


class _Probe:
    """A graph run by ONNX Runtime that also gives every float16 tensor."""

    def __init__(self, path: Path):
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        self._outputs = [value.name for value in model.graph.output]
        halves = [
            value
            for value in model.graph.value_info
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16
        ]
        model.graph.output.extend(halves)
        self._peaks = dict.fromkeys((value.name for value in halves), 0.0)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Q/DQ nodes as they are: it would quantise biases too, with scales too small for float16.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; its own outputs come back, of the others the largest value is kept."""
        names = [*self._outputs, *self._peaks]
        results = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        for name, peak in self._peaks.items():
            # numpy's maximum, which keeps what is no number.
            largest = np.max(np.abs(results[name]), initial=0)
            self._peaks[name] = float(np.maximum(peak, largest))
        return {name: results[name] for name in self._outputs}

    def fetch(self, value: NDArray[Any]) -> NDArray[Any]:
        """A result as an array, which it is."""
        return value

    def largest(self) -> tuple[str, float]:
        """The tensor that holds the largest value so far, and that; no number counts as more."""
        return max(
            self._peaks.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf, posinf=np.inf)
        )


def build_engines(bundle: Bundle, say: Callable[[str], None]) -> None:
    """Build the engines where TensorRT and a GPU are at hand; say so where they are not.

    Raises:
        ExportError: TensorRT refuses a graph.
    """
    later = "the device builds its engines when it loads the bundle for the first time"
    if "tensorrt" not in installed():
        say(f"TensorRT is not installed here: {later}")
        return
    try:
        engine = open_engine("tensorrt")
    except EngineError as error:
        say(f"TensorRT cannot be used here ({error}): {later}")
        return
    for name, spec in bundle.graphs.items():
        try:
            engine.load(bundle.path(spec.file), spec, None)
        except EngineError as error:
            raise ExportError(f"{name}: TensorRT cannot build the engine: {error}") from error
        say(f"  {name}: engine built by TensorRT {engine.version}")


def rehearse(bundle: Bundle, say: Callable[[str], None]) -> None:
    """Have NVIDIA's parser and builder take the graphs where TensorRT for RTX is installed.

    That takes no GPU, and what it builds is thrown away; it shows that the graphs can be built.

    Raises:
        ExportError: the parser or the builder refuses a graph.
    """
    if importlib.util.find_spec(RTX) is None:
        say("no parser of NVIDIA's is installed here that could take the graphs")
        return
    trt = importlib.import_module(RTX)
    for name, spec in bundle.graphs.items():
        job = BuildJob(bundle.path(spec.file).read_bytes(), spec, AMPERE)
        try:
            build_plan(trt, job, say)
        except EngineError as error:
            raise ExportError(f"{name}: TensorRT for RTX refuses the graph: {error}") from error
    say(
        f"{', '.join(bundle.graphs)}: taken by the parser and builder of TensorRT for RTX "
        f"{trt.__version__}, for compute capability {AMPERE}"
    )
