"""TensorRT: NVIDIA's own parser and builder on real graphs; and what is said without a GPU.

The builder is that of TensorRT for RTX, which needs no GPU. Nothing here runs an engine.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cris_edge import engines
from cris_edge.bundle import PHRASES, Bundle, GraphSpec, TensorSpec
from cris_edge.engines import ENGINES, answers, choose_engine, installed, open_engine
from cris_edge.engines.tensorrt_build import Job, Progress, build_plan, check_version, is_rtx
from cris_edge.errors import EngineError
from cris_edge.segmenter import SHIPPED
from export.graphs import split
from export.onnx import export_onnx
from tests.scenes import small_model, small_tokenizer

cuda = pytest.importorskip("cris_edge.engines.cuda", reason="needs cuda-python")
without_gpu = pytest.mark.skipif(cuda.answers(), reason="a GPU is there")
CAPABILITY = "8.6"
ORIN = cuda.Device("Orin", "8.7", 8)
SPEC = GraphSpec(
    "pair.onnx",
    (TensorSpec("a", "float32", (PHRASES, 4)), TensorSpec("b", "float32", (1, 4))),
    (TensorSpec("c", "float32", (PHRASES, 4)),),
)


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="no wheel of TensorRT for RTX is installed"
    )


def graph_of(operator: str = "Add", name: str = "sum", *, fixed: bool = False) -> bytes:
    """c = a ∘ b."""
    first: list[int | str] = [2 if fixed else PHRASES, 4]
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"], name)],
        "pair",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, first),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4]),
        ],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, first)],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def test_graphs_of_a_model_are_built(trt: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    for name, source in split(small_model(small_tokenizer())).items():
        path = tmp_path / f"{name}.onnx"
        export_onnx(source, path, "float32")
        job = Job(path.read_bytes(), source.spec(path.name), CAPABILITY)
        plan = build_plan(trt, job, lines.append)
        assert len(plan.content) > 1000


def test_a_plan_is_for_one_to_eight_phrases(trt: Any) -> None:
    from cris_edge.engines.tensorrt_build import _configure, _parse, logger_of

    job = Job(graph_of(), SPEC, CAPABILITY)
    builder = trt.Builder(logger_of(trt).object)
    assert tuple(_parse(trt, builder, job).get_input(0).shape) == (-1, 4)
    config = _configure(trt, builder, job)
    assert config.num_optimization_profiles == 1
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_times_of_one_build_serve_the_next(trt: Any) -> None:
    first = build_plan(trt, Job(graph_of(), SPEC, CAPABILITY), str)
    second = build_plan(trt, Job(graph_of(), SPEC, CAPABILITY, first.timing), str)
    assert second.content
    assert build_plan(trt, Job(graph_of(), SPEC, CAPABILITY, b"damaged"), str).content


def test_errors_of_the_parser_name_the_node(trt: Any) -> None:
    job = Job(graph_of("NoSuchOperator", "the_odd_one"), SPEC, CAPABILITY)
    with pytest.raises(EngineError, match=r"cannot read pair\.onnx") as caught:
        build_plan(trt, job, str)
    assert "the_odd_one (NoSuchOperator)" in str(caught.value)
    assert "--target jetson" in str(caught.value)


def test_what_is_no_graph_is_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match=r"cannot read pair\.onnx"):
        build_plan(trt, Job(b"no graph", SPEC, CAPABILITY), str)


@pytest.mark.parametrize("place", ["w.bin", "../w.bin", "{folder}/w.bin"])
def test_weights_in_other_files_are_not_read(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "inner")
    model = onnx.load_from_string(graph_of())
    tensor = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[1, 4], data_location=1)
    tensor.external_data.add(key="location", value=place.format(folder=tmp_path))
    model.graph.initializer.append(tensor)
    del model.graph.input[1]
    spec = replace(SPEC, inputs=SPEC.inputs[:1])
    with pytest.raises(EngineError, match="Failed to import initializer: b"):
        build_plan(trt, Job(model.SerializeToString(), spec, CAPABILITY), str)


@pytest.mark.parametrize("wrong", ["type", "name", "shape", "batch"])
def test_a_graph_that_is_not_as_specified_is_refused(trt: Any, wrong: str) -> None:
    changed = {
        "type": TensorSpec("a", "int64", (PHRASES, 4)),
        "name": TensorSpec("x", "float32", (PHRASES, 4)),
        "shape": TensorSpec("a", "float32", (PHRASES, 5)),
        "batch": TensorSpec("a", "float32", (PHRASES, 4)),
    }
    spec = replace(SPEC, inputs=(changed[wrong], SPEC.inputs[1]))
    graph = graph_of(fixed=wrong == "batch")
    with pytest.raises(EngineError, match="the bundle says"):
        build_plan(trt, Job(graph, spec, CAPABILITY), str)


def test_an_unknown_capability_is_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match=r"does not build for the compute capability 1\.0"):
        build_plan(trt, Job(graph_of(), SPEC, "1.0"), str)


def test_progress_is_told_and_a_build_can_be_stopped() -> None:
    lines: list[str] = []
    progress = Progress("photo.onnx", lines.append)
    progress.start("timing", 10)
    assert progress.step("timing", 0)
    assert lines == [], "no line at once"
    progress._last -= 100
    assert progress.step("timing", 4)
    assert lines[0].startswith("photo.onnx: timing 5/10, ")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    stopped = Progress("photo.onnx", interrupt)
    stopped._last -= 100
    assert not stopped.step("timing", 0)
    assert stopped.stopped


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0.19"])
def test_a_tensorrt_that_is_too_old_is_refused(version: str) -> None:
    module = types.SimpleNamespace(__name__="tensorrt", __version__=version)
    with pytest.raises(EngineError, match=r"too old; 10\.3 or later.*JetPack 6\.1"):
        check_version(module)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.1"])
def test_supported_versions(version: str) -> None:
    check_version(types.SimpleNamespace(__name__="tensorrt", __version__=version))


def test_plans_differ_by_all_that_matters(trt: Any) -> None:
    from cris_edge.engines.tensorrt import plan_entry, timing_entry

    orin = ORIN
    known = {timing_entry(trt, orin).file}
    batch = replace(SPEC, outputs=(TensorSpec("c", "float32", (PHRASES, 5)),))
    older = types.SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
    newer = types.SimpleNamespace(__name__="tensorrt", __version__="10.4.0")
    for module, device, graph, spec in (
        (trt, orin, b"graph", SPEC),
        (older, orin, b"graph", SPEC),
        (newer, orin, b"graph", SPEC),
        (trt, replace(orin, name="Thor"), b"graph", SPEC),
        (trt, replace(orin, capability="11.0"), b"graph", SPEC),
        (trt, replace(orin, multiprocessors=16), b"graph", SPEC),
        (trt, orin, b"other", SPEC),
        (trt, orin, b"graph", batch),
    ):
        name = plan_entry(module, device, graph, spec).file
        assert name not in known
        known.add(name)
        assert plan_entry(module, device, graph, spec).file == name


def test_phrases_are_counted() -> None:
    from cris_edge.engines.tensorrt import count_phrases

    def arrays(rows: int, columns: int = 4) -> dict[str, Any]:
        one = np.zeros((1, 4), np.float32)
        return {"a": np.zeros((rows, columns), np.float32), "b": one}

    assert [count_phrases(SPEC, arrays(rows)) for rows in (1, 8)] == [1, 8]
    for bad in (arrays(0), arrays(9)):
        with pytest.raises(EngineError, match="expected 1 to 8 phrases"):
            count_phrases(SPEC, bad)
    # Of the device or not, a tensor must fit.
    device = cuda.DeviceTensor(cuda.Block(0, 0), (1, 5), np.dtype("float32"))
    with pytest.raises(EngineError, match="b must be float32"):
        count_phrases(SPEC, arrays(1) | {"b": device})


@without_gpu
def test_without_a_driver_it_says_so(trt: Any, tmp_path: Path) -> None:
    from cris_edge.engines.tensorrt import TensorRt

    assert is_rtx(trt)
    with pytest.raises(EngineError, match=r"(driver|no GPU).*else take another engine"):
        TensorRt(trt, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_computes_in_the_types_of_the_graphs_alone() -> None:
    from cris_edge.engines.tensorrt import TensorRt

    assert "types of the bundle's graphs" in str(TensorRt.refuses(TensorRt.__new__(TensorRt), "b"))


@without_gpu
def test_auto_passes_it_over_without_a_gpu() -> None:
    assert next(iter(ENGINES)) == "tensorrt"
    assert not answers("tensorrt")
    assert answers("onnxruntime")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As where a GPU is: the engine's module, of which every part but the device is real."""
    module = importlib.import_module("cris_edge.engines.tensorrt")
    monkeypatch.setattr(engines, "installed", lambda: ["tensorrt", "onnxruntime"])
    monkeypatch.setattr(engines, "answers", lambda name: True)
    return module


