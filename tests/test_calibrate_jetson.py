"""The target `jetson` in INT8: strongly typed Q/DQ graphs that NVIDIA's parser and builder take.

NNCF quantises the small model once; most tests look at the bundle that comes of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import quantize.job
from cris_edge import EngineError, Segmenter
from cris_edge.bundle import Bundle, GraphSpec, TensorSpec
from export.errors import ExportError
from export.tensorrt import SINGLE, VERSIONS, rehearse
from quantize.graphs import LAYERS, MOVERS
from quantize.jetson import MIN_SCALE, OPSET
from quantize.job import Job, calibrate
from quantize.report import main as report_main
from quantize.speed import Milliseconds
from quantize.written import WrittenGraph, open_judged, open_written
from tests.scenes import PHRASES, photo
from tests.test_jetson import (
    TARGETS,
    Refused,
    build_engine,
    check_for_10_3,
    kinds,
    on_x86,
)
from tests.test_scales import make
from training.data.samples import Sample
from training.selection import SceneData

GRAPHS = ("photo", "phrase", "pair")


def silent(line: str) -> None:
    """Says nothing."""


def job(out: Path, **fields: Any) -> Job:
    plain = Job(
        out=out,
        data=SceneData(2),
        target="jetson",
        budget=100.0,
        samples=6,
        threads=1,
    )
    return dataclasses.replace(plain, **fields)


@pytest.fixture(scope="module")
def quantised() -> Iterator[dict[str, onnx.ModelProto]]:
    """What NNCF made of each graph: once for all tests, which have the same model and samples."""
    found: dict[str, onnx.ModelProto] = {}
    anew = quantize.job.quantise

    def once(name: str, *others: Any) -> onnx.ModelProto:
        if name not in found:
            found[name] = anew(name, *others)
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize.job, "quantise", once)
        yield found


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the run said that made the bundle."""
    return []


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    sensitive_bundle: Path,
    quantised: dict[str, onnx.ModelProto],
    said: list[str],
) -> Bundle:
    out = tmp_path_factory.mktemp("jetson") / "int8"
    return calibrate(job(out, bundle=sensitive_bundle), said.append)


# --- the graphs ---


