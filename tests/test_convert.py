"""The authors' checkpoints become ours: same figures, CLIP's words, and no code is run."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cris_edge.tokenizer import build
from tests.official import made_up
from training import checkpoint, convert
from training.data.vocabulary import clip_merges
from training.model.official import read_config, read_official

DATA = Path(__file__).parent / "data"
EMBEDDING = "backbone.token_embedding.weight"
CLIP_IDS = 49408
HEADS = ["--decoder-heads", "4"]
State = dict[str, torch.Tensor]


def figures() -> dict[str, Any]:
    return dict(np.load(DATA / "small_square.npz"))


def small_state() -> State:
    """The weights of the small fixture, whose vocabulary has 600 ids."""
    kept = figures()
    seed = json.loads(str(kept["config"]))["seed"]
    return {k: made_up(k, s, seed) for k, s in dict(json.loads(str(kept["keys"]))).items()}


def with_whole_vocabulary(state: State) -> State:
    embedding = torch.zeros(CLIP_IDS, state[EMBEDDING].shape[1])
    embedding[: len(state[EMBEDDING])] = state[EMBEDDING]
    return state | {EMBEDDING: embedding}


def as_saved_by_the_authors(state: State) -> dict[str, Any]:
    """What their training script writes: the weights and the state of Adam and its schedule."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.Adam([parameter], lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [35], 0.1)
    parameter.grad = torch.ones(2)
    optimiser.step()
    schedule.step()
    return {
        "epoch": 41,
        "cur_iou": 0.69,
        "best_iou": 0.7,
        "prec": {"Pr@50": 0.8},
        "state_dict": {"module." + name: tensor for name, tensor in state.items()},
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
    }


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authors") / "best_model.pth"
    torch.save(as_saved_by_the_authors(with_whole_vocabulary(small_state())), path)
    return path


@pytest.fixture(scope="module")
def ours(theirs: Path) -> Path:
    out = theirs.parent / "converted" / "small.safetensors"
    assert convert.main([str(theirs), "--word-len", "17", "--out", str(out), *HEADS]) == 0
    return out


def test_the_converted_checkpoint_gives_the_authors_logits(ours: Path) -> None:
    expected = figures()
    model = checkpoint.load(ours).model
    with torch.no_grad():
        image, tokens = torch.tensor(expected["image"]), torch.tensor(expected["tokens"])
        logits = model.stages(image, tokens)["logits"]
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-4, rtol=0)


def test_the_converted_checkpoint_knows_clips_whole_vocabulary(ours: Path) -> None:
    kept = checkpoint.load(ours)
    assert kept.tokenizer.vocab_size == kept.model.config.vocab_size == CLIP_IDS
    # CLIP's own ids of these words.
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert kept.tokenizer.encode("a photo of a cat", 9).tolist() == [*ids, 0, 0]


def test_the_header_says_where_the_weights_come_from(ours: Path, theirs: Path) -> None:
    metadata = checkpoint.load(ours).metadata
    assert "best_model.pth" in metadata["source"]
    assert "CRIS authors" in metadata["source"]
    assert metadata["source_sha256"] == hashlib.sha256(theirs.read_bytes()).hexdigest()


