"""A graph as ONNX: static shapes, constants as constants, weights in float32 or stored as half."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer

from cris_edge.bundle import MAX_PHRASES, PHRASES
from export.errors import ExportError
from export.graphs import Source
from export.weights import MIN_HALF

OPSET = 18
"""17 brought LayerNormalization, which engines keep in float32; 18 is torch's own dialect."""
FORBIDDEN = {"ScatterND", "ScatterElements", "Scatter", "If", "Loop", "Scan", "NonZero"}
"""What position codes and masks become when they are not constants: slow, or refused by engines."""


def export_onnx(source: Source, path: Path, precision: str) -> None:
    """Write one graph.

    Args:
        source: the module with example inputs, which fix every shape.
        path: the file to write.
        precision: `float32`, or `float16` to store large weights in half and cast them back.

    Raises:
        ExportError: torch cannot export the module, or the graph is not as it must be.
    """
    model = _trace(source)
    check_nodes(model, path.name)
    if precision == "float16":
        store_weights_as_half(model)
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
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_HALF:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(
            helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def strip(model: onnx.ModelProto) -> None:
    """Drop what tells of the machine that exported: source paths and stack traces."""
    graph = model.graph
    del graph.value_info[:]
    nodes = [node for function in model.functions for node in function.node]
    entries: Iterable[Any] = (*graph.node, *nodes, *graph.initializer, *graph.input, *graph.output)
    for entry in (model, graph, *model.functions, *entries):
        entry.doc_string = ""
        del entry.metadata_props[:]