def test_bundles_for_others_are_passed_over(
    on_a_gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_a_gpu.TensorRt, "__init__", lambda self: None)
    shipped = Bundle.open(SHIPPED)
    assert choose_engine("auto", shipped).name == "onnxruntime"
    with pytest.raises(EngineError, match=r"was built for onnx; run: .*--target jetson"):
        choose_engine("tensorrt", shipped)
    assert choose_engine("auto", replace(shipped, target="jetson")).name == "tensorrt"


def test_one_that_is_too_old_stops_its_own_bundles_alone(
    on_a_gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = types.SimpleNamespace(__name__="tensorrt", __version__="8.6.1")
    monkeypatch.setitem(sys.modules, "tensorrt", older)
    shipped = Bundle.open(SHIPPED)
    assert choose_engine("auto", shipped).name == "onnxruntime"
    with pytest.raises(EngineError, match=r"TensorRT .*8\.6\.1"):
        choose_engine("auto", replace(shipped, target="jetson"))


@pytest.mark.skipif("tensorrt" in installed(), reason="TensorRT is installed")
def test_without_tensorrt_it_says_what_to_install() -> None:
    with pytest.raises(EngineError, match=r"pip install 'cris-edge\[tensorrt\]'"):
        open_engine("tensorrt")


def test_nothing_is_imported_to_see_what_is_installed() -> None:
    code = (
        "import sys; from cris_edge.engines import installed; installed(); "
        "print([n for n in sys.modules if n.split('.')[0] in ('tensorrt', 'cuda')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
