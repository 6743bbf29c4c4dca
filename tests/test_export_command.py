"""What export refuses and leaves as it was, and its command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.errors import InputError
from cris_edge.tokenizer import Tokenizer
from export.build import Job, build, main
from export.errors import ExportError
from export.graphs import Source
from export.onnx import export_onnx
from export.place import put_in_place, workspace
from export.verify import MAX_PHOTOS, find_photos
from tests.export_models import NOTES, OLDER, PHOTOS, make_model, seasoned
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.model import CRIS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A checkpoint."""
    path = tmp_path_factory.mktemp("checkpoints") / "clip_resnet.safetensors"
    checkpoint.save(path, make_model("clip_resnet", tokenizer), tokenizer, NOTES, threshold=0.25)
    return path


# --- what fails leaves nothing ---


def saved(path: Path, tokenizer: Tokenizer, damage: Callable[[CRIS], object]) -> Path:
    model = seasoned(small_model(tokenizer))
    with torch.no_grad():
        damage(model)
    checkpoint.save(path, model, tokenizer, {})
    return path


def scale(model: CRIS, factor: float) -> None:
    model.projector.kernel.weight.mul_(factor)


@pytest.mark.parametrize(
    ("damage", "precision", "message"),
    [
        pytest.param(
            lambda model: model.neck.c5[0].weight.fill_(float("nan")),
            "float32",
            r"finite.*neck\.c5\.0\.weight",
            id="no numbers",
        ),
        pytest.param(
            lambda model: scale(model, 1e6), "float32", "does not agree", id="huge logits"
        ),
        pytest.param(
            lambda model: scale(model, 1e38), "float32", "are no numbers", id="infinite logits"
        ),
        pytest.param(
            lambda model: scale(model, 1e9), "float16", "65504.*float32", id="beyond half"
        ),
    ],
)
def test_a_model_that_cannot_be_exported_leaves_the_older_bundle(
    tmp_path: Path,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[CRIS], object],
    precision: str,
    message: str,
) -> None:
    path = saved(tmp_path / "bad.safetensors", tokenizer, damage)
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text(OLDER)
    job = Job(path, out, "onnx", precision, PHOTOS[:1], zip=True)
    with pytest.raises(ExportError, match=message):
        build(job)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.safetensors", "bundle"}
    assert [entry.name for entry in out.iterdir()] == ["bundle.json"]
    assert (out / "bundle.json").read_text() == OLDER


def test_an_older_bundle_is_replaced_whole(tmp_path: Path, kept: Path) -> None:
    out = tmp_path / "new" / "bundle"
    out.mkdir(parents=True)
    (out / "bundle.json").write_text(
        '{"format": "cris-edge-bundle", "files": {"left.over": "no sum"}}'
    )
    (out / "left.over").write_text("of another export")
    build(Job(kept, out, photos=PHOTOS[:1]), say=lambda line: None)
    assert not (out / "left.over").exists()
    assert [entry.name for entry in out.parent.iterdir()] == ["bundle"]
    assert Bundle.open(out).precision == "float32"
    assert Bundle.open(out).threshold == 0.25


