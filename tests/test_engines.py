"""Engines: which is taken, loaded, or refused, and what they say of graphs not as described."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import pytest

from cris_edge import BundleError, EngineError, Segmenter
from cris_edge.bundle import sha256
from cris_edge.engines import installed
from cris_edge.engines.openvino import shared_core
from cris_edge.tokenizer import build
from tests.scenes import photo
from tests.test_segmenter import ENGINES
from training.data.vocabulary import clip_merges


@pytest.fixture(scope="module")
def bundle(sensitive_bundle: Path) -> Path:
    return sensitive_bundle


@pytest.fixture
def folder(tmp_path: Path, bundle: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


# --- engines ---


def test_info_says_which_engine_runs_what(bundle: Path) -> None:
    auto, other = Segmenter(bundle, threads=1).info, Segmenter(bundle, engine="onnxruntime").info
    assert (auto.model, auto.precision, auto.input_size) == ("small", "float32", 64)
    assert (auto.engine, auto.threads) == ("openvino", 1)
    assert openvino.__version__.startswith(auto.engine_version)
    assert (other.engine, other.threads) == ("onnxruntime", None)
    assert other.engine_version == onnxruntime.__version__


def test_an_unknown_engine_is_refused_and_the_known_ones_are_named(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"'magic'.*openvino, onnxruntime.*'auto'"):
        Segmenter(bundle, engine="magic")


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(bundle: Path, threads: int) -> None:
    with pytest.raises(EngineError, match=f"a number from 1 to 1024, not {threads}"):
        Segmenter(bundle, threads=threads)


# --- graphs that are not as the bundle says ---


Change = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Change) -> None:
    about = json.loads((folder / "bundle.json").read_text())
    change(about)
    (folder / "bundle.json").write_text(json.dumps(about))


def between(tensor: str, **fields: object) -> Change:
    """A tensor that goes from one graph to the next, described in another way for both."""

    def change(about: dict[str, Any]) -> None:
        graphs = about["graphs"].values()
        for one in (t for graph in graphs for side in ("inputs", "outputs") for t in graph[side]):
            if one["name"] == tensor:
                one.update(fields)

    return change


def larger(about: dict[str, Any]) -> None:
    about["image"]["size"] = 96
    about["graphs"]["photo"]["inputs"][0]["shape"] = [1, 96, 96, 3]
    about["graphs"]["pair"]["outputs"][0]["shape"] = ["phrases", 1, 24, 24]


def coarser(about: dict[str, Any]) -> None:
    stride = about["mask"]["stride"] = 2 * about["mask"]["stride"]
    side = about["image"]["size"] // stride
    about["graphs"]["pair"]["outputs"][0]["shape"] = ["phrases", 1, side, side]


def shorter(about: dict[str, Any]) -> None:
    about["text"]["word_len"] = 4
    about["graphs"]["phrase"]["inputs"][0]["shape"] = ["phrases", 4]


def exchanged(about: dict[str, Any]) -> None:
    photo, pair = about["graphs"]["photo"], about["graphs"]["pair"]
    photo["file"], pair["file"] = pair["file"], photo["file"]


# Each is consistent in itself, so that none but the graph can tell.
DIFFERENCES: dict[str, Change] = {
    "name": between("p3", name="p2"),
    "shape": between("p3", shape=[1, 2, 3, 3]),
    "axes": between("kernel", shape=["phrases", 9]),
    "type": between("padding", dtype="int64"),
    "size of the image": larger,
    "stride of the mask": coarser,
    "length of a phrase": shorter,
    "files exchanged": exchanged,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_graph_that_differs_from_its_description_is_refused_when_loaded(
    folder: Path, engine: str, change: Change
) -> None:
    edit(folder, change)
    with pytest.raises(EngineError, match=rf"{engine}: .*\.onnx has .*, the bundle says"):
        Segmenter(folder, engine=engine, threads=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_no_graph_is_refused_by_name(folder: Path, engine: str) -> None:
    (folder / "pair.onnx").write_bytes(b"the man in red" * 99)
    edit(folder, lambda about: about["files"].update({"pair.onnx": sha256(folder / "pair.onnx")}))
    with pytest.raises(EngineError, match=rf"{engine} cannot load pair\.onnx"):
        Segmenter(folder, engine=engine, threads=1)


def test_graphs_of_a_kind_that_no_engine_reads_are_refused(folder: Path) -> None:
    (folder / "pair.onnx").rename(folder / "pair.engine")
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace("pair.onnx", "pair.engine"))
    with pytest.raises(EngineError, match=r"no installed engine runs .* has \.engine, \.onnx; run"):
        Segmenter(folder)
    with pytest.raises(EngineError, match=r"onnxruntime reads \.onnx files; .* has \.engine, "):
        Segmenter(folder, engine="onnxruntime")


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_are_no_number_are_refused(bundle: Path, engine: str) -> None:
    with pytest.raises(EngineError, match=r"threads must be a number .*, not 1\.5"):
        Segmenter(bundle, engine=engine, threads=1.5)  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_split_a_phrase_is_named(folder: Path) -> None:
    path = folder / "tokenizer.json"
    about = json.loads(path.read_text())
    about["model"] = {
        "type": "WordLevel",
        "vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1},
        "unk_token": "[UNK]",
    }
    path.write_text(json.dumps(about))
    edit(folder, lambda about: about["files"].update({path.name: sha256(path)}))
    with pytest.raises(BundleError, match="the tokenizer cannot split 'red car'"):
        Segmenter(folder, threads=1).predict(photo(), "red car")


@pytest.mark.skipif("tensorrt" in installed(), reason="TensorRT is installed")
def test_a_folder_of_an_engines_name_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("tensorrt") is not None
    assert "tensorrt" not in installed()


def test_threads_that_load_at_once_share_openvinos_core(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def slow() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    monkeypatch.setattr("cris_edge.engines.openvino._make_core", functools.cache(slow))
    with ThreadPoolExecutor(4) as threads:
        cores = list(threads.map(lambda _: shared_core(), range(4)))
    assert len(made) == 1
    assert cores == made * 4


def test_an_engine_that_fails_in_a_run_raises_engine_error(folder: Path) -> None:
    # Its ids are beyond the model's.
    path = folder / "tokenizer.json"
    path.write_text(build(clip_merges()[:5000]).to_json())
    edit(folder, lambda about: about["files"].update({path.name: sha256(path)}))
    with pytest.raises(EngineError):
        Segmenter(folder, engine="onnxruntime", threads=1).predict(photo(), "red car")


# --- in a process of its own ---

PREDICT = """
import sys
import cv2, numpy as np
import cris_edge

