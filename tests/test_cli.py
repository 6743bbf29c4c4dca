"""The command `cris-edge`, and the engines behind it: which is taken, loaded, or refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import openvino
import pytest
import tokenizers

from cris_edge import BundleError, EngineError, Segmenter, cli, draw
from cris_edge.bundle import Bundle, sha256, write_zip
from cris_edge.cli import main
from cris_edge.tokenizer import build
from tests.scenes import PHRASES, photo
from tests.test_segmenter import ENGINES
from training.data.vocabulary import clip_merges

FIELDS = {"phrase", "coverage", "score", "box", "engine", "milliseconds"}


@pytest.fixture(scope="module")
def bundle(sensitive_bundle: Path) -> Path:
    return sensitive_bundle


@pytest.fixture
def folder(tmp_path: Path, bundle: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def street(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), photo(7))
    return path


@pytest.fixture
def predict(street: Path, bundle: Path) -> Callable[..., int]:
    def run(*arguments: object, by: Path = bundle) -> int:
        options = ["--bundle", by, "--threads", 1]
        return main([str(part) for part in ("predict", *options, street, *arguments)])

    return run


# --- predict ---


def test_predict_prints_a_line_a_phrase_and_writes_the_overlay(
    predict: Callable[..., int], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "overlay.png"
    assert predict(*PHRASES, "-o", path) == 0
    out, err = capsys.readouterr()
    wanted = Segmenter(bundle, threads=1).predict(photo(7), PHRASES)
    lines = out.splitlines()
    assert [line.split('"')[1] for line in lines[:-1]] == PHRASES
    for line, result in zip(lines[:-1], wanted, strict=True):
        assert f"{100 * result.coverage:.1f} %" in line
        assert f"{result.score:.2f}" in line
        assert "openvino" in line
    assert str(path) in lines[-1]
    assert err == ""
    np.testing.assert_array_equal(cv2.imread(str(path)), draw(photo(7), wanted))
    assert {entry.name for entry in tmp_path.iterdir()} == {"street.png", "overlay.png"}


@pytest.mark.parametrize("engine", ENGINES)
def test_json_has_the_results_of_every_phrase_and_nothing_else_is_printed(
    predict: Callable[..., int],
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
) -> None:
    phrases = [*PHRASES, "日本語"]
    assert predict(*phrases, "--json", "--engine", engine, "-o", tmp_path / "new" / "o.jpg") == 0
    found = json.loads(capsys.readouterr().out)
    wanted = Segmenter(bundle, engine=engine, threads=1).predict(photo(7), phrases)
    assert [entry["phrase"] for entry in found] == phrases
    for entry, result in zip(found, wanted, strict=True):
        assert set(entry) == FIELDS
        assert entry["coverage"] == pytest.approx(result.coverage, abs=1e-4)
        assert entry["score"] == pytest.approx(result.score, abs=1e-4)
        assert entry["box"] == (list(result.box) if result.box else None)
        assert entry["engine"] == engine
        assert entry["milliseconds"] > 0
    assert cv2.imread(str(tmp_path / "new" / "o.jpg")).shape == (120, 160, 3)


def test_a_zip_file_is_a_bundle_too(
    predict: Callable[..., int], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zip(Bundle.open(bundle), tmp_path / "small.zip")
    outputs = []
    for by in (bundle, tmp_path / "small.zip"):
        assert predict("red car", "--json", by=by) == 0
        outputs.append(json.loads(capsys.readouterr().out)[0] | {"milliseconds": 0})
    assert outputs[0] == outputs[1]


# --- what is refused, in one line ---


def refused(status: int, capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert status == 2
    assert out == ""
    assert re.fullmatch("cris-edge: .+\n", err)
    return err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("overlay.nonsense", "no image format for '.nonsense'; use .png or .jpg"),
        ("overlay", "no image format for ''; use .png or .jpg"),
        ("street.png/overlay.png", "street.png is a file, not a folder"),
        ("folder.png", "folder.png: expected a file to write, this is a folder"),
    ],
)
def test_where_no_overlay_can_be_written_is_refused_before_all_else(
    predict: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    message: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("cris_edge.cli.Segmenter", None)  # nothing is loaded
    assert message in refused(predict("red car", "-o", tmp_path / output), capfd)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "street.png: the photo cannot be read: No such file"),
        (b"", "street.png: not an image"),
        (cv2.imencode(".jpg", photo(7))[1].tobytes()[:-200], "street.png: not an image"),
        (cv2.imencode(".png", photo(7, 7, 7))[1].tobytes(), "8 to 8192 pixels, not 7 x 7"),
    ],
)
def test_a_photo_that_cannot_be_used_leaves_the_older_overlay(
    predict: Callable[..., int],
    street: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    content: bytes | None,
    message: str,
) -> None:
    street.unlink()
    if content is not None:
        street.write_bytes(content)
    overlay = tmp_path / "overlay.png"
    overlay.write_bytes(b"older")
    assert message in refused(predict("red car", "-o", overlay), capfd)
    assert overlay.read_bytes() == b"older"


def test_other_mistakes_are_told_in_one_line_too(
    predict: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no such bundle" in refused(predict("red car", by=tmp_path / "none"), capfd)
    assert "no bundle.json" in refused(predict("red car", by=tmp_path), capfd)
    assert "not a zip file" in refused(predict("red car", by=tmp_path / "street.png"), capfd)
    assert "is empty; say what to find" in refused(predict("red car", "  "), capfd)
    for threads in (0, 10**11):
        said = refused(predict("red car", f"--threads={threads}"), capfd)
        assert f"threads must be a number from 1 to 1024, not {threads}" in said


@pytest.mark.parametrize(
    "arguments",
    [[], ["predict"], ["predict", "x.png"], ["predict", "x.png", "dog", "--engine", "magic"]],
)
def test_a_command_that_is_not_understood_shows_how_it_is_used(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: cris-edge")


# --- check, help, version ---


def test_check_prints_versions_and_engines(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cris_edge.segmenter.SHIPPED", bundle)
    main(["check"])
    out = capsys.readouterr().out
    # As they say themselves: OpenCV comes with JetPack too, which pip knows nothing of.
    for name, package in (("numpy", np), ("opencv", cv2), ("tokenizers", tokenizers)):
        assert f"{name} {package.__version__}" in out
    assert f"cris-edge {version('cris-edge')}, Python {sys.version.split()[0]}" in out
    lines = {line.split(":")[0].strip(): line for line in out.splitlines() if ":" in line}
    assert onnxruntime.__version__ in lines["onnxruntime"]
    assert openvino.__version__.split("-")[0] in lines["openvino"]


def test_check_tells_an_engine_for_other_bundles_from_one_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt = pytest.importorskip("cris_edge.engines.tensorrt", reason="needs cuda-python")
    monkeypatch.setattr(cli, "installed", lambda: ["tensorrt"])

    def fail(self: object) -> None:
        raise EngineError("no GPU")

    monkeypatch.setattr(tensorrt.TensorRt, "__init__", fail)
    assert main(["check"]) == 2
    out, err = capsys.readouterr()
    assert "  tensorrt: fails: no GPU" in out
    assert "no engine works: pip install" in err
    monkeypatch.setattr(tensorrt.TensorRt, "__init__", lambda self: None)
    monkeypatch.setattr(tensorrt.TensorRt, "version", "10.7.0", raising=False)
    assert main(["check"]) == 0
    assert "tensorrt: 10.7.0, ready; tensorrt runs bundles that were" in capsys.readouterr().out


def test_help_teaches_by_examples_and_the_version_is_the_packages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argument, shown in (
        ("--help", 'cris-edge predict street.jpg "the man in the red shirt" -o overlay.png'),
        ("--version", f"cris-edge {version('cris-edge')}"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([argument])
        assert shown in capsys.readouterr().out


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="cris-edge")
    assert command.load() is main


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


def test_what_a_terminal_cannot_show_is_shown_by_its_number(bundle: Path, street: Path) -> None:
    arguments = ["predict", street, "日本語", "--bundle", bundle, "--threads", 1]
    code = f"import cris_edge.cli; cris_edge.cli.main({[str(part) for part in arguments]!r})"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "cp1252")
        (line,) = run(code)
    assert line.startswith('"\\u65e5\\u672c\\u8a9e": ')


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
