"""NNCF: a float graph to one with Q/DQ nodes, whose ranges are measured with real samples."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator

import onnx

from cris_edge.errors import CrisEdgeError
from quantize.errors import QuantizeError
from quantize.jetson import fit_scales
from quantize.samples import Feeds

# Nothing that is done here is told to NNCF's makers; it asks for this before it is imported.
os.environ.setdefault("NNCF_CI", "1")

FLOAT = ("LayerNormalization", "Softmax")
"""Nodes that stay in float: the sums of both lose too much."""


def quantise(
    name: str, model: onnx.ModelProto, feeds: Feeds, tensorrt: bool = False
) -> onnx.ModelProto:
    """A graph with Q/DQ nodes at everything that can be INT8 but norms and softmax.

    Weights are symmetric with a scale a channel, activations have one scale a tensor. For CPUs
    activations have a zero point, and weights take half of their range, so that sums of two
    products fit the 16 bits that CPUs without VNNI have for them. For TensorRT all zero points are
    0, and the range is whole.

    Args:
        name: `photo`, `phrase` or `pair`.
        model: the graph in float32.
        feeds: what its ranges are measured with.
        tensorrt: quantise for TensorRT.

    Raises:
        QuantizeError: NNCF refuses the graph, or finds ranges that are no numbers.
    """
    # It takes seconds to import, and with it torch.
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf.set_log_level(logging.ERROR)
    preset = nncf.QuantizationPreset.PERFORMANCE if tensorrt else nncf.QuantizationPreset.MIXED
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE if tensorrt else nncf.OverflowFix.ENABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        # It would rescale layers by their neighbours, and one could not be given back alone.
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )
    try:
        # Its own bars, in the middle of ours.
        with contextlib.redirect_stdout(io.StringIO()):
            quantised: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(_Again(name, feeds)),
                preset=preset,
                subset_size=len(feeds),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(types=list(FLOAT), validate=False),
                advanced_parameters=advanced,
            )
    except CrisEdgeError:
        raise  # a photo or an engine that fails has its own words
    except (nncf.InternalError, nncf.ValidationError, RuntimeError, ValueError) as error:
        raise QuantizeError(f"NNCF cannot quantise the graph {name}: {error}") from error
    _check_scales(name, quantised)
    # What is never negative has come out as uint8 here too: NNCF, which knows CPUs alone, refuses
    # to force a sign on it.
    return fit_scales(name, quantised, model) if tensorrt else quantised


class _Again:
    """What can be gone through many times, as NNCF asks."""

    def __init__(self, graph: str, feeds: Feeds):
        self._graph, self._feeds = graph, feeds

    def __iter__(self) -> Iterator[object]:
        return self._feeds.of(self._graph)

    def __len__(self) -> int:
        return len(self._feeds)


def _check_scales(name: str, model: onnx.ModelProto) -> None:
    used = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in used:
            values = onnx.numpy_helper.to_array(tensor)
            if not (values > 0).all() or not (values < float("inf")).all():
                raise QuantizeError(
                    f"{name}: the scale {tensor.name} is {values.min()} to {values.max()}, "
                    "expected positive numbers; the float model's activations are damaged"
                )
