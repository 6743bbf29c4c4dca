"""A checkpoint of the CRIS authors' code, evaluated as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cris_edge import EngineError
from tests.official import made_up
from tests.reference_sets import PLAIN, write_set
from tests.scenes import small_model, small_tokenizer
from training import checkpoint, convert
from training.evaluate import main
from training.predictor import open_official

KEPT = np.load(Path(__file__).parent / "data" / "small_square.npz")
EMBEDDING = "backbone.token_embedding.weight"
CLIP_IDS = 49408
NUMBERS = ["--word-len", "17", "--decoder-heads", "4"]


def write_official(path: Path, ids: int) -> Path:
    """The small model whose figures were made with the authors' code, with so many token ids."""
    seed = json.loads(str(KEPT["config"]))["seed"]
    shapes = dict(json.loads(str(KEPT["keys"])))
    state = {name: made_up(name, shape, seed) for name, shape in shapes.items()}
    embedding = torch.zeros(ids, state[EMBEDDING].shape[1])
    embedding[: len(state[EMBEDDING])] = state[EMBEDDING][:ids]
    named = {"module." + name: tensor for name, tensor in (state | {EMBEDDING: embedding}).items()}
    torch.save({"epoch": 50, "state_dict": named}, path)
    return path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("authors") / "best_model.pth", CLIP_IDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), PLAIN)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Run what must be refused; the last line on stderr."""
    try:
        status = main(command)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()[-1]


def test_it_scores_what_it_scores_once_converted(theirs: Path, data: Path, tmp_path: Path) -> None:
    ours = tmp_path / "small.safetensors"
    assert convert.main([str(theirs), "--out", str(ours), *NUMBERS]) == 0
    figures: dict[str, Any] = {}
    for name, command in {
        "theirs": [str(theirs), "--official", *NUMBERS],
        "ours": [str(ours)],
    }.items():
        out = tmp_path / f"{name}.json"
        limits = ["--split", "val", "--limit", "4", "--threads", "1", "--json", str(out)]
        assert main([*command, "--data", str(data), *limits]) == 0
        figures[name] = json.loads(out.read_text())
        assert figures[name].pop("model") == command[0]
    assert figures["theirs"] == figures["ours"]
    assert figures["theirs"]["runtime"]["model"] == "cris"
    assert len(figures["theirs"]["expressions"]["made val"]["samples"]) == 4


def test_it_opens_with_the_logits_of_the_authors_code(theirs: Path) -> None:
    segmenter = open_official(theirs, word_len=17, decoder_heads=4)
    assert segmenter.phrases.word_len == 17
    assert segmenter.threshold == 0.35
    assert segmenter.phrases.tokenizer.vocab_size == CLIP_IDS
    model, _ = convert.load_official(theirs, word_len=17, decoder_heads=4)
    with torch.no_grad():
        image, tokens = torch.tensor(KEPT["image"]), torch.tensor(KEPT["tokens"])
        logits = model.stages(image, tokens)["logits"]
    np.testing.assert_allclose(logits.numpy(), KEPT["logits"], atol=1e-4, rtol=0)


def test_word_len_is_asked_for_and_belongs_to_it(
    theirs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, str(theirs), "--official", "--data", str(data))
    assert "--official needs --word-len" in line
    assert "17 for RefCOCO and RefCOCO+, 22 for G-Ref" in line
    ours = tmp_path / "small.safetensors"
    tokenizer = small_tokenizer()
    checkpoint.save(ours, small_model(tokenizer), tokenizer, {})
    line = refused(capsys, str(ours), "--word-len", "17", "--data", str(data))
    assert "--word-len is for --official" in line
    said = ("--official", "--word-len", "17", "--precision", "bfloat16")
    line = refused(capsys, str(theirs), *said, "--data", str(data))
    assert "--precision is for bundles" in line
    line = refused(capsys, str(theirs), "--official", "--word-len", "2", "--data", str(data))
    assert "expected a whole number from 3 up, got 2" in line


def test_without_the_option_it_is_named(
    theirs: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, str(theirs), "--data", str(data))
    assert "add --official and --word-len" in line


def test_another_vocabulary_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_official(tmp_path / "best.pth", 600)
    line = refused(capsys, str(small), "--official", *NUMBERS, "--data", str(data))
    assert line.startswith("error: ")
    assert "expected CLIP's 49408 token embeddings, found 600" in line


def test_what_is_no_such_checkpoint_is_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "best.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, other)
    line = refused(capsys, str(other), "--official", *NUMBERS, "--data", str(data))
    assert "not a checkpoint of the CRIS authors" in line
    missing = str(tmp_path / "none.pth")
    assert "no such file" in refused(capsys, missing, "--official", *NUMBERS, "--data", str(data))


def test_torch_alone_runs_it(theirs: Path) -> None:
    with pytest.raises(EngineError, match="torch runs, not openvino"):
        open_official(theirs, word_len=17, decoder_heads=4, engine="openvino")