class Wired:
    """A graph: who makes what, constants, types."""

    def __init__(self, path: Path):
        self.graph = onnx.load(path).graph
        self.makers = {output: node for node in self.graph.node for output in node.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.types = kinds(path)

    def nodes(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in operators]

    def values(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[name])

    def dequantised(self, node: onnx.NodeProto) -> list[str]:
        """What a node reads of DequantizeLinear, over nodes that only move values, or cast them."""
        found, waiting = [], list(node.input)
        while waiting:
            maker = self.makers.get(waiting.pop())
            if maker is None:
                continue
            if maker.op_type == "DequantizeLinear":
                found.append(maker.output[0])
            elif maker.op_type in ("Cast", *MOVERS):
                waiting += maker.input
        return found

    def holds_weights(self, value: str) -> bool:
        maker = self.makers.get(value)
        return maker is not None and maker.input[0] in self.constants


def wired(bundle: Bundle) -> dict[str, Wired]:
    return {name: Wired(bundle.path(bundle.graphs[name].file)) for name in GRAPHS}


def test_quantisers_are_symmetric_and_in_half(bundle: Bundle) -> None:
    for name, graph in wired(bundle).items():
        quantisers = graph.nodes("QuantizeLinear", "DequantizeLinear")
        assert len(quantisers) > 5, name
        for node in quantisers:
            scale, zero = graph.values(node.input[1]), graph.values(node.input[2])
            assert zero.dtype == np.int8
            assert zero.shape == scale.shape
            assert not zero.any()
            assert scale.dtype == np.float16
            assert scale.min() >= MIN_SCALE
            kinds_of = TensorProto.FLOAT16, TensorProto.INT8
            expected = kinds_of if node.op_type == "QuantizeLinear" else kinds_of[::-1]
            assert (graph.types[node.input[0]], graph.types[node.output[0]]) == expected


def test_weights_have_a_scale_a_channel_and_activations_have_one(bundle: Bundle) -> None:
    seen = set()
    for graph in wired(bundle).values():
        for node in graph.nodes(*LAYERS):
            weights = [value for value in node.input if graph.holds_weights(value)]
            if not weights:
                continue
            (value,) = weights
            maker = graph.makers[value]
            integers, scale = graph.values(maker.input[0]), graph.values(maker.input[1])
            assert integers.dtype == np.int8
            # All of the range, of which CPUs get half, but for -128; untrained layers may be 0.
            assert np.abs(integers.astype(int)).max() in (0, 127)
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            channels = integers.shape[0 if node.op_type == "Conv" or transposed else -1]
            assert scale.size == channels
            # Of several where they are joined.
            activations = set(graph.dequantised(node)) - {value}
            scales = [graph.values(graph.makers[one].input[1]) for one in activations]
            assert {scale.shape for scale in scales} == {()}
            seen.add(node.op_type)
    assert seen == {"Conv", "Gemm", "MatMul"}


def test_what_has_no_weights_stays_in_float(bundle: Bundle) -> None:
    """Norms and softmax in float32; attention, the kernel's product and the words in half."""
    products = 0
    for graph in wired(bundle).values():
        for node in graph.nodes(*SINGLE):
            assert not graph.dequantised(node)
            found = {graph.types[tensor] for tensor in (*node.input, *node.output) if tensor}
            assert found == {TensorProto.FLOAT}
        for node in graph.nodes("MatMul"):
            if not any(graph.holds_weights(value) for value in node.input):
                makers = [graph.makers[value] for value in node.input if value in graph.makers]
                assert "DequantizeLinear" not in {maker.op_type for maker in makers}
                products += 1
        for node in graph.nodes(*LAYERS):
            found = {graph.types[tensor] for tensor in (*node.input, *node.output) if tensor}
            assert found == {TensorProto.FLOAT16}
    assert products >= 5
    phrase = wired(bundle)["phrase"]
    tables = [node for node in phrase.nodes("Gather") if node.input[0] in phrase.constants]
    assert TensorProto.FLOAT16 in {phrase.types[node.input[0]] for node in tables}


def test_inputs_and_outputs_are_those_of_the_float_bundle(
    bundle: Bundle, sensitive_bundle: Path
) -> None:
    assert bundle.graphs == Bundle.open(sensitive_bundle).graphs


def test_the_frame_is_quantised_after_its_normalisation(bundle: Bundle) -> None:
    graph = wired(bundle)["photo"]
    reached, chain = {"frame"}, []
    for node in graph.graph.node:
        if reached & set(node.input) and node.op_type != "Conv":
            reached |= set(node.output)
            chain.append((node.op_type, graph.types[node.output[0]]))
    names = [name for name, _ in chain]
    place = names.index("QuantizeLinear")
    assert chain[place - 1] == ("Cast", TensorProto.FLOAT16)
    assert {kind for _, kind in chain[: place - 1]} == {TensorProto.FLOAT}
    assert place >= 5


# --- NVIDIA's parser and builder ---


@on_x86
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_nvidias_builder_takes_every_graph(
    bundle: Bundle, graph: str, capability: str | None
) -> None:
    path = bundle.path(bundle.graphs[graph].file)
    assert build_engine(path, capability) > 0.8 * path.stat().st_size


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_node_fails_in_tensorrt_10_3(bundle: Bundle, graph: str) -> None:
    check_for_10_3(bundle.path(bundle.graphs[graph].file), OPSET)


@on_x86
def test_the_run_says_that_nvidias_builder_took_the_graphs(said: list[str]) -> None:
    (line,) = [line for line in said if "TensorRT for RTX" in line]
    assert line.startswith("photo, phrase, pair: taken by the parser and builder")


def with_a_scale_in_float32(model: onnx.ModelProto) -> None:
    name = next(n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@on_x86
def test_a_graph_that_the_builder_refuses(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.path("photo.onnx"))
    with_a_scale_in_float32(model)
    with pytest.raises(Refused):
        build_engine(model, None)
    onnx.save(model, tmp_path / "photo.onnx")
    broken = dataclasses.replace(bundle, folder=tmp_path, graphs={"photo": bundle.graphs["photo"]})
    with pytest.raises(ExportError, match="photo: TensorRT for RTX refuses the graph"):
        rehearse(broken, lambda line: None)


# --- what it is worth ---


def test_the_bundle_tells_what_it_is(bundle: Bundle) -> None:
    assert bundle.precision == "int8"
    assert bundle.about["target"] == {"name": "jetson", "opset": OPSET, "tensorrt": VERSIONS}
    report = bundle.about["quantization"]
    assert report["times_faster"] is None
    assert "an NVIDIA GPU" in report["not_timed"]
    assert report["int8"]["milliseconds"] is None
    assert report["forced_in_spite_of"] == []
    assert "products of two activations" in report["layers"]["always_float"]
    # The sum of the mask head's taps; the kernel's product is one of two activations.
    assert report["layers"]["float"] == ["pair: projector"]
    assert report["layers"]["int8"] > 10
    assert "verification" not in bundle.about


def test_where_a_gpu_is_the_float_model_in_half_is_raced(
    tmp_path: Path,
    sensitive_bundle: Path,
    quantised: dict[str, onnx.ModelProto],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raced: list[int] = []

    def race(segmenters: Sequence[Segmenter], sample: Sample) -> list[Milliseconds]:
        raced.extend(one.bundle.size for one in segmenters if one.bundle is not None)
        return [{"photo": 1.0, "phrase": 1.0, "pair": 2.0, "total": total} for total in (4.0, 2.0)]

    def opened(folder: Path, engine: str, threads: int | None = None) -> Segmenter:
        """By what is here in the place of TensorRT."""
        if engine == "tensorrt":
            return open_written(Bundle.open(folder), threads)
        return Segmenter(folder, engine, threads)

    monkeypatch.setattr(quantize.job, "tensorrt_there", lambda: True)
    monkeypatch.setattr(quantize.job, "Segmenter", opened)
    monkeypatch.setattr(quantize.job, "race", race)
    out = tmp_path / "half"  # the name of the float model's folder, too
    report = calibrate(job(out, bundle=sensitive_bundle), silent).about["quantization"]
    half, int8 = raced
    assert half > int8
    assert report["times_faster"] == 2
    assert report["timed"].startswith("the float model in fp16, and INT8, ")
    assert "not_timed" not in report


def test_masks_are_nearly_those_of_float(bundle: Bundle, sensitive_bundle: Path) -> None:
    """As nearly as random weights let them be, whose masks hang on every rounding."""
    plain = Segmenter(sensitive_bundle, engine="onnxruntime", threads=1)
    segmenter = open_written(bundle, 1)
    assert segmenter.info.precision == "int8"
    one, two = (which.predict(photo(), PHRASES[0]) for which in (segmenter, plain))
    assert np.abs(one.probability - two.probability).max() > 1e-4
    report = bundle.about["quantization"]
    assert report["mask_agreement"] > 0.8
    assert report["within_budget"]


def test_graphs_are_judged_as_they_are_written(tmp_path: Path) -> None:
    """Fused by ONNX Runtime, the bias comes out as an integer times a scale that is 0 in half."""
    step, path = 1e-3, tmp_path / "conv.onnx"
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["half", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["rounded", "steps", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["dq", "w", "bias"], ["sum"], "conv"),
        helper.make_node("QuantizeLinear", ["sum", "coarse", "zero"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "coarse", "zero"], ["dq2"]),
        helper.make_node("Cast", ["dq2"], ["y"], to=TensorProto.FLOAT),
    ]
    added = {
        "step": np.float16(step),
        "zero": np.int8(0),
        "rounded": np.full((1, 1, 1, 1), 100, np.int8),
        "steps": np.full(1, MIN_SCALE, np.float16),
        "zeros": np.zeros(1, np.int8),
        "bias": np.full(1, 0.5, np.float16),
        "coarse": np.float16(0.01),
    }
    shape = (1, 1, 2, 2)
    path.write_bytes(make(nodes, added, shape).SerializeToString())
    spec = GraphSpec(
        path.name, (TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),)
    )
    found = WrittenGraph(path, spec, 1)({"x": np.full(shape, 100 * step, np.float32)})["y"]
    assert found == pytest.approx(0.5 + 100 * step * 100 * MIN_SCALE, abs=0.01)


def test_layers_go_back_to_half_until_the_budget_is_kept(
    tmp_path: Path,
    bundle: Bundle,
    sensitive_bundle: Path,
    quantised: dict[str, onnx.ModelProto],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([5.0, 4.0, 3.0, 1.0, 3.0])  # with 0, 1, 2, 4 and 3 given back
    monkeypatch.setattr(quantize.job, "loss", lambda before, after: next(losses, 1.0))
    given = job(tmp_path / "int8", bundle=sensitive_bundle, budget=2.0)
    made = calibrate(given, lambda line: None)
    report = made.about["quantization"]
    everything = bundle.about["quantization"]["layers"]["int8"]
    assert report["layers"]["int8"] == everything - 4
    assert len(report["layers"]["float"]) == 5
    assert sum(map(integers, wired(made).values())) == everything - 4
    damage = report["layers"]["sensitivity"]
    assert next(iter(damage)) in report["layers"]["float"]


def integers(graph: Wired) -> int:
    """Layers with int8 weights."""
    return sum(
        any(graph.holds_weights(value) for value in node.input) for node in graph.nodes(*LAYERS)
    )


def test_the_report_has_no_times_for_it(
    bundle: Bundle, sensitive_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, picture = tmp_path / "compared.json", tmp_path / "compared.png"
    named = [str(sensitive_bundle), str(bundle.folder)]
    status = report_main(
        [*named, "--scenes", "1", "--threads", "1", "--json", str(wanted),
         "--picture", str(picture)]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    line = next(line for line in printed.splitlines() if line.startswith(f"{named[1]} "))
    assert line.split()[2:6] == ["-"] * 4
    assert f"{named[1]}: judged by ONNX Runtime, not timed" in printed
    first, second = json.loads(wanted.read_text())["bundles"].values()
    assert first["milliseconds"]["total"] > 0
    assert second["milliseconds"] is None
    assert 0.7 < second["mask_agreement"] < 1
    assert picture.stat().st_size > 1000


def test_a_picture_of_bundles_none_of_which_was_timed(bundle: Bundle, tmp_path: Path) -> None:
    picture = tmp_path / "alone.png"
    arguments = [str(bundle.folder), "--scenes", "1", "--threads", "1", "--picture", str(picture)]
    assert report_main(arguments) == 0
    assert picture.stat().st_size > 1000


def test_graphs_for_tensorrt_are_judged_by_no_other_engine(
    bundle: Bundle, sensitive_bundle: Path
) -> None:
    assert open_judged(bundle.folder, "openvino", 1).info.engine == "onnxruntime"
    assert open_judged(sensitive_bundle, "openvino", 1).info.engine == "openvino"
    # Left to themselves they would give other masks.
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(EngineError, match=f"{engine} would round other .*--target openvino"):
            Segmenter(bundle.folder, engine=engine)
    with pytest.raises(EngineError, match=r"no installed engine runs the bundle .*would round"):
        Segmenter(bundle.folder)
