"""Scales of INT8 are such as TensorRT takes, and halves can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from quantize.errors import QuantizeError
from quantize.jetson import MIN_SCALE, OPSET, fit_scales


def small_graph(
    weights: NDArray[np.float32], scale: Any, point: int = 0, kind: type = np.int8
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """x (1, 2) times weights (2, 2), in float32 and with Q/DQ nodes.

    Args:
        weights: the float ones.
        scale: of the weights, one a channel.
        point: zero point of x.
        kind: type of x once it is quantised.
    """
    steps = np.asarray(scale, np.float32)
    rounded = np.clip(np.rint(weights / steps), -127, 127).astype(np.int8)
    added = {
        "step": np.float32(0.02),
        "point": np.asarray(point, kind),
        "steps": steps,
        "points": np.zeros(steps.shape, np.int8),
        "rounded": rounded,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "point"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "step", "point"], ["dq"], "dq"),
        helper.make_node("DequantizeLinear", ["rounded", "steps", "points"], ["w"], "w", axis=1),
        helper.make_node("MatMul", ["dq", "w"], ["y"], "product"),
    ]
    plain = [helper.make_node("MatMul", ["x", "weights"], ["y"], "product")]
    return make(plain, {"weights": weights}), make(nodes, added)


def make(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: Sequence[int] = (1, 2)
) -> onnx.ModelProto:
    """A graph from x to y, both float32 and of one shape."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_scales_below_halfs_normal_numbers_are_raised_and_weights_rounded_anew() -> None:
    weights = np.array([[1.0, 1e-3], [-0.5, -4e-4]], np.float32)
    model, quantised = small_graph(weights, [1 / 127, 1e-3 / 127])
    fitted = constants(fit_scales("graph", quantised, model))
    steps = fitted["steps"]
    assert steps[1] == MIN_SCALE
    assert (steps == steps.astype(np.float16)).all()
    assert fitted["rounded"].tolist() == [[127, 16], [-64, -7]]
    assert np.abs(fitted["rounded"] * steps - weights).max() <= steps.max() / 2 * 1.01


def test_what_is_never_negative_becomes_signed() -> None:
    model, quantised = small_graph(np.eye(2, dtype=np.float32), [1 / 127] * 2, kind=np.uint8)
    fitted = fit_scales("graph", quantised, model)
    values = constants(fitted)
    assert values["point"].dtype == np.int8
    assert values["step"] == pytest.approx(0.02 * 255 / 127, rel=1e-3)
    onnx.checker.check_model(fitted, full_check=True)
    x = np.array([[5.1, 2.0]], np.float32)  # the largest that uint8 held
    found = ReferenceEvaluator(fitted).run(None, {"x": x})[0]
    assert found == pytest.approx(x, abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"point": 3}, "no zero point but 0, NNCF gave 3 to 3", id="zero point"),
        pytest.param({"scale": [1.0, 1e5]}, "float16 holds values up to 65504", id="scale"),
    ],
)
def test_scales_that_tensorrt_has_not(change: dict[str, Any], message: str) -> None:
    model, quantised = small_graph(np.ones((2, 2), np.float32), **({"scale": [1.0, 1.0]} | change))
    with pytest.raises(QuantizeError, match=message):
        fit_scales("graph", quantised, model)
