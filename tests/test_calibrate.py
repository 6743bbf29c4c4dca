"""From a float bundle to INT8: what is written, and what is refused and leaves things as they were.

NNCF quantises the small model once; every test goes on from there.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import quantize.job
from cris_edge import Segmenter
from cris_edge.bundle import Bundle, write_specification
from cris_edge.segmenter import SHIPPED
from quantize.budget import fewest
from quantize.calibrate import main
from quantize.errors import QuantizeError
from quantize.figures import loss
from quantize.graphs import read_float
from quantize.job import Job, calibrate
from quantize.samples import choose
from quantize.speed import Milliseconds
from tests.export_models import OLDER
from tests.scenes import PHRASES, photo, write_folder
from training.errors import DataError
from training.report import today
from training.selection import FolderData, SceneData, select

JUDGED = 2
"""Scenes."""


def silent(line: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def quantised() -> dict[str, onnx.ModelProto]:
    return {}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch, quantised: dict[str, onnx.ModelProto]) -> None:
    """Quantise each graph once for all tests, which have the same model and samples."""
    anew = quantize.job.quantise

    def quantise(name: str, model: onnx.ModelProto, feeds: Any, tensorrt: bool) -> onnx.ModelProto:
        if name not in quantised:
            quantised[name] = anew(name, model, feeds, tensorrt)
        return quantised[name]

    monkeypatch.setattr(quantize.job, "quantise", quantise)


def told(monkeypatch: pytest.MonkeyPatch, times_faster: float) -> None:
    """Have INT8 be so many times faster than float, whatever this machine has to say."""
    times: list[Milliseconds] = [
        {"photo": 1.0, "phrase": 1.0, "pair": 2.0, "total": total}
        for total in (4.0, 4.0 / times_faster)
    ]
    monkeypatch.setattr(quantize.job, "race", lambda segmenters, feeds: times)


def job(bundle: Path, out: Path, **fields: Any) -> Job:
    plain = Job(
        out=out,
        data=SceneData(JUDGED),
        bundle=bundle,
        target="onnx",
        budget=100.0,
        samples=6,
        threads=1,
    )
    return dataclasses.replace(plain, **fields)


@pytest.mark.parametrize(
    ("target", "engine", "nodes"),
    [("openvino", "openvino", "FakeQuantize"), ("onnx", "onnxruntime", "QuantizeLinear")],
)
def test_an_int8_bundle_runs_and_tells_what_it_is(
    tmp_path: Path,
    sensitive_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    engine: str,
    nodes: str,
) -> None:
    told(monkeypatch, times_faster=2.0)
    bundle = calibrate(job(sensitive_bundle, tmp_path / "int8", target=target, zip=True), silent)
    segmenter = Segmenter(tmp_path / "int8.zip", engine=engine, threads=1)
    assert (segmenter.info.precision, segmenter.info.computed) == ("int8", "int8")
    assert bundle.about["target"]["name"] == target
    assert bundle.about["created"] == today()
    assert ("openvino" in bundle.about["versions"]) == (target == "openvino")
    assert {"nncf", "onnx"} <= bundle.about["versions"].keys()
    assert nodes.encode() in b"".join(
        bundle.path(spec.file).read_bytes() for spec in bundle.graphs.values()
    )
    both = segmenter.predict(photo(), PHRASES[:2])
    assert [result.mask.shape for result in both] == [photo().shape[:2]] * 2
    report = bundle.about["quantization"]
    assert report["int8"]["bytes"] < report["float"]["bytes"]
    assert report["within_budget"]
    (before,), (after,) = (report[kind]["scores"].values() for kind in ("float", "int8"))
    assert report["lost"] == pytest.approx(100 * (before["mIoU"] - after["mIoU"]), abs=1e-3)
    assert report["judged"] == {"splits": ["val"], "limit": None}
    assert report["times_faster"] == 2.0
    assert report["timed"].startswith(f"both bundles, {engine} ")
    assert report["forced_in_spite_of"] == []
    assert 0.7 < report["mask_agreement"] <= 1
    assert {"mIoU", "Pr@50", "Pr@90"} <= set(report["int8"]["scores"]["scenes"])
    assert report["layers"]["int8"] > 10
    # The mask head's last layers: the product with the kernel, and the sum of its taps.
    assert [name.partition(":")[0] for name in report["layers"]["float"]] == ["pair", "pair"]
    assert all(name.startswith("scene-1-") for name in report["calibration"]["photos"])
    assert "verification" not in bundle.about
    assert {entry.name for entry in tmp_path.iterdir()} == {"int8", "int8.zip"}
    assert (tmp_path / "int8.zip").stat().st_size < 0.9 * bundle.size


def test_layers_go_back_to_float_until_the_budget_is_kept(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, times_faster=2.0)
    said: list[str] = []

    losses = iter([5.0, 4.0, 3.0, 1.0, 3.0])  # with 0, 1, 2, 4 and 3 given back
    monkeypatch.setattr(quantize.job, "loss", lambda before, after: next(losses, 1.0))
    chart = tmp_path / "chart.png"
    given = job(sensitive_bundle, tmp_path / "int8", budget=2.0, chart=chart)
    report = calibrate(given, said.append).about["quantization"]
    back = report["layers"]["float"]
    damage = report["layers"]["sensitivity"]
    bars = filled(chart)
    assert len(bars) == min(40, len(damage))
    drawn = {name: bar for name, bar in zip(damage, bars, strict=False) if bar is not None}
    assert len(drawn) > 5
    assert drawn == {name: name not in back for name in drawn}
    assert list(damage.values()) == sorted(damage.values(), reverse=True)
    assert 4 <= len(back) <= 6  # of the head's two some may be harmless
    assert report["lost"] == 1.0
    kept = [name for name in damage if name not in back]
    usual = [name for name in back if name not in ("pair: node_matmul", "pair: projector")]
    assert min(damage[name] for name in usual) >= max(damage[name] for name in kept)
    assert any("layers in INT8" in line for line in said)


def filled(chart: Path) -> list[bool | None]:
    """Whether each bar of a chart of sensitivity is filled, or None of one too short to see."""
    picture = cv2.imread(str(chart)).min(axis=2) < 240
    edge = picture[60:, 430]  # where bars begin
    starts = np.flatnonzero(edge[1:] & ~edge[:-1]) + 61
    return [bool(picture[y + 6, 434]) if picture[y, 436] else None for y in starts]


# --- what is refused ---


def test_a_chart_in_the_bundles_folder_is_refused(tmp_path: Path, sensitive_bundle: Path) -> None:
    out = tmp_path / "int8"
    with pytest.raises(QuantizeError, match="lies in the bundle's folder"):
        calibrate(job(sensitive_bundle, out, chart=out / "charts" / "layers.png"), silent)
    assert not list(tmp_path.iterdir())


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_timed(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize.job, "loss", lambda before, after: 5.0)
    monkeypatch.delattr(quantize.job, "race")
    chart = tmp_path / "chart.png"
    with pytest.raises(QuantizeError, match=r"cannot be kept: the loss is 5\.00.*--force"):
        calibrate(job(sensitive_bundle, tmp_path / "int8", budget=2.0, chart=chart), silent)
    # What tells why is there, and nothing else.
    assert [entry.name for entry in tmp_path.iterdir()] == ["chart.png"]


def test_a_bundle_that_is_not_faster_is_refused_unless_forced(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, times_faster=0.5)
    out = tmp_path / "int8"
    out.mkdir()
    (out / "bundle.json").write_text(OLDER)
    with pytest.raises(QuantizeError, match=r"not faster.*8\.00 ms.*4\.00.*--force"):
        calibrate(job(sensitive_bundle, out), silent)
    assert (out / "bundle.json").read_text() == OLDER
    assert [entry.name for entry in tmp_path.iterdir()] == ["int8"]
    forced = calibrate(job(sensitive_bundle, out, force=True), silent)
    (reason,) = forced.about["quantization"]["forced_in_spite_of"]
    assert "not faster" in reason
    assert "--graphs" not in reason  # none of the three is faster


def test_the_graph_that_is_faster_may_be_quantised_alone(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = {"photo": 0.5, "phrase": 1.0, "pair": 3.0, "total": 4.5}
    faster = {"photo": 0.5, "phrase": 1.0, "pair": 2.0, "total": 3.5}
    plain = {"photo": 1.0, "phrase": 1.0, "pair": 2.0, "total": 4.0}
    out = tmp_path / "int8"
    monkeypatch.setattr(quantize.job, "race", lambda segmenters, feeds: [plain, slower])
    with pytest.raises(QuantizeError, match="by graph it is with --graphs photo"):
        calibrate(job(sensitive_bundle, out), silent)
    monkeypatch.setattr(quantize.job, "race", lambda segmenters, feeds: [plain, faster])
    bundle = calibrate(job(sensitive_bundle, out, graphs=("photo",)), silent)
    nodes = {
        name: {node.op_type for node in onnx.load(bundle.path(spec.file)).graph.node}
        for name, spec in bundle.graphs.items()
    }
    assert [name for name in nodes if "QuantizeLinear" in nodes[name]] == ["photo"]
    report = bundle.about["quantization"]["layers"]
    assert report["int8"] > 5
    assert {name.partition(":")[0] for name in report["float"]} == {"phrase", "pair"}


def test_a_full_disk_leaves_the_older_bundle(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "int8"
    out.mkdir()
    (out / "bundle.json").write_text(OLDER)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(QuantizeError, match=r"cannot be written: No space left"):
        calibrate(job(sensitive_bundle, out), silent)
    assert (out / "bundle.json").read_text() == OLDER
    assert [entry.name for entry in tmp_path.iterdir()] == ["int8"]


def altered(bundle: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a bundle whose photo graph is changed."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "photo.onnx")
    change(model)
    onnx.save(model, folder / "photo.onnx")
    about = json.loads((folder / "bundle.json").read_text())
    write_specification(folder, {k: v for k, v in about.items() if k != "files"})
    return folder


def spoil(model: onnx.ModelProto) -> None:
    """Make a bias no number."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith("bias"))
    values = np.full_like(numpy_helper.to_array(tensor), np.nan)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def round_frame(model: onnx.ModelProto) -> None:
    """Put a pair of Q/DQ nodes before the first output."""
    graph = model.graph
    name = graph.output[0].name
    maker = next(node for node in graph.node if name in node.output)
    maker.output[list(maker.output).index(name)] = "exact"
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value == name:
                node.input[place] = "exact"
    graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "step"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    graph.node.append(onnx.helper.make_node("QuantizeLinear", ["exact", "step", "zero"], ["q"]))
    graph.node.append(onnx.helper.make_node("DequantizeLinear", ["q", "step", "zero"], [name]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(spoil, r"no number in .* weights are damaged", id="no numbers"),
        pytest.param(round_frame, r"photo is quantised already.*float bundle", id="quantised"),
    ],
)
def test_graphs_that_cannot_be_calibrated(
    tmp_path: Path,
    sensitive_bundle: Path,
    change: Callable[[onnx.ModelProto], None],
    message: str,
) -> None:
    bundle = altered(sensitive_bundle, tmp_path / "altered", change)
    with pytest.raises(QuantizeError, match=message):
        calibrate(job(bundle, tmp_path / "int8"), silent)
    assert [entry.name for entry in tmp_path.iterdir()] == ["altered"]


