"""A student learns from its teacher: masks, relations, features and phrases."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from cris_edge import Segmenter
from cris_edge.bundle import Bundle, write_specification
from cris_edge.letterbox import Letterbox
from export.openvino import write_openvino
from quantize import compare, distill
from quantize.phrases import teach_phrases
from quantize.recipe import DistillRecipe
from quantize.teachers import BundleTeacher, CheckpointTeacher, open_teacher
from tests.scenes import PHRASES, photo, sensitive_model, small_tokenizer
from tests.training_run import (
    LOSSES,
    RECIPE,
    SIZES,
    contents,
    interrupted,
    last_line,
    log,
    same_run,
    write_recipe,
)
from training import checkpoint
from training.data.batches import build_data, encode
from training.data.scene_phrases import vocabulary
from training.data.vocabulary import student_tokenizer
from training.errors import DataError
from training.model import CRIS, CRISConfig
from training.model.config import MODELS
from training.phrases import read_phrases
from training.recipe import read_recipe

ROOT = Path(__file__).parent.parent
LARGER = {"embed_dim": 64, "text_layers": 2, "neck_channels": [32, 64, 64], "word_len": 20}
CHANGES: dict[str, Any] = {
    "kind": "scenes",
    "data": str(ROOT / "samples" / "photos"),
    "scenes": 6,
    "naming": 0.0,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than the student, with another vocabulary, and it sees at another size."""
    torch.manual_seed(1)
    tokenizer = student_tokenizer(vocabulary(), first=500)
    config = CRISConfig.from_dict(
        json.loads(MODELS["cris_edge_s"].to_json())
        | SIZES
        | LARGER
        | {"input_size": 96, "context_length": 20, "vocab_size": tokenizer.vocab_size}
    )
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    checkpoint.save(path, CRIS(config).eval(), tokenizer, {})
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("training.data.batches.JUDGED_SCENES", 2)
    return write_recipe(tmp_path / "recipe.yaml", RECIPE, **CHANGES)


def run(recipe: Path, out: Path, teacher: Path, *more: str) -> int:
    with patch.object(torch.cuda, "is_available", return_value=False):
        return distill.main(
            ["--teacher", str(teacher), "--config", str(recipe), "--out", str(out), *more]
        )


