"""The target `jetson`: strongly typed graphs that NVIDIA's own parser and builder take."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
import torch
import trtcheck
from onnx import TensorProto, helper, numpy_helper

from cris_edge import Segmenter
from cris_edge.bundle import MAX_PHRASES, Bundle
from cris_edge.engines import installed
from cris_edge.tokenizer import Tokenizer
from export.build import Job, build, main
from export.errors import ExportError
from export.graphs import split
from export.onnx import OPSET
from export.tensorrt import (
    MAX_HALF,
    SINGLE,
    check_types,
    compute_in_half,
    export_jetson,
    largest_halves,
)
from export.verify import PHRASES
from export.weights import fold_batch_norms, round_to_half
from tests.export_models import PHOTOS, seasoned
from tests.scenes import small_model, small_tokenizer
from tests.test_mobileclip import awake
from training import checkpoint
from training.model import CRIS
from training.model.config import MODELS, STUDENTS
from training.predictor import torch_segmenter

Value = TypeVar("Value")

GRAPHS = ("photo", "phrase", "pair")
SIZES = ("small", "cris_edge_xs", "cris_edge_s")
TARGETS = (None, "SM86")
"""Compute capabilities: the builder's default, and Ampere, which Orin's SM87 is a kind of; the
builder knows no SM87."""
KNOWN = {"Erf"}
"""trtcheck has no evidence of it; onnx-tensorrt lists it, also in float16, from TensorRT 8.4 on."""
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or sys.platform == "darwin",
    reason="NVIDIA's parser and builder without a GPU come as wheels for x86-64 alone",
)


def make_model(name: str, tokenizer: Tokenizer) -> CRIS:
    if name == "small":
        return seasoned(small_model(tokenizer))
    torch.manual_seed(0)
    config = MODELS[name]
    if config in STUDENTS:
        config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    return seasoned(awake(CRIS(config)))


class Lazy(dict[str, Value]):
    """Makes what is asked for, once."""

    def __init__(self, make: Callable[[str], Value]):
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Value:
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, CRIS]:
    return Lazy(lambda name: make_model(name, tokenizer))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the exports say."""
    return []


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory,
    models: dict[str, CRIS],
    tokenizer: Tokenizer,
    lines: list[str],
) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("jetson")

    def make(name: str) -> Bundle:
        path = folder / f"{name}.safetensors"
        checkpoint.save(path, models[name], tokenizer, {})
        build(Job(path, folder / name, "jetson", photos=PHOTOS), lines.append)
        return Bundle.open(folder / name)

    return Lazy(make)


# --- NVIDIA's parser and builder take every graph ---


class Refused(Exception):
    """With what the parser or the builder said."""


def build_engine(model: onnx.ModelProto | Path, capability: str | None) -> int:
    """Parse and build a strongly typed network for 1 to `MAX_PHRASES` phrases: bytes of the engine.

    Raises:
        Refused: the parser or the builder does not take the graph.
    """
    import tensorrt_rtx_bindings as trt

    logger = _Logger()
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    if not parser.parse(content):
        raise Refused([str(parser.get_error(i)) for i in range(parser.num_errors)])
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        if -1 in tensor.shape:
            assert tuple(tensor.shape).index(-1) == 0
            sizes = [(phrases, *tuple(tensor.shape)[1:]) for phrases in (1, 4, MAX_PHRASES)]
            profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    if capability is not None:
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Refused(logger.lines)
    return int(engine.nbytes)


def _Logger() -> Any:
    """Keeps errors; a class of its own cannot be declared before the bindings are imported."""
    import tensorrt_rtx_bindings as trt

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.lines.append(message)

    return Logger()


def check_for_10_3(path: Path, opset: int = OPSET) -> None:
    """Nothing in the graph is known to fail in TensorRT 10.3."""
    config = trtcheck.AnalyzerConfig(target_trt="10.3", discover_entry_point_plugins=False)
    report = trtcheck.analyze(path, config=config)
    serious = [issue for issue in report.issues if issue.severity is trtcheck.Severity.CRITICAL]
    model = onnx.load(path)
    for issue in serious:
        # Behind the times: the parser takes inputs of UINT8 since 8.5, provided a cast reads them.
        assert issue.rule_id == "TRT-DTYPE-UINT8-INPUT", issue
        readers = {node.op_type for node in model.graph.node if issue.node_name in node.input}
        assert readers == {"Cast"}
    unproved = {issue.operator for issue in report.issues if issue.verify_required}
    assert unproved <= KNOWN
    assert report.opset_version == opset <= 20