def with_training_photos(root: Path, count: int) -> FolderData:
    """A data folder of four photos: the first `count` to train on, the last one to judge by."""
    write_folder(root)
    for split, wanted in (("train", range(count)), ("val", range(3, 4))):
        path = root / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["images"] = [one for one in content["images"] if one["id"] in wanted]
        content["annotations"] = [
            one for one in content["annotations"] if one["image_id"] in wanted
        ]
        path.write_text(json.dumps(content))
    return FolderData(root)


def part(miou: float) -> Any:
    return SimpleNamespace(evaluation=SimpleNamespace(scores=SimpleNamespace(miou=miou)))


def test_what_is_lost_is_that_of_the_part_that_loses_most() -> None:
    before = [part(0.5), part(0.4)]
    assert loss(before, [part(0.45), part(0.6)]) == pytest.approx(5)
    assert loss(before, [part(0.6), part(0.37)]) == pytest.approx(3)
    assert loss(before, [part(0.52), part(0.41)]) == pytest.approx(-1)


def test_it_is_calibrated_with_as_many_photos_as_can_be(tmp_path: Path) -> None:
    data = with_training_photos(tmp_path / "data", 3)
    judged = select(data)
    photos = [[s.photo.id for s in choose(data, judged, count)] for count in (2, 3, 7)]
    assert photos[0] == [0, 2]  # spread evenly
    assert photos[1] == [0, 1, 2]
    assert photos[2] == [0, 1, 2, 0, 1, 2, 0]
    chosen = choose(data, judged, 7)
    assert len({(s.photo.id, s.text, s.instance.id) for s in chosen}) == 7
    again = choose(data, judged, 7)
    assert [(s.photo.id, s.text) for s in again] == [(s.photo.id, s.text) for s in chosen]


