"""Words first: a sentence encoder teaches a student's text encoder on text alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.scenes import small_tokenizer
from tests.training_run import RECIPE, last_line, photos_recipe, references_recipe, write_recipe
from tests.training_run import run as train
from training import checkpoint, words
from training.data.batches import build_data, encode
from training.data.mirror import mirror
from training.model import CRIS
from training.recipe import read_recipe
from training.sentences import open_encoder, read_words
from training.text_lesson import divide
from training.weights import build_model

THINGS = ("car", "dog", "man", "chair", "bus", "cup", "cat", "zebra")
COLOURS = ("red", "blue", "white", "small")
SIDED = [f"{colour} {thing} on the left" for colour in COLOURS for thing in THINGS]


def run(recipe: Path, out: Path, *more: str, steps: int = 90) -> int:
    """The command, on the CPU whatever else there is."""
    options = ["--config", str(recipe), "--out", str(out), "--steps", str(steps), *more]
    with patch.object(torch.cuda, "is_available", return_value=False):
        return words.main(options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data, phrases, and what the command made of them."""
    folder = tmp_path_factory.mktemp("words")
    photos_recipe(folder)
    lines = [*SIDED, *(f"the {colour} {thing}" for colour in COLOURS for thing in THINGS)]
    (folder / "phrases.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taught(folder: Path) -> Path:
    return teach(folder, "taught.safetensors")


def teach(folder: Path, name: str, *more: str) -> Path:
    out = folder / name
    phrases = str(folder / "phrases.txt")
    assert run(folder / "recipe.yaml", out, "--phrases", phrases, *more) == 0
    return out


def untaught(folder: Path) -> CRIS:
    recipe = read_recipe(folder / "recipe.yaml")
    torch.manual_seed(recipe.seed)
    return build_model(recipe, build_data(recipe)).eval()


def test_phrases_that_were_not_taught_come_close(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teach(folder, "table.safetensors")
    rows = re.findall(
        r"^([^\d\n]+?) +(\d+) +(-?[\d.]+) +(-?[\d.]+)$", capsys.readouterr().out, re.M
    )
    figures = {name: (int(n), float(before), float(after)) for name, n, before, after in rows}
    assert len(figures) == 4
    count, before, after = figures["cosine of sentences"]
    assert count >= 8
    assert abs(before) < 0.1
    assert after > before + 0.15
    _, before, after = figures["cosine of words"]
    assert after > before + 0.15
    _, before, after = figures["own sentence is the nearest"]
    assert after > max(before, 0.3)


def test_a_checkpoint_of_the_whole_model_is_written(folder: Path, taught: Path) -> None:
    kept, before = checkpoint.load(taught), untaught(folder).state_dict()
    recipe = read_recipe(folder / "recipe.yaml")
    assert kept.tokenizer.to_json() == build_data(recipe).tokenizer.to_json()
    assert "all-MiniLM-L6-v2" in kept.metadata["training_data"]
    assert kept.metadata["steps"] == "90"
    assert int(kept.metadata["phrases"]) > len(SIDED)
    assert 0 < float(kept.metadata["loss"]) < 7
    after = kept.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("text_encoder.") for name in changed)


def test_training_goes_on_from_it(folder: Path, taught: Path, tmp_path: Path) -> None:
    more = (f"start_from={taught}", "epochs=1", "learning_rate=0.0")
    assert train(folder / "recipe.yaml", tmp_path, *more) == 0
    begun = checkpoint.load(tmp_path / "best.safetensors").model.text_encoder.state_dict()
    for name, tensor in checkpoint.load(taught).model.text_encoder.state_dict().items():
        torch.testing.assert_close(begun[name], tensor, msg=name)


def test_the_same_seed_gives_the_same_weights(folder: Path, taught: Path) -> None:
    def encoder(path: Path) -> dict[str, Tensor]:
        return checkpoint.load(path).model.text_encoder.state_dict()

    again, other = teach(folder, "again.safetensors"), teach(folder, "other.safetensors", "seed=1")
    for name, tensor in encoder(taught).items():
        assert torch.equal(tensor, encoder(again)[name]), name
    weight = "tower.token_embedding.weight"
    assert not torch.equal(encoder(taught)[weight], encoder(other)[weight])


def test_left_and_right_move_apart(folder: Path, taught: Path) -> None:
    kept = checkpoint.load(taught)

    def apart(model: CRIS) -> Tensor:
        length = model.config.word_len
        with torch.inference_mode():
            left, right = (
                model.encode_text(encode(texts, kept.tokenizer, length))[1]
                for texts in (SIDED, [mirror(text) or "" for text in SIDED])
            )
        return 1 - torch.cosine_similarity(left, right).mean()

    assert apart(kept.model) > 2 * apart(untaught(folder))


def test_what_is_judged_by_is_not_taught_the_other_way_round() -> None:
    texts = [*SIDED, *(text.upper() for text in SIDED[:3]), "!?", mirror(SIDED[0]) or ""]
    phrases = divide(texts, seed=0)
    assert len(set(phrases.texts)) == len(phrases.texts) == 2 * len(SIDED)
    held, taught = set(phrases.held_out), set(phrases.taught)
    assert held
    assert taught
    assert not held & taught
    assert not {phrases.swapped[place] for place in held} & taught
    assert all(phrases.swapped[phrases.swapped[place]] == place for place in held | taught)


# --- words and tokens ---


def test_tokens_belong_to_the_words_they_are_of() -> None:
    texts = [
        "zebra's left-hand side",
        "!",
        "a 12th giraffe of the many giraffes in the tall green grass",
    ]
    reading = read_words(texts, small_tokenizer(), 16)
    said = [[text[a:b] for a, b in found] for text, found in zip(texts, reading.words, strict=True)]
    assert said[:2] == [["zebra", "s", "left", "hand", "side"], []]
    assert "grass" not in said[2], "what is cut off is not compared"
    every = [word for found in said for word in found]
    owners = reading.owners
    assert owners.shape == (3, 16)
    assert (owners[:, 0] == -1).all()
    assert sorted(set(owners[owners >= 0].tolist())) == list(range(len(every)))
    # The pieces of a word, put together, are the word.
    ids = encode(texts, small_tokenizer(), 16)
    for number, word in enumerate(every):
        own = ids[owners == number].tolist()
        plain = encode([word], small_tokenizer(), 16)[0, 1 : len(own) + 1].tolist()
        assert own == plain or word == "s"


def test_the_teacher_knows_synonyms() -> None:
    texts = ["couch", "a very comfortable sofa", "giraffe"]
    spans = read_words(texts, small_tokenizer(), 17).words
    taught = open_encoder(torch.device("cpu")).teach(texts, spans)
    assert taught.sentences.dtype == torch.float16
    couch, sofa, giraffe = taught.sentences.float()
    assert couch @ sofa > couch @ giraffe + 0.2
    torch.testing.assert_close(
        taught.sentences.float().norm(dim=1), torch.ones(3), atol=2e-3, rtol=0
    )
    assert taught.words.shape == (6, 384)
    known = taught.words.float()
    alike = torch.cosine_similarity(known[:1], known[1:])
    assert alike.argmax() == 3, "of all the words, sofa"


# --- other data, and what is refused ---


def test_references_teach_too(tmp_path: Path) -> None:
    out = tmp_path / "words.safetensors"
    assert run(references_recipe(tmp_path), out, steps=2) == 0
    assert checkpoint.load(out).metadata["steps"] == "2"


def refused(capsys: pytest.CaptureFixture[str], recipe: Path, *more: str) -> str:
    out = recipe.parent / "refused.safetensors"
    capsys.readouterr()
    assert run(recipe, out, *more) == 2
    assert not out.exists()
    return last_line(capsys.readouterr().err)


@pytest.mark.parametrize("module", ["all_minilm_l6_v2", "transformers"])
def test_an_absent_package_is_told(
    folder: Path,
    module: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install cris-edge[words]" in refused(capsys, folder / "recipe.yaml")


def test_phrases_that_cannot_be_read_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(folder / "none.txt")
    line = refused(capsys, folder / "recipe.yaml", "--phrases", missing)
    assert "none.txt: expected phrases" in line


def test_scenes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", RECIPE, kind="scenes", naming=0.0)
    assert "no phrases that people say" in refused(capsys, recipe)