@on_x86
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", SIZES)
def test_nvidias_builder_takes_every_graph(
    bundles: dict[str, Bundle], name: str, graph: str, capability: str | None
) -> None:
    path = bundles[name].path(bundles[name].graphs[graph].file)
    # An engine without the weights would be smaller.
    assert build_engine(path, capability) > 0.8 * path.stat().st_size


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", SIZES)
def test_no_node_fails_in_tensorrt_10_3(bundles: dict[str, Bundle], name: str, graph: str) -> None:
    check_for_10_3(bundles[name].path(bundles[name].graphs[graph].file))


@on_x86
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cris_edge_m", "cris_r50", "cris_r101"])
def test_nvidias_builder_takes_the_large_models(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    model = round_to_half(fold_batch_norms(make_model(name, tokenizer)))
    for graph, source in split(model).items():
        path = tmp_path / f"{graph}.onnx"
        export_jetson(source, path, "fp16")
        check_for_10_3(path)
        for capability in TARGETS:
            assert build_engine(path, capability) > 0.8 * path.stat().st_size


# --- types ---


def kinds(path: Path) -> dict[str, int]:
    """Element type of every tensor of a graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("name", SIZES)
def test_convolutions_and_products_are_in_half_norms_and_softmax_are_not(
    bundles: dict[str, Bundle], name: str
) -> None:
    seen = set()
    for spec in bundles[name].graphs.values():
        path = bundles[name].path(spec.file)
        types = kinds(path)
        for node in onnx.load(path).graph.node:
            found = {types[tensor] for tensor in (*node.input, *node.output) if tensor}
            if node.op_type in SINGLE:
                assert found == {TensorProto.FLOAT}, node
            elif node.op_type in ("Conv", "MatMul", "Gemm"):
                assert found == {TensorProto.FLOAT16}, node
            seen.add(node.op_type)
    assert {*SINGLE, "Conv", "MatMul", "Gemm"} <= seen


def test_the_frame_is_normalised_in_float32(bundles: dict[str, Bundle]) -> None:
    path = bundles["small"].path("photo.onnx")
    types, reached = kinds(path), {"frame"}
    chain = []
    for node in onnx.load(path).graph.node:
        if reached & set(node.input) and node.op_type != "Conv":
            reached |= set(node.output)
            chain.append((node.op_type, types[node.output[0]]))
    assert chain[0] == ("Cast", TensorProto.FLOAT)
    assert chain[-1] == ("Cast", TensorProto.FLOAT16)
    assert {kind for _, kind in chain[:-1]} == {TensorProto.FLOAT}
    assert len(chain) >= 5


def test_inputs_and_outputs_are_those_of_every_target(
    bundles: dict[str, Bundle], models: dict[str, CRIS]
) -> None:
    for graph, source in split(models["small"]).items():
        assert bundles["small"].graphs[graph] == source.spec(f"{graph}.onnx")


def mixed(path: Path) -> onnx.ModelProto:
    """A graph one of whose weights has become float32 again."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("graph", GRAPHS)
def test_mixed_types_are_refused(bundles: dict[str, Bundle], graph: str) -> None:
    with pytest.raises(ExportError, match="types are not consistent"):
        check_types(mixed(bundles["small"].path(f"{graph}.onnx")), graph)


@on_x86
def test_nvidias_parser_refuses_mixed_types(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(Refused):
        build_engine(mixed(bundles["small"].path("photo.onnx")), None)


# --- values ---


@pytest.mark.parametrize("name", SIZES)
def test_masks_are_those_of_float32(
    bundles: dict[str, Bundle], models: dict[str, CRIS], tokenizer: Tokenizer, name: str
) -> None:
    segmenter = Segmenter(bundles[name].folder, engine="onnxruntime", threads=1)
    reference = torch_segmenter(models[name], tokenizer)
    same, overlaps = [], []
    for photo in PHOTOS:
        expected = reference.predict(photo, PHRASES)
        for result, wanted in zip(segmenter.predict(photo, PHRASES), expected, strict=True):
            same.append((result.mask == wanted.mask).mean())
            if wanted.coverage > 0.01:
                both = (result.mask & wanted.mask).sum()
                overlaps.append(both / (result.mask | wanted.mask).sum())
    assert np.mean(same) >= 0.999
    assert len(overlaps) > 1
    assert min(overlaps) >= 0.98


@pytest.mark.parametrize("name", SIZES)
def test_every_engine_was_compared(bundles: dict[str, Bundle], name: str) -> None:
    verification = bundles[name].about["verification"]
    engines = {engine["engine"]: engine for engine in verification["engines"]}
    assert {"onnxruntime", "openvino"} <= set(engines)
    for engine in engines.values():
        assert engine["masks_mean"] >= 0.999
        # Computed in half: not what float32 gives, or nothing was converted.
        assert engine["logits"] > 1e-5


def small_graph(weight: float) -> onnx.ModelProto:
    """(1, 4) float32 times a weight, then back."""
    constants = [
        numpy_helper.from_array(np.full((4, 4), value, np.float32), name)
        for name, value in (("up", weight), ("down", 1e-4))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["large"], "up_node"),
        helper.make_node("MatMul", ["large", "down"], ["y"], "down_node"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def test_weights_beyond_half_are_refused() -> None:
    compute_in_half(small_graph(MAX_HALF), "graph")
    with pytest.raises(ExportError, match="graph: up: float16 holds values up to 65504"):
        compute_in_half(small_graph(MAX_HALF + 100), "graph")


def test_activations_stay_within_half(bundles: dict[str, Bundle]) -> None:
    for graph, (tensor, peak) in largest_halves(bundles["small"], PHOTOS[:1]).items():
        assert 0 < peak <= MAX_HALF, (graph, tensor)


def test_activations_beyond_half_are_found(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Which the comparison of masks does not see: the two layers together compute the same."""
    model = seasoned(small_model(tokenizer))
    with torch.no_grad():
        feed = model.decoder.layers[0].feed
        # The layer norm behind takes the scale out again.
        feed[0].weight.mul_(2e5)
        feed[0].bias.mul_(2e5)
    checkpoint.save(tmp_path / "model.safetensors", model, tokenizer, {})
    job = Job(tmp_path / "model.safetensors", tmp_path / "bundle", "jetson", photos=PHOTOS[:1])
    with pytest.raises(ExportError, match=r"pair: \w+: float16 holds values up to 65504.*float32"):
        build(job, lambda line: None)
    assert not job.out.exists()
    build(dataclasses.replace(job, precision="float32"), lambda line: None)


# --- the bundle ---


def test_the_description_tells_what_it_is_for(bundles: dict[str, Bundle]) -> None:
    about = bundles["small"].about
    assert about["precision"] == "fp16"
    assert about["target"] == {"name": "jetson", "opset": OPSET, "tensorrt": ">=10.3,<12"}


def test_half_precision_is_half_the_size(
    bundles: dict[str, Bundle], models: dict[str, CRIS], tmp_path: Path
) -> None:
    export_jetson(split(models["small"])["photo"], tmp_path / "photo.onnx", "float32")
    half = bundles["small"].path("photo.onnx").stat().st_size
    assert half < 0.6 * (tmp_path / "photo.onnx").stat().st_size


@pytest.mark.skipif("tensorrt" in installed(), reason="TensorRT is installed: it builds at once")
def test_the_export_says_where_engines_are_built(
    bundles: dict[str, Bundle], lines: list[str]
) -> None:
    assert bundles["small"]
    said = "\n".join(lines)
    assert "the device builds its engines when it loads the bundle for the first time" in said
    assert "largest value in float16" in said


def test_each_target_has_its_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, precision in (("jetson", "float16"), ("onnx", "fp16")):
        arguments = ["--checkpoint", "none", "--out", str(tmp_path / "bundle")]
        assert main([*arguments, "--target", target, "--precision", precision]) == 2
        assert f"the target {target} has the precisions" in capsys.readouterr().err


@pytest.mark.parametrize("name", SIZES[1:])
def test_conversion_leaves_no_float32_between_nodes_in_half(
    bundles: dict[str, Bundle], name: str
) -> None:
    """Float32 is what layer norms, softmax, the frame and the graph's own ends have, no more."""
    for graph, spec in bundles[name].graphs.items():
        path = bundles[name].path(spec.file)
        found = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        single = {
            value.name
            for value in (*found.input, *found.value_info, *found.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        makers = {n.op_type for n in found.node if single & set(n.output)} - {"Cast", *SINGLE}
        assert makers <= ({"Transpose", "Sub", "Div"} if graph == "photo" else set())
        restored = {n.output[0] for n in found.node if n.op_type == "Cast"} & single
        readers = {n.op_type for n in found.node if restored & set(n.input)}
        assert readers <= {*SINGLE, *({"Transpose", "Sub", "Div"} if graph == "photo" else set())}
        large = [
            tensor.name
            for tensor in found.initializer
            if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1000
        ]
        assert not large