def test_data_are_looked_at_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize.job, "export", None)
    nowhere = FolderData(tmp_path / "nowhere")
    given = job(tmp_path, tmp_path / "int8", data=nowhere, checkpoint=tmp_path / "x")
    with pytest.raises(DataError, match=r"instances_val\.json is missing"):
        calibrate(dataclasses.replace(given, bundle=None), silent)
    assert not (tmp_path / "int8").exists()


def test_one_photo_is_not_enough(tmp_path: Path, sensitive_bundle: Path) -> None:
    data = with_training_photos(tmp_path / "data", 1)
    with pytest.raises(QuantizeError, match=r"at least two photos.*have 1"):
        calibrate(job(sensitive_bundle, tmp_path / "int8", data=data), silent)


def test_data_without_a_training_split(tmp_path: Path, sensitive_bundle: Path) -> None:
    data = with_training_photos(tmp_path / "data", 3)
    (tmp_path / "data" / "instances_train.json").unlink()
    with pytest.raises(QuantizeError, match=r"a training split, .* the data have 0"):
        calibrate(job(sensitive_bundle, tmp_path / "int8", data=data), silent)


def test_what_is_judged_is_never_calibrated_with(tmp_path: Path, sensitive_bundle: Path) -> None:
    data = FolderData(write_folder(tmp_path / "data"))  # both splits have the same photos
    with pytest.raises(QuantizeError, match=r"not judged by; the data have 0"):
        calibrate(job(sensitive_bundle, tmp_path / "int8", data=data), silent)