@pytest.mark.parametrize("renames", [1, 2], ids=["the older one away", "the new one there"])
def test_a_signal_between_two_renames_loses_no_bundle(
    renames: int, tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "replaced"  # a name that the work has for a folder of its own
    shutil.copytree(small_bundle, out)
    older = (out / "bundle.json").stat().st_ino
    rename, seen = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        """Ctrl-C comes right after so many renames."""
        result = rename(self, target)
        seen.append(target)
        if len(seen) == renames:
            raise KeyboardInterrupt
        return result

    with workspace(out) as temporary:
        finished = Path(shutil.copytree(small_bundle, temporary / "finished" / out.name))
        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(Bundle.open(finished), out, [], temporary, say=lambda line: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["replaced"]
    assert Bundle.open(out).name == Bundle.open(small_bundle).name
    assert ((out / "bundle.json").stat().st_ino == older) == (renames == 1)


def test_a_model_is_exported_for_another_input(tmp_path: Path, kept: Path) -> None:
    model = checkpoint.load(kept).model
    size = model.config.input_size * 2
    job = Job(checkpoint=kept, out=tmp_path / "b", photos=PHOTOS, input_size=size, threshold=0.2)
    build(job)
    larger = Bundle.open(tmp_path / "b")
    assert larger.threshold == 0.2
    assert larger.about["image"]["size"] == size
    assert str(model.config.input_size) in larger.about["accuracy"]["note"]
    side = size // 4
    segmenter = Segmenter(larger.folder, engine="onnxruntime")
    assert segmenter.predict(np.zeros((50, 70, 3), np.uint8), "cat").mask.shape == (50, 70)
    assert larger.graphs["pair"].outputs[0].shape[-2:] == (side, side)
    with pytest.raises(ExportError, match=r"--input-size: .*multiple of 32, not 100"):
        build(Job(checkpoint=kept, out=tmp_path / "c", photos=PHOTOS, input_size=100))
    with pytest.raises(ExportError, match=r"--threshold: .*between 0 and 1, got 35"):
        build(Job(checkpoint=kept, out=tmp_path / "c", photos=PHOTOS, threshold=35))
    assert not (tmp_path / "c").exists()


def test_folders_that_are_no_bundle_are_not_replaced(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds other files"):
        build(Job(kept, tmp_path, photos=PHOTOS))
    with pytest.raises(ExportError, match="this is a file"):
        build(Job(kept, tmp_path / "thesis.txt", photos=PHOTOS))
    with pytest.raises(InputError, match=r"thesis\.txt is a file, not a folder"):
        build(Job(kept, tmp_path / "thesis.txt" / "deep" / "bundle", photos=PHOTOS))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_place_that_is_mounted_is_refused_before_all_work(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(ExportError, match="is a mount point, which cannot be replaced"):
        build(Job(kept, tmp_path, photos=PHOTOS))


def test_what_another_program_calls_bundle_json_is_not_replaced(tmp_path: Path, kept: Path) -> None:
    (tmp_path / "bundle.json").write_text("[1, 2]")
    with pytest.raises(ExportError, match=r"which would be lost: bundle\.json"):
        build(Job(kept, tmp_path, photos=PHOTOS))
    (tmp_path / "bundle.json").write_text('{"name": "my web page", "files": ["main.js"]}')
    (tmp_path / "main.js").write_text("years of work")
    with pytest.raises(ExportError, match=r"which would be lost: main\.js"):
        build(Job(kept, tmp_path, photos=PHOTOS))
    assert (tmp_path / "main.js").read_text() == "years of work"


def test_what_lies_in_a_bundles_folder_is_not_lost(tmp_path: Path, kept: Path) -> None:
    out = tmp_path / "bundle"
    build(Job(kept, out, photos=PHOTOS[:1]), say=lambda line: None)
    (out / "photos").mkdir()
    (out / "photos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"which would be lost: photos/mine\.jpg"):
        build(Job(kept, out, photos=PHOTOS[:1]))
    assert (out / "photos" / "mine.jpg").read_bytes() == b"mine"


class Painter(nn.Module):
    """Writes into a tensor, which ONNX can only tell by scatter nodes."""

    def forward(self, image: Tensor, where: Tensor) -> Tensor:
        """(1, 4) float32 and (2,) int64 to (1, 4)."""
        painted = image.clone()
        painted[:, where] = 1.0
        return painted


def test_scatter_nodes_are_refused_by_name(tmp_path: Path) -> None:
    inputs = {"image": torch.zeros(1, 4), "where": torch.tensor([0, 2])}
    with pytest.raises(ExportError, match=r"ScatterND \w+.*make them buffers"):
        export_onnx(Source(Painter(), inputs, ("painted",)), tmp_path / "painter.onnx", "float32")
    assert not list(tmp_path.iterdir())


# --- the command ---


def test_photos_come_from_files_and_folders(tmp_path: Path) -> None:
    for number in range(3 * MAX_PHOTOS):
        (tmp_path / f"{number:03}.JPG").touch()
    (tmp_path / "notes.txt").touch()
    found = find_photos([tmp_path, PHOTOS[0]])
    assert len(found) == MAX_PHOTOS + 1
    assert found[-1] == PHOTOS[0]
    with pytest.raises(ExportError, match="no such photo"):
        find_photos([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="found none"):
        find_photos([tmp_path / "empty"])


def test_the_command_prints_sizes_and_agreement(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    arguments = ["--checkpoint", str(kept), "--out", str(out), "--zip"]
    status = main([*arguments, "--photos", str(PHOTOS[0]), "--licence", "MIT"])
    printed = capsys.readouterr().out
    assert status == 0
    assert Bundle.open(out).about["licence"] == "MIT"
    for word in ("photo.onnx", "phrase.onnx", "pair.onnx", "onnxruntime", "openvino", "MB"):
        assert word in printed
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle", "bundle.zip"}


def test_the_command_ends_with_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        ["--checkpoint", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "bundle"),
         "--photos", str(PHOTOS[0])]
    )  # fmt: skip
    assert status == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "python -m export.build --checkpoint" in printed
    assert "--precision weights8" in printed
