"""Q/DQ graphs for TensorRT on a Jetson: strongly typed, int8 and float16.

TensorRT's networks have int8 with zero point 0 alone, and a scale has the type of the tensor that
it scales: float16, as all tensors but those that `export.tensorrt` keeps in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.tensorrt import MAX_HALF, VERSIONS, compute_in_half
from quantize.errors import QuantizeError

OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16; TensorRT 10.3 knows it."""
FACTS = {"opset": OPSET, "tensorrt": VERSIONS}
"""What a bundle says of its target."""
MIN_SCALE = 2.0**-14
"""The least normal number of float16; smaller ones have fewer digits, or are taken for 0."""
QDQ = ("QuantizeLinear", "DequantizeLinear")
LEVELS = 127
"""Of int8 on either side of 0."""


def fit_scales(name: str, quantised: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with int8 throughout and scales that float16 holds, still in float32.

    Where that changes a weight's scale, the weight is rounded anew from the float one, so that
    nothing is lost but what the coarser step of the weakest channels loses.

    Args:
        name: of the graph, for messages.
        quantised: what NNCF made of the graph, symmetric throughout.
        model: the graph in float32.

    Raises:
        QuantizeError: a zero point is not 0, or a scale is beyond float16.
    """
    fitted = onnx.ModelProto()
    fitted.CopyFrom(quantised)
    constants = {tensor.name: tensor for tensor in fitted.graph.initializer}
    nodes = [node for node in fitted.graph.node if node.op_type in QDQ]
    # A scale or zero point may serve several nodes, and is changed once.
    scales = {node.input[1]: node.input[2] for node in nodes}
    found = {scale: _fitted(name, constants, scale, zero) for scale, zero in scales.items()}
    for scale, fitting in found.items():
        constants[scale].CopyFrom(numpy_helper.from_array(fitting, scale))
    for zero in scales.values():
        shape = tuple(constants[zero].dims)
        constants[zero].CopyFrom(numpy_helper.from_array(np.zeros(shape, np.int8), zero))
    weights = _float_weights(fitted, model)
    for node in nodes:
        if node.input[0] in constants:
            values = _rounded(weights[node.output[0]], found[node.input[1]], _axis(node))
            constants[node.input[0]].CopyFrom(numpy_helper.from_array(values, node.input[0]))
    return fitted


def _fitted(
    name: str, constants: dict[str, onnx.TensorProto], scale: str, zero: str
) -> NDArray[np.float32]:
    """A scale as float16 holds it; of int8, where it was one of uint8."""
    values, point = (numpy_helper.to_array(constants[one]) for one in (scale, zero))
    if point.any():
        raise QuantizeError(
            f"{name}: TensorRT has no zero point but 0, NNCF gave {point.min()} to {point.max()} "
            f"with the scale {scale}"
        )
    if point.dtype == np.uint8:
        values = values * np.float32(np.iinfo(np.uint8).max / LEVELS)
    if values.max() > MAX_HALF:
        raise QuantizeError(
            f"{name}: float16 holds values up to {MAX_HALF:.0f}, the scale {scale} is "
            f"{values.max():.3g}; the float model's activations are damaged"
        )
    return np.asarray(np.maximum(values.astype(np.float16), np.float16(MIN_SCALE)), np.float32)


def _float_weights(
    quantised: onnx.ModelProto, model: onnx.ModelProto
) -> dict[str, NDArray[np.float32]]:
    """The float weights in place of what DequantizeLinear makes of integers, by its output."""
    originals = {node.name: node for node in model.graph.node}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in quantised.graph.node:
        if node.name not in originals:
            continue
        for new, old in zip(node.input, originals[node.name].input, strict=True):
            if new != old and old in values:
                found[new] = numpy_helper.to_array(values[old])
    return found


def _axis(node: onnx.NodeProto) -> int:
    """Along which it has a scale a channel."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _rounded(
    weights: NDArray[np.float32], scale: NDArray[np.float32], axis: int
) -> NDArray[np.int8]:
    if scale.ndim:
        shape = [1] * weights.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return np.clip(np.rint(weights / scale), -LEVELS, LEVELS).astype(np.int8)


def in_half(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A graph of `quantize.graphs.mix`, its float tensors and scales in float16.

    Args:
        model: in float32, its scales by `fit_scales`.
        name: of the graph, for messages.

    Raises:
        ExportError: a weight is beyond float16.
    """
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    # The same nodes: of those that graphs have here, none means anything else since OPSET.
    del raised.opset_import[:]
    raised.opset_import.append(helper.make_opsetid("", OPSET))
    return compute_in_half(raised, name)