def test_the_command_ends_with_one_line_and_status_2(
    tmp_path: Path, sensitive_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(sensitive_bundle), "--scenes", "2", "--out", str(tmp_path / "q")]
    assert main([*arguments, "--budget", "-1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "0 points of mIoU or more, got -1" in error
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m quantize.calibrate --checkpoint" in capsys.readouterr().out


# --- what ends it ---


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can catch SIGTERM there")
def test_sigterm_leaves_nothing_behind(tmp_path: Path, sensitive_bundle: Path) -> None:
    out = tmp_path / "int8"
    out.mkdir()
    (out / "bundle.json").write_text(OLDER)
    command = [sys.executable, "-m", "quantize.calibrate", "--bundle", str(sensitive_bundle)]
    options = ["--scenes", "50", "--threads", "1", "--out", str(out)]
    running = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        while running.poll() is None and not list(tmp_path.glob(".int8.*")):
            time.sleep(0.05)
        assert list(tmp_path.glob(".int8.*")), "it ended by itself"
        running.terminate()
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 128 + signal.SIGTERM
    assert errors.endswith("quantize.calibrate: ended by SIGTERM\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["int8"]
    assert (out / "bundle.json").read_text() == OLDER


# --- the budget ---


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 7, 18, 19])
def test_the_fewest_layers_are_given_back(needed: int) -> None:
    assert fewest(20, lambda back: 0.5 if back >= needed else 3.0, 1.0) == needed


def test_a_budget_that_nothing_keeps() -> None:
    with pytest.raises(QuantizeError, match=r"3\.00 with all layers.*at best 1\.50 with 19 of 20"):
        fewest(20, lambda back: 3.0 if back < 10 else 1.5, 1.0)


def test_a_bundle_of_int8_is_not_quantised_again(
    tmp_path: Path, sensitive_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, times_faster=2.0)
    calibrate(job(sensitive_bundle, tmp_path / "int8"), silent)
    path = tmp_path / "int8" / "bundle.json"
    about = json.loads(path.read_text())
    assert about["precision"] == "int8"
    for target in ("onnx", "jetson"):  # of which engines for CPUs would refuse the second
        path.write_text(json.dumps(about | {"target": about["target"] | {"name": target}}))
        with pytest.raises(QuantizeError, match="quantised already"):
            calibrate(job(tmp_path / "int8", tmp_path / "again"), silent)


def test_weights_in_8_bits_are_read_as_the_floats_that_they_stand_for() -> None:
    bundle = Bundle.open(SHIPPED)
    assert bundle.precision == "weights8"
    model = read_float(bundle)["photo"]
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}
    side = bundle.letterbox.size
    frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    stored, read = (
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
            None, {"frame": frame}
        )
        for graph in (bundle.path("photo.onnx").read_bytes(), model.SerializeToString())
    )
    for expected, found in zip(stored, read, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
