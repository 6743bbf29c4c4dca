"""Graphs of which some layers compute in INT8: made of the float graph and the quantised one.

No calibration is needed for that: a layer that is given back takes the inputs and the bias that it
has in the float graph.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
from onnxscript import optimizer

from cris_edge.bundle import Bundle
from export.onnx import strip
from quantize.errors import QuantizeError

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
UNWEIGHTED = ("products of two activations", "tables of words")
"""Layers without weights to multiply with, which only CPUs compute in INT8."""
MOVERS = (
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Nodes that compute nothing, above which NNCF puts a layer's quantiser."""
HEAD = 2
"""Layers before the logits that stay in float: the kernel's product and the sum of its taps."""


@dataclass(frozen=True)
class Layer:
    """A node that computes in INT8 once it is quantised."""

    graph: str
    node: str
    title: str
    """Of the weights in the model, such as `neck.c3.0`; the node's name where it has none."""

    def __str__(self) -> str:
        return f"{self.graph}: {self.title}"


def read_float(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    """The graphs of a float bundle, their weights in float32.

    Raises:
        QuantizeError: they are quantised already, or not ONNX that computes in float32.
    """
    if bundle.precision == "int8":
        raise QuantizeError(f"{bundle.name} is quantised already; give the float bundle")
    if bundle.precision == "fp16" or bundle.suffixes != {".onnx"}:
        raise QuantizeError(
            f"expected a bundle of ONNX graphs that compute in float32, got {bundle.precision} "
            f"and {', '.join(sorted(bundle.suffixes))}; give a bundle of export.build --target "
            "onnx, or its --checkpoint"
        )
    graphs = {name: _widen(bundle.path(spec.file)) for name, spec in bundle.graphs.items()}
    for name, model in graphs.items():
        if found := [node.op_type for node in model.graph.node if "Quantize" in node.op_type]:
            raise QuantizeError(
                f"the graph {name} is quantised already: it has {len(found)} nodes such as "
                f"{found[0]}; give the float bundle"
            )
    return graphs


def _widen(path: Path) -> onnx.ModelProto:
    """A graph whose weights stored in half, and parts of weights, are constants in float32."""
    model = onnx_ir.from_proto(onnx.load(path, load_external_data=False))
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants(model, input_size_limit=2**40, output_size_limit=2**40)
    finally:
        logger.setLevel(level)
    optimizer.remove_unused_nodes(model)
    return onnx_ir.to_proto(model)


def find_layers(
    name: str, model: onnx.ModelProto, quantised: onnx.ModelProto, weighted: bool = False
) -> list[Layer]:
    """The quantised layers of a graph, from its inputs to its outputs.

    Args:
        name: `photo`, `phrase` or `pair`.
        model: the graph in float32.
        quantised: the same by `quantize.calibration.quantise`.
        weighted: leave out those of `UNWEIGHTED`.
    """
    titles = _titles(model)
    wiring = _Wiring(quantised)
    return [
        Layer(name, node.name, titles[node.name])
        for node in quantised.graph.node
        if wiring.is_layer(node) and wiring.quantisers(node)
        if not weighted or wiring.multiplies_weights(node)
    ]


def head_layers(model: onnx.ModelProto, layers: Iterable[Layer]) -> list[Layer]:
    """Those of the layers that are the last ones on the way to the logits of `pair`."""
    makers = {output: node for node in model.graph.node for output in node.output}
    known = {layer.node: layer for layer in layers if layer.graph == "pair"}
    found: list[str] = []
    waiting = [output.name for output in model.graph.output]
    while waiting and len(found) < HEAD:
        node = makers.get(waiting.pop(0))
        if node is None:
            continue
        if node.op_type in LAYERS and node.name not in found:
            found.append(node.name)
        waiting += node.input
    return [known[node] for node in found if node in known]


def mix(
    model: onnx.ModelProto, quantised: onnx.ModelProto, kept: Collection[str]
) -> onnx.ModelProto:
    """A graph whose named layers compute in INT8 and all others in float.

    What a layer shares with one that stays in INT8, such as keys that were quantised before they
    are split by heads, stays rounded for both.

    Args:
        model: the graph in float32.
        quantised: the same by `quantize.calibration.quantise`.
        kept: names of the nodes that are to be INT8.
    """
    mixed = onnx.ModelProto()
    mixed.CopyFrom(quantised)
    wiring = _Wiring(mixed)
    originals = {node.name: node for node in model.graph.node}
    needed: set[str] = set()
    for node in mixed.graph.node:
        if node.name in kept:
            needed |= wiring.quantisers(node)
    for node in mixed.graph.node:
        for place, value in enumerate(node.input):
            given_back = wiring.is_layer(node) and node.name not in kept
            if value in wiring.dequantised and (given_back or value not in needed):
                node.input[place] = originals[node.name].input[place]
    _restore_constants(mixed, model, kept)
    _drop_unused(mixed)
    strip(mixed)
    return mixed


class _Wiring:
    """Who makes what in a quantised graph."""

    def __init__(self, model: onnx.ModelProto):
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self.dequantised = {
            node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
        }

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether it computes, or looks up rows of a quantised table."""
        return node.op_type in LAYERS or (
            node.op_type == "Gather" and self._holds_weights(node.input[0])
        )

    def multiplies_weights(self, node: onnx.NodeProto) -> bool:
        """Whether it computes with quantised weights of its own."""
        return node.op_type in LAYERS and any(map(self._holds_weights, node.input))

    def _holds_weights(self, value: str) -> bool:
        return value in self.dequantised and self._makers[value].input[0] in self._constants

    def quantisers(self, node: onnx.NodeProto) -> set[str]:
        """Outputs of DequantizeLinear that a node reads, or reads through what moves values."""
        found: set[str] = set()
        waiting = list(node.input)
        while waiting:
            value = waiting.pop()
            if value in self.dequantised:
                found.add(value)
            elif (maker := self._makers.get(value)) and maker.op_type in MOVERS:
                waiting += maker.input
        return found


def _restore_constants(
    mixed: onnx.ModelProto, model: onnx.ModelProto, kept: Collection[str]
) -> None:
    """Give a mixed graph the float weights, and the biases of all but the quantised layers."""
    corrected = {bias for node, bias in _biases(model).items() if node in kept}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in mixed.graph.initializer:
        if tensor.name in values and tensor.name not in corrected:
            tensor.CopyFrom(values[tensor.name])
    present = {tensor.name for tensor in mixed.graph.initializer}
    mixed.graph.initializer.extend(tensor for name, tensor in values.items() if name not in present)


def _biases(model: onnx.ModelProto) -> dict[str, str]:
    """The bias of each layer: its own third input, or what a following Add adds."""
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {
        node.name: node.input[2]
        for node in model.graph.node
        if node.op_type in LAYERS and len(node.input) > 2
    }
    for node in model.graph.node:
        if node.op_type == "Add":
            for bias, other in (node.input, node.input[::-1]):
                maker = makers.get(other)
                if bias in constants and maker is not None and maker.op_type in LAYERS:
                    found.setdefault(maker.name, bias)
    return found


def _titles(model: onnx.ModelProto) -> dict[str, str]:
    """What a layer is called in the model, by its node's name; no two have the same."""
    biases, titles, taken = _biases(model), dict[str, str](), Counter[str]()
    for node in model.graph.node:
        if node.op_type not in (*LAYERS, "Gather"):
            continue
        names = [value for value in (*node.input, biases.get(node.name, "")) if "." in value]
        title = names[0].removeprefix("model.").rpartition(".")[0] if names else node.name
        taken[title] += 1
        titles[node.name] = title if taken[title] == 1 else f"{title} ({taken[title]})"
    return titles


def _drop_unused(model: onnx.ModelProto) -> None:
    """Drop nodes and constants that lead to no output; the nodes' order stays."""
    graph = model.graph
    wanted = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)