def test_a_student_is_taught_and_keeps_nothing_of_its_teacher(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    before = teacher.read_bytes()
    assert run(recipe, tmp_path / "out", teacher) == 0
    losses = log(tmp_path / "out")[0]["losses"]
    assert losses.keys() == LOSSES | {"soft_masks", "relations", "features"}
    assert all(value > 0 for value in losses.values())
    student = checkpoint.load(tmp_path / "out" / "best.safetensors")
    assert student.model.config.embed_dim == SIZES["embed_dim"]
    tensors, _ = contents(tmp_path / "out" / "best.safetensors")
    assert not [name for name in tensors if "adapter" in name or "teacher" in name]
    assert teacher.read_bytes() == before


def test_a_lesson_of_no_weight_is_not_given(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "out", teacher, "relations=0", "features=0", "epochs=1") == 0
    losses = log(tmp_path / "out")[0]["losses"]
    assert losses.keys() == LOSSES | {"soft_masks"}


def test_a_teacher_that_teaches_nothing_is_refused(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ["soft_masks=0", "relations=0", "features=0"]
    assert run(recipe, tmp_path / "out", teacher, *none) == 2
    assert "a teacher, and nothing to learn from it" in last_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_student_tells_what_its_teacher_had_learned_and_under_which_licence(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    kept, path = checkpoint.load(teacher), tmp_path / "teacher.safetensors"
    notes = {"training_data": "5 photos of theirs", "licence": "research only"}
    checkpoint.save(path, kept.model, kept.tokenizer, notes)
    assert run(recipe, tmp_path / "out", path, "relations=0", "features=0", "epochs=1") == 0
    found = checkpoint.notes(tmp_path / "out" / "best.safetensors")
    assert found["licence"] == "research only"
    assert found["training_data"].endswith("; taught by a model of: 5 photos of theirs")


def test_phrases_alone_are_taught_without_showing_the_teacher_photos(
    recipe: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("red circle\nblue square\n", encoding="utf-8")
    taught: list[int] = []
    learnt = distill.teach_phrases
    monkeypatch.setattr(
        "quantize.distill.teach_phrases",
        lambda *args, **options: taught.append(len(learnt(*args, **options))),
    )
    monkeypatch.delattr("quantize.teachers.CheckpointTeacher.show")
    more = [f"texts={phrases}", "text_steps=3", "text_batch=2", "epochs=1"]
    none = ["soft_masks=0", "relations=0", "features=0"]
    assert run(recipe, tmp_path / "out", teacher, *none, *more) == 0
    assert taught == [3]
    assert log(tmp_path / "out")[0]["losses"].keys() == LOSSES


def test_a_run_that_was_stopped_goes_on_as_if_it_were_not(
    recipe: Path, teacher: Path, tmp_path: Path
) -> None:
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("red circle\nblue square\n", encoding="utf-8")
    more = [f"texts={phrases}", "text_steps=3", "text_batch=2"]
    assert run(recipe, tmp_path / "whole", teacher, *more) == 0
    with interrupted(4):
        run(recipe, tmp_path / "out", teacher, *more)
    assert run(recipe, tmp_path / "out", teacher, "--resume", *more) == 0
    same_run(tmp_path / "out", tmp_path / "whole")


def test_other_lessons_are_no_resumption(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, tmp_path / "out", teacher, "epochs=1") == 0
    assert run(recipe, tmp_path / "out", teacher, "--resume", "epochs=1", "features=0.5") == 2
    assert "features: 1.0, now 0.5" in last_line(capsys.readouterr().err)


def test_a_teacher_may_move_but_another_one_in_its_place_is_no_resumption(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, path)
    assert run(recipe, tmp_path / "out", path, "epochs=1") == 0
    path = path.rename(tmp_path / "moved.safetensors")
    assert run(recipe, tmp_path / "out", path, "--resume", "epochs=1") == 0
    kept = checkpoint.load(teacher)
    with torch.no_grad():
        next(kept.model.parameters()).add_(0.1)
    checkpoint.save(path, kept.model, kept.tokenizer, {})
    assert run(recipe, tmp_path / "out", path, "--resume", "epochs=1") == 2
    assert "taught by another model" in last_line(capsys.readouterr().err)


# --- a bundle as the teacher ---

MASKS = ["relations=0", "features=0"]


def test_a_bundle_teaches_its_masks(recipe: Path, sensitive_bundle: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sensitive_bundle.iterdir()}
    assert run(recipe, tmp_path / "out", sensitive_bundle, *MASKS, "epochs=1") == 0
    losses = log(tmp_path / "out")[0]["losses"]
    assert losses.keys() == LOSSES | {"soft_masks"}
    assert losses["soft_masks"] > 0
    tensors, _ = contents(tmp_path / "out" / "best.safetensors")
    student = checkpoint.load(tmp_path / "out" / "best.safetensors").model
    assert tensors.keys() == {f"model.{name}" for name in student.state_dict()}
    assert {path: path.read_bytes() for path in sensitive_bundle.iterdir()} == before


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("side", [64, 96])
def test_a_bundle_shows_what_its_checkpoint_does(
    sensitive_bundle: Path, engine: str, side: int
) -> None:
    tokenizer = small_tokenizer()
    model = sensitive_model(tokenizer)
    segmenter = Segmenter(sensitive_bundle, engine=engine, threads=1)
    bundle, its_checkpoint = BundleTeacher(segmenter), CheckpointTeacher(model, tokenizer)
    box = Letterbox(side, model.config.mean)
    frames = torch.from_numpy(np.stack([box.frame(photo(seed)) for seed in (1, 2)]))
    # More of a photo's phrases than one run takes, some of them twice.
    texts = (PHRASES + [f"{n} dogs" for n in "123456"]) * 2
    tokens = encode(texts, tokenizer, bundle.word_len)
    found, expected = (t.show(frames, tokens)["logits"] for t in (bundle, its_checkpoint))
    assert found.shape == (len(texts), 1, 16, 16)
    # Frames that are resized are rounded to whole colours for a bundle.
    assert (found - expected).std() < (1e-4 if side == 64 else 0.1) * expected.std()
    assert torch.equal(bundle.show(frames, tokens)["logits"], found)


def test_openvino_teaches_from_its_own_graphs(sensitive_bundle: Path, tmp_path: Path) -> None:
    source = Bundle.open(sensitive_bundle)
    folder = tmp_path / "openvino"
    folder.mkdir()
    for name, spec in source.graphs.items():
        write_openvino(source.path(spec.file), folder / f"{name}.xml", "float32")
    shutil.copyfile(source.path(source.tokenizer), folder / source.tokenizer)
    graphs = {
        name: dataclasses.asdict(dataclasses.replace(spec, file=f"{name}.xml"))
        for name, spec in source.graphs.items()
    }
    write_specification(folder, {**source.about, "graphs": graphs})
    tokens = encode(PHRASES[:2], small_tokenizer(), source.word_len)
    frames = torch.from_numpy(source.letterbox.frame(photo()))[None]
    shown = [
        open_teacher(str(path), torch.device("cpu")).show(frames, tokens)["logits"]
        for path in (folder, sensitive_bundle)
    ]
    torch.testing.assert_close(*shown, rtol=0, atol=1e-3)


def test_lessons_that_a_bundle_cannot_give_are_refused_by_name(
    recipe: Path, sensitive_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for given, left_out in (
        ([], "relations=0 features=0"),
        (["relations=0"], "features=0"),
        ([*MASKS, "texts=phrases.txt"], "texts=null"),
    ):
        assert run(recipe, out, sensitive_bundle, *given) == 2
        assert f"give {left_out}, or the checkpoint" in last_line(capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("content", [None, b"no zip file"])
def test_what_is_no_teacher_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "teacher.pth"
    if content is not None:
        path.write_bytes(content)
    assert run(recipe, tmp_path / "out", path) == 2
    line = last_line(capsys.readouterr().err)
    assert "expected a checkpoint (.safetensors) or a bundle" in line
    assert "training.convert" in line


def test_a_run_with_a_bundle_that_was_stopped_goes_on_as_if_it_were_not(
    recipe: Path, sensitive_bundle: Path, tmp_path: Path
) -> None:
    assert run(recipe, tmp_path / "whole", sensitive_bundle, *MASKS) == 0
    with interrupted(4):
        run(recipe, tmp_path / "out", sensitive_bundle, *MASKS)
    assert run(recipe, tmp_path / "out", sensitive_bundle, "--resume", *MASKS) == 0
    same_run(tmp_path / "out", tmp_path / "whole")


# --- comparing ---


def test_ways_are_compared_in_one_command(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--teacher", str(teacher), "--config", str(recipe), "--out", str(tmp_path / "runs")]
    ways = ["--way", "teacher=null", "--way", "relations=0"]
    assert compare.main([*command, *ways, "--set", "epochs=1", "scenes=2"]) == 0
    *_, without, taught = capsys.readouterr().out.splitlines()
    assert without.startswith("teacher=null ")
    assert taught.startswith("relations=0 ")
    assert log(tmp_path / "runs" / "teacher=null" / "seed-0")[0]["losses"].keys() == LOSSES
    lessons = log(tmp_path / "runs" / "relations=0" / "seed-0")[0]["losses"].keys() - LOSSES
    assert lessons == {"soft_masks", "features"}


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("", "relations, features: expected a checkpoint as the teacher"),
        ("relations=0 features=0 texts=none.txt", "texts: expected a checkpoint"),
        ("teacher=none.safetensors", "none.safetensors: no such file"),
    ],
)
def test_a_way_that_cannot_be_is_refused_before_another_trains(
    recipe: Path, sensitive_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    way: str, words: str,
) -> None:  # fmt: skip
    command = ["--teacher", str(sensitive_bundle), "--config", str(recipe)]
    command += ["--out", str(tmp_path / "runs"), "--way", "teacher=null", "--way", way]
    assert compare.main(command) == 2
    assert words in last_line(capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_of_a_bundle_masks_alone_are_compared(
    recipe: Path, sensitive_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--teacher", str(sensitive_bundle), "--config", str(recipe)]
    command += ["--out", str(tmp_path / "runs"), "--set", "epochs=1", "scenes=2"]
    assert compare.main(command) == 0
    *_, without, taught = capsys.readouterr().out.splitlines()
    assert without.startswith("teacher=null ")
    assert taught.startswith("relations=0 features=0 ")


# --- phrases by themselves ---


def test_the_phrase_side_learns_on_text_alone(recipe: Path, teacher: Path) -> None:
    kept = checkpoint.load(teacher)
    read = read_recipe(recipe, [f"teacher={teacher}"], DistillRecipe)
    data = build_data(read)
    sizes = CRISConfig.from_dict(
        json.loads(read.config().to_json()) | {"vocab_size": data.tokenizer.vocab_size}
    )
    phrases = [f"{a} {b}" for a in ("red", "blue", "small", "big") for b in ("circle", "square")]

    def taught() -> tuple[CRIS, list[float]]:
        torch.manual_seed(0)
        model = CRIS(sizes)
        losses = teach_phrases(
            model, data.tokenizer, kept.model, kept.tokenizer, phrases, steps=60, batch=8, seed=0
        )
        return model, losses

    (model, losses), (again, _) = taught(), taught()
    assert losses[-1] < 0.3 * losses[0]
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_phrases_are_read_from_text(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.txt", tmp_path / "p.txt.gz"
    plain.write_text("red circle\n\n  café cup \n", encoding="utf-8")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_phrases(plain) == read_phrases(packed) == ["red circle", "café cup"]


# Without the time, by which processes that share the tests would name them differently.
DAMAGED = bytearray(gzip.compress(b"red circle\n" * 99, mtime=0))
DAMAGED[12] ^= 0xFF


@pytest.mark.parametrize(
    "content", [b"\n \n", b"\xff\xfe", b"\x1f\x8b broken", bytes(DAMAGED), bytes(DAMAGED[:20])]
)
def test_text_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("p.txt.gz" if content.startswith(b"\x1f") else "p.txt")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.txt.*expected phrases, one a line"):
        read_phrases(path)
    with pytest.raises(DataError, match="expected phrases"):
        read_phrases(tmp_path / "none.txt")
