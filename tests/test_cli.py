"""The command `cris-edge`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import openvino
import pytest
import tokenizers

from cris_edge import EngineError, Segmenter, cli, draw
from cris_edge.bundle import Bundle, write_zip
from cris_edge.cli import main
from tests.scenes import PHRASES, photo
from tests.test_engines import run
from tests.test_segmenter import ENGINES

FIELDS = {"phrase", "coverage", "score", "box", "engine", "milliseconds"}


@pytest.fixture(scope="module")
def bundle(sensitive_bundle: Path) -> Path:
    return sensitive_bundle


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
        ("overlay.pgm", "no image format for '.pgm'; use .png or .jpg"),
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


def test_the_photo_is_not_written_over(
    predict: Callable[..., int], street: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.png").symlink_to(street)
    before = street.read_bytes()
    for name in ("street.png", "link.png"):
        said = refused(predict("red car", "-o", tmp_path / name), capfd)
        assert f"{name}: is the photo itself; choose another --output" in said
    assert street.read_bytes() == before


def test_output_that_cannot_be_written_is_told_in_one_line(bundle: Path, street: Path) -> None:
    arguments = [str(street), "red car", "--json", "--bundle", str(bundle), "--threads", "1"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import cris_edge.cli as c; exit(c.main())",
                "predict",
                *arguments,
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "cris-edge: the output cannot be written: No space left on device\n",
    )


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


def test_what_a_terminal_cannot_show_is_shown_by_its_number(bundle: Path, street: Path) -> None:
    arguments = ["predict", street, "日本語", "--bundle", bundle, "--threads", 1]
    code = f"import cris_edge.cli; cris_edge.cli.main({[str(part) for part in arguments]!r})"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "cp1252")
        (line,) = run(code)
    assert line.startswith('"\\u65e5\\u672c\\u8a9e": ')
