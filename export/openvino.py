"""A graph as OpenVINO IR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as opset

from export.errors import ExportError
from export.graphs import Source
from export.onnx import export_onnx
from export.weights import MIN_ROUNDED


def export_openvino(source: Source, path: Path, precision: str) -> None:
    """Write one graph as `path` (.xml) and its weights beside it (.bin).

    By way of ONNX, so that both targets have the same graph.

    Args:
        source: the module with example inputs, which fix every shape.
        path: the .xml file to write.
        precision: `float32`, or `float16` to store large weights in half and convert them back.

    Raises:
        ExportError: the graph cannot be converted.
    """
    bridge = path.with_suffix(".onnx")
    export_onnx(source, bridge, "float32")
    try:
        write_openvino(bridge, path, precision)
    finally:
        bridge.unlink(missing_ok=True)


def write_openvino(bridge: Path, path: Path, precision: str) -> None:
    """Convert an ONNX file to `path` (.xml) and its weights beside it (.bin).

    Args:
        bridge: the ONNX file, which stays.
        path: the .xml file to write.
        precision: `float16` to store large weights in half; any other keeps them as they are.

    Raises:
        ExportError: the graph cannot be converted.
    """
    try:
        model = openvino.convert_model(bridge)
        if precision == "float16":
            store_weights_as_half(model)
        # The names of the model's own file would lead to a temporary folder.
        model.friendly_name = path.stem
        # OpenVINO's own compression would also round what it folded from exact weights.
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"openvino cannot convert {path.stem}: {error}") from error


def store_weights_as_half(model: openvino.Model) -> None:
    """Store large float32 constants as float16, followed by a conversion folded when compiling.

    As in ONNX, constants that half precision does not hold exactly stay as they are.
    """
    for operation in model.get_ordered_ops():
        if (
            operation.get_type_name() != "Constant"
            or operation.get_element_type() != openvino.Type.f32
        ):
            continue
        values = operation.data
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < MIN_ROUNDED or not np.array_equal(half.astype(np.float32), values):
            continue
        restored = opset.convert(opset.constant(half), "f32")
        for reader in operation.output(0).get_target_inputs():
            reader.replace_source_output(restored.output(0))