def test_one_line_tells_what_was_written(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "g.safetensors"
    assert convert.main([str(theirs), "--word-len", "22", "--out", str(out), *HEADS]) == 0
    printed = capsys.readouterr()
    model = checkpoint.load(out).model
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert printed.out == f"cris: {millions:.2f} M parameters, word_len 22, {out}\n"
    assert printed.err == ""
    assert (model.config.word_len, model.config.decoder_heads) == (22, 4)


def test_the_decoder_has_eight_heads_unless_told(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "eight.safetensors"
    assert convert.main([str(theirs), "--word-len", "17", "--out", str(out)]) == 0
    assert checkpoint.load(out).model.config.decoder_heads == 8


@pytest.mark.parametrize("word_len", [17, 22])
@pytest.mark.parametrize("name", ["r50", "r101"])
def test_the_published_sizes_have_the_published_names(name: str, word_len: int) -> None:
    shapes = dict(json.loads((DATA / f"official_{name}_keys.json").read_text()))
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = read_config(state, word_len=word_len, decoder_heads=8)
    assert (config.name, config.word_len) == (f"cris_{name}", word_len)
    assert read_config(state, word_len=word_len, decoder_heads=4).name == "cris"


def refused(capsys: pytest.CaptureFixture[str], source: Path, out: Path, *more: str) -> str:
    """Convert what must be refused; the line on stderr."""
    assert convert.main([str(source), "--word-len", "17", "--out", str(out), *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err


def damaged(path: Path) -> None:
    path.write_bytes(b"no checkpoint at all" * 50)


def truncated(path: Path) -> None:
    torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[:20_000])


def of_another_model(path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, path)


def of_no_tensors(path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": [1, 2]}}, path)


def without_names(path: Path) -> None:
    torch.save({0: torch.zeros(3)}, path)


def of_a_small_vocabulary(path: Path) -> None:
    torch.save(small_state(), path)


def lacking_a_tensor(path: Path) -> None:
    state = with_whole_vocabulary(small_state())
    del state["neck.aggr.1.bias"], state["proj.txt.bias"]
    torch.save(state, path)


def missing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (missing, "no such file"),
        (damaged, "damaged, or not written by torch.save"),
        (truncated, "damaged, or not written by torch.save"),
        (of_another_model, "not a checkpoint of the CRIS authors"),
        (of_no_tensors, "expected a dictionary of tensors"),
        (without_names, "expected a dictionary of tensors"),
        (of_a_small_vocabulary, "expected CLIP's 49408 token embeddings, found 600"),
        (lacking_a_tensor, "missing: neck.aggregate.1.bias; missing: projector.kernel.bias"),
    ],
)
def test_what_is_no_checkpoint_of_theirs_is_refused_and_nothing_written(
    write: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "best.pth", tmp_path / "out" / "cris.safetensors"
    write(source)
    line = refused(capsys, source, out, *HEADS)
    assert words in line
    assert not out.parent.exists()


class Opens:
    """Unpickled by the ordinary way, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_code_in_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, out = tmp_path / "was_run", tmp_path / "out" / "cris.safetensors"
    plain, zipped, hidden = (tmp_path / f"{name}.pth" for name in ("plain", "zipped", "hidden"))
    plain.write_bytes(pickle.dumps(Opens(marker), protocol=2))
    torch.save(Opens(marker), zipped)
    torch.save(small_state() | {"optimizer": Opens(marker)}, hidden)
    for source in (plain, zipped, hidden):
        line = refused(capsys, source, out, *HEADS)
        assert str(source) in line
        # torch's own advice on how to run it all the same.
        assert "weights_only" not in line
    assert not marker.exists()
    assert not out.parent.exists()
    # The trap works: whoever unpickles without care is caught.
    pickle.loads(plain.read_bytes()).close()
    assert marker.exists()


def test_the_message_names_what_the_pickle_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "best.pth"
    torch.save({"state_dict": Path("anything but a tensor")}, source)
    line = refused(capsys, source, tmp_path / "cris.safetensors")
    assert "it asks for pathlib" in line
    assert "was not run" in line


def test_a_refused_conversion_leaves_the_older_file_whole(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "cris.safetensors", tmp_path / "best.pth"
    out.write_bytes(ours.read_bytes())
    torch.save(small_state(), source)
    refused(capsys, source, out, *HEADS)
    assert out.read_bytes() == ours.read_bytes()
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_another_ending_is_refused(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, theirs, tmp_path / "cris.bin", *HEADS)
    assert "expected a name that ends in .safetensors" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--word-len", "2"], "expected a whole number from 3 up, got 2"),
        (["--word-len", "seventeen"], "--word-len"),
        (["--word-len", "17", "--decoder-heads", "0"], "expected a whole number from 1 up, got 0"),
        ([], "--word-len"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    arguments: list[str], words: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        convert.main([str(theirs), "--out", "cris.safetensors", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--word-len", "78"], "word_len 78 is longer than context_length 77"),
        (["--word-len", "17", "--decoder-heads", "7"], "twice its 7 heads"),
    ],
)
def test_numbers_that_the_shapes_forbid_are_refused(
    arguments: list[str],
    words: str,
    theirs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cris.safetensors"
    assert convert.main([str(theirs), "--out", str(out), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        convert.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m training.convert best_model.pth --word-len 17 --out cris_r50" in text
    assert "22 for G-Ref" in text


def test_the_inner_dictionary_alone_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_state(), path)
    assert read_official(path).keys() == small_state().keys()


def test_the_vocabulary_written_is_the_runtimes(ours: Path) -> None:
    text = "The 2nd zebra’s head, nearest the café"
    expected = build(clip_merges()).encode(text, 17)
    np.testing.assert_array_equal(checkpoint.load(ours).tokenizer.encode(text, 17), expected)
