"""A bundle's graphs as one ONNX file: what it computes and carries, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from cris_edge import InputError, Segmenter
from cris_edge.bundle import Bundle
from cris_edge.letterbox import Letterbox
from cris_edge.photo import as_photo
from cris_edge.tokenizer import Tokenizer
from export import whole
from export.build import Job, build, main
from export.errors import ExportError
from export.whole import join, write_whole
from tests.export_models import NOTES, OLDER, PARTS, PHOTOS, make_model
from tests.scenes import small_tokenizer
from training import checkpoint

PRECISIONS = {"clip_resnet": "float32", "student": "float16"}
PHRASES = ["white cat", "the man on the left, in red", "sky"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints"), small_tokenizer()
    paths = {parts: folder / f"{parts}.safetensors" for parts in PARTS}
    for parts, path in paths.items():
        checkpoint.save(path, make_model(parts, tokenizer), tokenizer, NOTES)
    return paths


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    """What each build said."""
    return {}


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoints: dict[str, Path],
    printed: dict[str, list[str]],
) -> dict[str, Path]:
    """Bundles with their one graph beside them, which was put over an older one."""
    folders = {parts: tmp_path_factory.mktemp("whole") / parts for parts in PARTS}
    for parts, out in folders.items():
        out.with_name(f"{parts}.onnx").write_text("an older one")
        printed[parts] = []
        job = Job(checkpoints[parts], out, "onnx", PRECISIONS[parts], PHOTOS[:1], whole=True)
        build(job, printed[parts].append)
    return folders


def beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.onnx")


def run(path: Path, frame: NDArray[np.uint8], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"frame": frame, "tokens": tokens})
    return np.asarray(logits)


# --- what it computes ---


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("parts", PARTS)
def test_its_logits_are_those_of_the_three_graphs(
    built: dict[str, Path], parts: str, count: int
) -> None:
    segmenter = Segmenter(built[parts], engine="onnxruntime")
    photo, phrases = as_photo(PHOTOS[1]), segmenter.phrases
    features = segmenter.encode(photo).features
    pair = segmenter.graphs["pair"]
    wanted = pair.fetch(pair({**features, **phrases(PHRASES[:count])})["logits"])
    tokens = [phrases.tokenizer.encode(text, phrases.word_len) for text in PHRASES[:count]]
    logits = run(beside(built[parts]), segmenter.letterbox.frame(photo)[None], np.stack(tokens))
    assert logits.shape == (count, 1, 16, 16)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("parts", PARTS)
def test_it_is_used_without_the_bundle(tmp_path: Path, built: dict[str, Path], parts: str) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(beside(built[parts]).read_bytes())
    session = onnxruntime.InferenceSession(str(alone), providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    about = json.loads(kept["cris_edge"])
    tokenizer = Tokenizer.from_json(kept[about["text"]["tokenizer"]])
    letterbox = Letterbox(about["image"]["size"], tuple(about["image"]["mean"]))
    photo = as_photo(PHOTOS[0])
    tokens = np.stack([tokenizer.encode(text, about["text"]["word_len"]) for text in PHRASES])
    logits = run(alone, letterbox.frame(photo)[None], tokens)
    wanted = Segmenter(built[parts], engine="onnxruntime").predict(photo, PHRASES)
    assert any(0.01 < result.coverage < 0.99 for result in wanted)
    for one, result in zip(logits[:, 0], wanted, strict=True):
        mask = letterbox.restore(one, *photo.shape[:2]) > about["mask"]["threshold"]
        assert (mask == result.mask).mean() > 0.999


# --- what it carries ---


@pytest.mark.parametrize("parts", PARTS)
def test_one_graph_goes_from_frame_and_tokens_to_logits(built: dict[str, Path], parts: str) -> None:
    model = onnx.load(beside(built[parts]))
    onnx.checker.check_model(model, full_check=True)

    def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
        tensor = value.type.tensor_type
        axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
        return value.name, tensor.elem_type, axes

    assert [described(value) for value in (*model.graph.input, *model.graph.output)] == [
        ("frame", TensorProto.UINT8, [1, 64, 64, 3]),
        ("tokens", TensorProto.INT64, ["phrases", 8]),
        ("logits", TensorProto.FLOAT, ["phrases", 1, 16, 16]),
    ]
    part = onnx.load(built[parts] / "pair.onnx")
    assert model.ir_version == part.ir_version
    assert list(model.opset_import) == list(part.opset_import)


@pytest.mark.parametrize("parts", PARTS)
def test_it_tells_what_the_bundle_tells(built: dict[str, Path], parts: str) -> None:
    bundle = Bundle.open(built[parts])
    kept = {entry.key: entry.value for entry in onnx.load(beside(built[parts])).metadata_props}
    assert set(kept) == {"cris_edge", "tokenizer.json"}
    about = json.loads(kept["cris_edge"])
    assert {name: bundle.about[name] for name in about} == about
    assert {"name", "image", "text", "mask", "licence", "training_data"} <= set(about)
    assert about["licence"] == "CC0-1.0"
    assert kept["tokenizer.json"] == bundle.path("tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("parts", PARTS)
def test_it_is_as_large_as_the_three_graphs_and_holds_no_weight_twice(
    built: dict[str, Path], parts: str
) -> None:
    names = ("photo.onnx", "phrase.onnx", "pair.onnx", "tokenizer.json")
    parted = sum((built[parts] / name).stat().st_size for name in names)
    assert 0.9 < beside(built[parts]).stat().st_size / parted < 1.05
    weights = list(onnx.load(beside(built[parts])).graph.initializer)
    for tensor in weights:
        tensor.ClearField("name")
    assert len({tensor.SerializeToString() for tensor in weights}) == len(weights)
    halves = [tensor for tensor in weights if tensor.data_type == TensorProto.FLOAT16]
    assert bool(halves) == (PRECISIONS[parts] == "float16")


def test_a_weight_of_two_graphs_lies_in_it_once(built: dict[str, Path]) -> None:
    names = ("photo", "phrase", "pair")
    graphs = {name: onnx.load(built["clip_resnet"] / f"{name}.onnx") for name in names}
    weight = max(graphs["photo"].graph.initializer, key=TensorProto.ByteSize)
    graphs["pair"].graph.initializer.append(weight)
    unused = [
        tensor.name
        for tensor in join(graphs).graph.initializer
        if tensor.name.endswith(weight.name)
    ]
    assert unused == [f"photo/{weight.name}"]


def test_it_tells_nothing_of_the_machine_that_exported(built: dict[str, Path]) -> None:
    model = onnx.load(beside(built["student"]))
    del model.metadata_props[:]
    content = model.SerializeToString()
    for word in (str(Path(__file__).parent.parent), "/tmp", "site-packages", ".py"):
        assert word.encode() not in content


# --- the comparison ---


def test_the_build_says_how_near_it_is_and_how_large(
    built: dict[str, Path], printed: dict[str, list[str]]
) -> None:
    out = built["student"]
    assert any("student.onnx: logits within" in line for line in printed["student"])
    size = beside(out).stat().st_size
    assert printed["student"][-1] == f"{beside(out)}: {size / 1e6:.2f} MB"


def doubled(graphs: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The graphs joined, but for one weight."""
    model = join(graphs)
    weight = next(w for w in model.graph.initializer if w.name.endswith("kernel.weight"))
    twice = 2 * numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(twice, weight.name))
    return model


