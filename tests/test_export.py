"""Export end to end: small models of both kinds, both targets, both precisions, real engines."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cris_edge import EngineError, Segmenter
from cris_edge.bundle import Bundle, sha256
from cris_edge.tokenizer import Tokenizer
from export.build import Job, build
from export.errors import ExportError
from export.graphs import split
from export.verify import PHRASES, verify
from export.weights import count_batch_norms, fold_batch_norms, round_to_half
from tests.export_models import NOTES, PARTS, PHOTOS, make_model, seasoned
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.model import CRIS
from training.predictor import torch_segmenter


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, CRIS]:
    return {parts: make_model(parts, tokenizer) for parts in PARTS}


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, CRIS], tokenizer: Tokenizer
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for parts, model in models.items():
        checkpoint.save(folder / f"{parts}.safetensors", model, tokenizer, NOTES)
    return {parts: folder / f"{parts}.safetensors" for parts in models}


Built = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Built:
    """Builds each bundle once."""
    root, done = tmp_path_factory.mktemp("bundles"), {}

    def get(parts: str, target: str, precision: str) -> Path:
        out = root / f"{parts}_{target}_{precision}"
        if out not in done:
            job = Job(checkpoints[parts], out, target, precision, PHOTOS, zip=True)
            done[out] = build(job, say=lambda line: None)
        return out

    return get


WAYS = [
    ("clip_resnet", "onnx", "float32"),
    ("clip_resnet", "openvino", "float16"),
    *itertools.product(["student"], ["onnx", "openvino"], ["float32", "float16"]),
    ("student", "onnx", "weights8"),
]
"""Every target and precision, and each of them with both kinds of model."""


# --- a bundle computes what the checkpoint does ---


@pytest.mark.parametrize(("parts", "target", "precision"), WAYS)
def test_every_engine_gives_the_masks_of_the_checkpoint(
    built: Built,
    models: dict[str, CRIS],
    tokenizer: Tokenizer,
    parts: str,
    target: str,
    precision: str,
) -> None:
    folder, phrases = built(parts, target, precision), ["white cat", "the man on the left, in red"]
    wanted = torch_segmenter(models[parts], tokenizer).predict(PHOTOS[0], phrases)
    assert any(0.01 < result.coverage < 0.99 for result in wanted)
    engines = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}[target]
    for engine in engines:
        segmenter = Segmenter(folder, engine=engine, threads=1)
        assert segmenter.info.precision == precision
        for result, expected in zip(segmenter.predict(PHOTOS[0], phrases), wanted, strict=True):
            tolerance = {"float32": 1e-4, "float16": 1e-2, "weights8": 0.1}[precision]
            np.testing.assert_allclose(result.probability, expected.probability, atol=tolerance)
            assert (result.mask == expected.mask).mean() >= (
                0.999 if precision == "float32" else 0.99
            )


def test_openvino_files_are_refused_by_onnx_runtime(built: Built) -> None:
    with pytest.raises(EngineError, match=r"onnxruntime reads \.onnx"):
        Segmenter(built("clip_resnet", "openvino", "float16"), engine="onnxruntime")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_half_precision_saves_almost_half_of_the_graphs(built: Built, target: str) -> None:
    def weights(precision: str) -> int:
        folder = built("student", target, precision)
        suffixes = {".onnx", ".bin"}
        return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes)

    assert weights("float16") < 0.65 * weights("float32")


@pytest.mark.parametrize("parts", PARTS)
def test_large_weights_are_stored_as_bytes(built: Built, parts: str) -> None:
    def floats(precision: str) -> dict[str, int]:
        """Values of large weights by the type that they are stored in."""
        found: Counter[str] = Counter()
        for name in ("photo", "phrase", "pair"):
            graph = onnx.load(built(parts, "onnx", precision) / f"{name}.onnx").graph
            for tensor in graph.initializer:
                if (size := math.prod(tensor.dims)) >= 1024:
                    found[onnx.TensorProto.DataType.Name(tensor.data_type)] += size
        return found

    whole, stored = floats("float32"), floats("weights8")
    # What export folds into other constants, and codes of places, are no products any more.
    assert stored["INT8"] > 0.8 * whole["FLOAT"]
    # Long rows of scales come on top.
    assert whole["FLOAT"] <= stored["INT8"] + stored["FLOAT"] < 1.02 * whole["FLOAT"]


# --- what a bundle carries ---


def test_the_description_tells_origin_accuracy_versions_and_proof(built: Built) -> None:
    about = Bundle.open(built("student", "onnx", "float16")).about
    assert about["licence"] == "CC0-1.0"
    assert about["training_data"] == "made-up scenes"
    assert about["accuracy"] == {"split": "val", "mIoU": 12.5}
    assert about["versions"]["torch"] == version("torch")
    assert about["versions"]["trained_with_torch"] == "2.6.0"
    assert about["mask"]["threshold"] == 0.35
    assert about["text"] == {"tokenizer": "tokenizer.json", "word_len": 8}
    engines = {engine["engine"]: engine for engine in about["verification"]["engines"]}
    assert set(engines) == {"onnxruntime", "openvino"}
    for engine in engines.values():
        assert engine["pairs"] == len(PHOTOS) * len(PHRASES)
        assert engine["covered"] > 0
        assert engine["logits"] <= 1e-3 < engine["logits_from_checkpoint"]


def test_shapes_and_names_are_as_documented(built: Built) -> None:
    graphs = Bundle.open(built("clip_resnet", "openvino", "float16")).graphs
    shapes = {
        name: [{t.name: (t.dtype, t.shape) for t in side} for side in (spec.inputs, spec.outputs)]
        for name, spec in graphs.items()
    }
    features = {
        "p3": ("float32", (1, 32, 4, 4)),
        "p4": ("float32", (1, 32, 4, 4)),
        "p5": ("float32", (1, 64, 2, 2)),
    }
    texts = {
        "keys": ("float32", ("phrases", 1, 8, 32)),
        "values": ("float32", ("phrases", 1, 8, 32)),
        "padding": ("float32", ("phrases", 8)),
        "gate": ("float32", ("phrases", 64)),
        "kernel": ("float32", ("phrases", 17, 9)),
        "bias": ("float32", ("phrases", 1)),
    }
    assert shapes == {
        "photo": [{"frame": ("uint8", (1, 64, 64, 3))}, features],
        "phrase": [{"tokens": ("int64", ("phrases", 8))}, texts],
        "pair": [features | texts, {"logits": ("float32", ("phrases", 1, 16, 16))}],
    }


def test_the_zip_holds_the_same_files(built: Built) -> None:
    folder = built("student", "onnx", "float16")
    packed = Bundle.open(folder.with_name(folder.name + ".zip"))
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in packed.folder.iterdir()}
    assert all(sha256(folder / name) == sha256(packed.folder / name) for name in names)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_no_file_tells_of_the_machine_that_exported(built: Built, target: str) -> None:
    folder = built("student", target, "float32")
    places = (Path.cwd(), Path(__file__).parent.parent, Path.home(), folder.parent, Path("/tmp"))
    words = [str(place).encode() for place in places] + [b"site-packages", b".py"]
    for path in folder.iterdir():
        content = path.read_bytes()
        # The tokenizer has ".py" as a byte pair; home may be "/".
        found = [word for word in words if len(word) > 2 and word in content]
        assert path.name == "tokenizer.json" or not found, path.name


def test_graphs_hold_no_scatter_nodes_and_no_batch_norm(built: Built) -> None:
    folder = built("student", "onnx", "float32")
    counts: dict[str, int] = {}
    for name in ("photo", "phrase", "pair"):
        model = onnx.load(folder / f"{name}.onnx")
        assert model.opset_import[0].version >= 17
        for node in model.graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    assert not [kind for kind in counts if "Scatter" in kind]
    assert "BatchNormalization" not in counts
    assert counts["LayerNormalization"] > 0


def test_another_model_is_noticed(
    built: Built, models: dict[str, CRIS], tokenizer: Tokenizer
) -> None:
    bundle = Bundle.open(built("clip_resnet", "onnx", "float32"))
    verify(bundle, models["clip_resnet"], models["clip_resnet"], tokenizer, PHOTOS[:1])
    other = seasoned(small_model(tokenizer, seed=5))
    with pytest.raises(ExportError, match="does not agree with torch"):
        verify(bundle, other, other, tokenizer, PHOTOS[:1])


def test_split_describes_what_goes_in_and_out(models: dict[str, CRIS]) -> None:
    spec = split(models["student"])["pair"].spec("pair.onnx")
    assert [tensor.name for tensor in spec.inputs] == [
        "p3", "p4", "p5", "detail", "keys", "values", "padding", "gate", "kernel", "bias",
    ]  # fmt: skip
    assert [tensor.name for tensor in spec.outputs] == ["logits"]


# --- folding and rounding ---


@pytest.mark.parametrize("parts", PARTS)
def test_folding_batch_norms_changes_no_result(models: dict[str, CRIS], parts: str) -> None:
    model = models[parts]
    folded = fold_batch_norms(model)
    assert count_batch_norms(folded) == 0 < count_batch_norms(model)
    torch.manual_seed(2)
    frame = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    tokens = torch.tensor([[1510, 5, 9, 1511, 0, 0, 0, 0]] * 2)
    with torch.no_grad():
        difference = (folded(frame, tokens) - model(frame, tokens)).abs().max()
    assert difference < 1e-4


def test_rounding_leaves_the_model_alone_and_is_exact_the_second_time(
    models: dict[str, CRIS],
) -> None:
    model = models["clip_resnet"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = round_to_half(model)
    again = round_to_half(rounded).state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(again[name], tensor) for name, tensor in rounded.state_dict().items())
    large = [name for name, weight in rounded.named_parameters() if weight.numel() >= 1024]
    assert all(torch.equal(again[name], again[name].half().float()) for name in large)
    assert any(not torch.equal(again[name], before[name]) for name in large)
