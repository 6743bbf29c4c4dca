"""A graph as ONNX: static shapes, constants as constants, weights in float32 or in fewer bits."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer

from cris_edge.bundle import MAX_PHRASES, PHRASES
from export.errors import ExportError
from export.graphs import Source
from export.weights import LEVELS, MIN_ROUNDED

OPSET = 18
"""17 brought LayerNormalization, which engines keep in float32; 18 is torch's own dialect."""
FORBIDDEN = {"ScatterND", "ScatterElements", "Scatter", "If", "Loop", "Scan", "NonZero"}
"""What position codes and masks become when they are not constants: slow, or refused by engines."""


def export_onnx(source: Source, path: Path, precision: str) -> None:
    """Write one graph.

    Args:
        source: the module with example inputs, which fix every shape.
        path: the file to write.
        precision: `float32`; `float16` to store large weights in half and cast them back;
            `weights8` to store them in bytes with scales.

    Raises:
        ExportError: torch cannot export the module, or the graph is not as it must be.
    """
    model = _trace(source)
    check_nodes(model, path.name)
    if precision == "float16":
        store_weights_as_half(model)
    if precision == "weights8":
        store_weights_as_bytes(model)
    strip(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name}: torch wrote an ONNX graph that is none: {error}"
        ) from error
    path.write_bytes(model.SerializeToString())


def _trace(source: Source) -> onnx.ModelProto:
    output = io.StringIO()
    try:
        with _quiet(), contextlib.redirect_stdout(output):
            program = torch.onnx.export(
                source.module,
                tuple(source.inputs.values()),
                input_names=list(source.inputs),
                output_names=list(source.outputs),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=_dynamic(source),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # its exceptions have no common base
        raise ExportError(f"torch cannot export the graph: {error}\n{output.getvalue()}") from error
    assert program is not None
    # Parts of weights become constants of their own: else a weight that two graphs share lies whole
    # in both.
    optimizer.fold_constants(program.model, input_size_limit=2**40, output_size_limit=2**40)
    optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def _dynamic(source: Source) -> tuple[Any, ...] | None:
    """The axes that are as long as there are phrases, in torch's form."""
    if not source.batched:
        return None
    phrases = torch.export.Dim(PHRASES, min=1, max=MAX_PHRASES)
    # One entry for each parameter of `forward`, of which a stage has one: `*inputs`.
    return (tuple({0: phrases} if name in source.batched else {} for name in source.inputs),)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own progress off the screen; errors stay."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_nodes(model: onnx.ModelProto, name: str) -> None:
    """Refuse graphs with nodes that make engines slow or fail, and shapes that are not static.

    Raises:
        ExportError: names the nodes, or the inputs and outputs.
    """
    graph = model.graph
    if bad := [f"{node.op_type} {node.name}" for node in graph.node if node.op_type in FORBIDDEN]:
        raise ExportError(
            f"{name}: position codes and masks must be constants, but the graph computes with "
            f"{', '.join(bad)}: make them buffers of the module"
        )
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        rest = axes[1:] if axes and axes[0].dim_param == PHRASES else axes
        if not all(axis.dim_value > 0 for axis in rest):
            raise ExportError(f"{name}: the shape of {value.name} must be static: {value.type}")


def store_weights_as_half(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16, followed by a cast that engines fold when loading.

    Tensors with a value that half precision does not hold exactly stay as they are, so the graph
    computes what it computed before, to the last bit.
    """
    _store(model, _as_half)


def store_weights_as_bytes(model: onnx.ModelProto) -> None:
    """Store large float32 weights as int8 and scales, whose product engines fold when loading.

    Tensors that are no such products, with the scales along one axis, stay as they are, so the
    graph computes what it computed before, to the last bit.
    """
    _store(model, _as_bytes)


Stored = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]


def _store(model: onnx.ModelProto, convert: Callable[[str, Any], Stored | None]) -> None:
    """Replace what can be converted by what it is made of."""
    graph = model.graph
    kept, made = [], []
    for tensor in graph.initializer:
        stored = None
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_ROUNDED:
            stored = convert(tensor.name, numpy_helper.to_array(tensor))
        tensors, nodes = stored or ([tensor], [])
        kept += tensors
        made += nodes
    nodes = [*made, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _cast(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}_cast", to=TensorProto.FLOAT)


def _as_half(name: str, values: NDArray[np.float32]) -> Stored | None:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values):
        return None
    return [numpy_helper.from_array(half, f"{name}_half")], [_cast(f"{name}_half", name)]


def _as_bytes(name: str, values: NDArray[np.float32]) -> Stored | None:
    for axis in range(values.ndim):
        scales = common_scales(values, axis)
        levels = values / scales
        if np.abs(levels).max() <= LEVELS and np.array_equal(np.rint(levels) * scales, values):
            break
    else:
        return None
    tensors = {"levels": np.rint(levels).astype(np.int8), "scales": scales}
    return (
        [numpy_helper.from_array(array, f"{name}_{part}") for part, array in tensors.items()],
        [
            _cast(f"{name}_levels", f"{name}_whole"),
            helper.make_node("Mul", [f"{name}_whole", f"{name}_scales"], [name], f"{name}_mul"),
        ],
    )


def common_scales(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The greatest number along an axis of which all values there are whole multiples.

    Slices of rounded weights have it still, though they may have lost the largest value.

    Args:
        values: float32, finite.
        axis: that has a scale for each index.

    Returns:
        Scales that multiply with `values`, 1 where there are zeros alone; along an axis without
        such, very small ones.
    """
    fractions, exponents = np.frexp(values)
    rest = tuple(other for other in range(values.ndim) if other != axis)
    # Whole numbers of 24 bits, all shifted to the least exponent of their index; what is further
    # from it than 62 bits allow has no common scale of 8 bits below it anyway.
    least = np.where(values == 0, np.iinfo(np.int32).max, exponents).min(axis=rest, keepdims=True)
    shifts = np.clip(exponents - least, 0, 62 - 24)
    whole = np.ldexp(fractions.astype(np.float64), 24 + shifts).astype(np.int64)
    common = np.gcd.reduce(np.abs(whole), axis=rest, keepdims=True) if rest else np.abs(whole)
    scales = np.ldexp(common.astype(np.float64), np.where(common > 0, least, 0) - 24)
    return np.where(common > 0, scales, 1).astype(np.float32)


def strip(model: onnx.ModelProto) -> None:
    """Drop what tells of the machine that exported: source paths and stack traces."""
    graph = model.graph
    del graph.value_info[:]
    nodes = [node for function in model.functions for node in function.node]
    entries: Iterable[Any] = (*graph.node, *nodes, *graph.initializer, *graph.input, *graph.output)
    for entry in (model, graph, *model.functions, *entries):
        entry.doc_string = ""
        del entry.metadata_props[:]