def test_a_graph_that_disagrees_leaves_what_was_there(
    tmp_path: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "join", doubled)
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text(OLDER)
    beside(out).write_text("the older graph")
    job = Job(checkpoints["clip_resnet"], out, photos=PHOTOS[:1], zip=True, whole=True)
    with pytest.raises(ExportError, match=r"bundle\.onnx: .*does not agree with the three"):
        build(job, say=lambda line: None)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle", "bundle.onnx"}
    assert (out / "bundle.json").read_text() == OLDER
    assert beside(out).read_text() == "the older graph"


def test_without_onnx_runtime_it_says_that_nothing_was_compared(
    tmp_path: Path, built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "installed", lambda: ["openvino"])
    said: list[str] = []
    bundle, path = Bundle.open(built["clip_resnet"]), tmp_path / "one.onnx"
    write_whole(bundle, path, PHOTOS[:1], said.append)
    assert said == ["  one.onnx has not been compared: onnxruntime is not installed"]
    assert path.read_bytes() == beside(built["clip_resnet"]).read_bytes()


# --- what is refused before any work ---


@pytest.mark.parametrize("target", ["openvino", "jetson"])
def test_other_targets_have_no_whole_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    # The checkpoint is missing, which is not even noticed.
    arguments = ["--checkpoint", str(tmp_path / "none.safetensors"), "--whole"]
    status = main([*arguments, "--target", target, "--out", str(tmp_path / "bundle")])
    assert status == 2
    assert f"for the target onnx, not for {target}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "option"), [(".onnx", "whole"), (".zip", "zip")])
def test_a_folder_in_the_files_place_is_not_replaced(
    tmp_path: Path, suffix: str, option: str
) -> None:
    (tmp_path / f"bundle{suffix}").mkdir()
    job = Job(tmp_path / "none.safetensors", tmp_path / "bundle", **{option: True})
    with pytest.raises(InputError, match="expected a file to write, this is a folder"):
        build(job)


def test_help_tells_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--out bundles/s --whole" in capsys.readouterr().out
