"""What a segmenter computes in: as the bundle says, or in bfloat16 where OpenVINO's CPU has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import EngineError, Segmenter
from cris_edge.cli import main
from cris_edge.engines import answers, installed, open_engine
from cris_edge.engines.openvino import shared_core
from tests.scenes import PHRASES, photo
from tests.test_segmenter import ENGINES
from tests.test_shipped import PHOTOS, SEEN

CAPABLE = "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
without_bfloat16 = pytest.mark.skipif(CAPABLE, reason="this CPU has bfloat16")
with_bfloat16 = pytest.mark.skipif(not CAPABLE, reason="this CPU has no bfloat16")


@pytest.fixture(scope="module")
def bundle(sensitive_bundle: Path) -> Path:
    return sensitive_bundle


class Recorder:
    """OpenVINO's core on a CPU of other capabilities, which keeps what models are compiled with."""

    def __init__(self, *capabilities: str):
        self._core, self.capabilities = shared_core(), ["FP32", *capabilities]
        self.options: list[dict[str, Any]] = []

    def read_model(self, path: str) -> Any:
        return self._core.read_model(path)

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities

    def compile_model(self, model: Any, device: str, options: dict[str, Any]) -> Any:
        self.options.append(options)
        # On a CPU without bfloat16 OpenVINO goes on in float32.
        return self._core.compile_model(model, device, options)


def record(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> Recorder:
    core = Recorder(*capabilities)
    monkeypatch.setattr("cris_edge.engines.openvino.shared_core", lambda: core)
    return core


# --- as the bundle says ---


@pytest.mark.parametrize("capabilities", [(), ("BF16",)])
def test_openvino_computes_in_float32_whatever_the_cpu_has(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...]
) -> None:
    core = record(monkeypatch, *capabilities)
    segmenter = Segmenter(bundle, engine="openvino", threads=1)
    segmenter.predict(photo(), PHRASES)
    assert {options["INFERENCE_PRECISION_HINT"] for options in core.options} == {"f32"}
    # Of weights in 8 bits; tests/test_shipped.py has the masks.
    assert {options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] for options in core.options} == {"0"}
    assert (segmenter.info.precision, segmenter.info.computed) == ("float32", "float32")


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_stored_in_bytes_are_computed_in_float32(engine: str) -> None:
    info = Segmenter(engine=engine, threads=1).info
    assert (info.precision, info.computed) == ("weights8", "float32")


# --- bfloat16 ---


@pytest.mark.parametrize("engine", ["openvino", "auto"])
def test_every_graph_is_compiled_for_bfloat16_where_it_is_asked_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    core = record(monkeypatch, "BF16")
    segmenter = Segmenter(bundle, engine=engine, threads=1, precision="bfloat16")
    segmenter.predict(photo(), PHRASES)
    assert len(core.options) > 3
    assert {options["INFERENCE_PRECISION_HINT"] for options in core.options} == {"bf16"}
    info = segmenter.info
    assert (info.engine, info.precision, info.computed) == ("openvino", "float32", "bfloat16")


@with_bfloat16
def test_bfloat16_gives_nearly_the_same_masks() -> None:
    exact, rounded = Segmenter(engine="openvino"), Segmenter(precision="bfloat16")
    for name, phrase, _ in SEEN:
        one, other = (made.predict(PHOTOS / name, phrase) for made in (exact, rounded))
        assert (one.mask == other.mask).mean() > 0.99
        assert not np.array_equal(one.probability, other.probability)


# --- what is refused ---


@without_bfloat16
def test_a_cpu_without_bfloat16_is_told_with_what_it_has(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"openvino cannot compute in bfloat16.*FP32.*leave prec"):
        Segmenter(bundle, engine="openvino", precision="bfloat16")


def test_onnxruntime_has_no_bfloat16(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"onnxruntime cannot .* bfloat16.*leave precision out"):
        Segmenter(bundle, engine="onnxruntime", precision="bfloat16")


def test_auto_says_of_every_engine_why_it_cannot(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(monkeypatch, "INT8")
    with pytest.raises(EngineError, match="leave precision out") as caught:
        Segmenter(bundle, precision="bfloat16")
    for name in filter(answers, installed()):
        assert str(open_engine(name).refuses("bfloat16")) in str(caught.value)
    assert "on this CPU, which has FP32, INT8;" in str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8", "", 16])
@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_other_names_are_refused_with_the_one_there_is(
    bundle: Path, engine: str, precision: Any
) -> None:
    with pytest.raises(EngineError, match=rf"no precision {precision!r} .* bfloat16, or leave"):
        Segmenter(bundle, engine=engine, precision=precision)


# --- the command ---


def test_the_command_takes_a_precision(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["--bundle", str(bundle), "--threads", "1", "--precision", "bfloat16"]
    predict = ["predict", *asked, str(PHOTOS / "000000000599.jpg"), "red car"]
    core = record(monkeypatch)
    assert main(predict) == 2
    assert capfd.readouterr().err.startswith("cris-edge: no installed engine can: openvino cannot")
    core.capabilities.append("BF16")
    assert main(predict) == 0
    assert {options["INFERENCE_PRECISION_HINT"] for options in core.options} == {"bf16"}