engine, bundle = sys.argv[1:]
try:
    segmenter = cris_edge.Segmenter(bundle, engine=engine, threads=1)
except cris_edge.CrisEdgeError as error:
    print(f"{type(error).__name__}: {error}")
else:
    segmenter.predict(np.full((40, 50, 3), 90, np.uint8), "red car")
    print("runs", segmenter.info.engine)
loaded = {"torch", "onnxruntime", "openvino", "onnx", "training"} & set(sys.modules)
print(*sorted(name for name in loaded if sys.modules[name]))
"""


def run(code: str, *arguments: object, first: Sequence[str] = ()) -> list[str]:
    """The lines that a Python program prints; `first` is found before what is installed."""
    path = [*first, str(Path(__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {path!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_the_package_loads_neither_torch_nor_an_engine() -> None:
    code = "import cris_edge; print(*sorted(n.partition('.')[0] for n in sys.modules))"
    loaded = set(run(code)[0].split())
    assert "cris_edge" in loaded
    assert not loaded & {"torch", "onnxruntime", "openvino", "onnx", "training", "open_clip"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_segmenter_loads_its_own_engine_alone(bundle: Path, engine: str) -> None:
    assert run(PREDICT, engine, bundle) == [f"runs {engine}", engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_engine_is_named_with_what_to_install_and_not_replaced(
    bundle: Path, engine: str
) -> None:
    missing = f"sys.modules[{engine!r}] = None\n"
    message, loaded = run(missing + PREDICT, engine, bundle)
    assert message.startswith("EngineError: ")
    assert f"pip install 'cris-edge[{engine}]'" in message
    assert loaded == ""


def test_auto_takes_the_engine_that_is_installed_or_names_both(bundle: Path) -> None:
    missing = "sys.modules['openvino'] = None\n"
    assert run(missing + PREDICT, "auto", bundle) == ["runs onnxruntime", "onnxruntime"]
    message, loaded = run(f"{missing}sys.modules['onnxruntime'] = None\n{PREDICT}", "auto", bundle)
    assert "cris-edge[onnxruntime]" in message
    assert "cris-edge[openvino]" in message
    assert loaded == ""


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
@pytest.mark.parametrize("asked", ["openvino", "auto"])
def test_a_broken_engine_is_named_and_not_replaced(
    bundle: Path, tmp_path: Path, error: str, asked: str
) -> None:
    (tmp_path / "openvino.py").write_text(f"raise {error}('libtbb.so.12 is missing')")
    message, loaded = run(PREDICT, asked, bundle, first=[str(tmp_path)])
    assert message.startswith("EngineError: the engine 'openvino'")
    assert "libtbb.so.12 is missing" in message
    assert "pip install 'cris-edge[openvino]'" in message
    assert loaded == ""
