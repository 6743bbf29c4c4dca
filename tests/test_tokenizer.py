"""The tokenizer: CLIP's ids, and what holds for any text at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cris_edge import BundleError, InputError
from cris_edge.tokenizer import END, START, Tokenizer, build, clean
from tests.scenes import small_tokenizer
from training.data.vocabulary import clip_merges, student_tokenizer

TOKENS = Path(__file__).parent / "data" / "tokens.json"
CASES = json.loads(TOKENS.read_text(encoding="utf-8"))
TEXTS = sorted({case["text"] for case in CASES})

fixed = settings(derandomize=True, deadline=None, max_examples=150)
phrases = st.text(max_size=60) | st.lists(
    st.sampled_from(["dog", "ZEBRA", "&amp;", "&lt;b&gt;", "don't", "3rd", START, END, "Ã©", "☕"])
).map(" ".join)

ENCODE_WITHOUT_THE_REST = """
import json, sys

BLOCKED = {"torch", "open_clip", "training", "export", "onnxruntime", "openvino", "tensorrt"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Blocker())
for name in sorted(BLOCKED):
    try:
        __import__(name)
    except AssertionError:
        continue
    raise SystemExit(f"{name} is not blocked")

from cris_edge.tokenizer import Tokenizer

tokenizer = Tokenizer.load(sys.argv[1])
cases = json.load(open(sys.argv[2], encoding="utf-8"))
print(json.dumps([tokenizer.encode(case["text"], case["word_len"]).tolist() for case in cases]))
"""


@cache
def clip() -> Tokenizer:
    return build(clip_merges())


@cache
def small() -> Tokenizer:
    return small_tokenizer()


@cache
def json_of_a_few_merges() -> str:
    return build(clip_merges()[:40]).to_json()


def pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, list[str]]:
    """The tokens of texts as strings, which tokenizers of other vocabularies share."""
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    token_of = {index: token for token, index in vocabulary.items()}
    ids = {text: tokenizer.encode(text, 512).tolist() for text in texts}
    return {
        text: [token_of[index] for index in row[1 : row.index(tokenizer.end_id)]]
        for text, row in ids.items()
    }


# --- CLIP's ids ---


@pytest.mark.parametrize("text", TEXTS)
def test_every_id_is_that_of_the_authors_tokenizer(text: str) -> None:
    cases = [case for case in CASES if case["text"] == text]
    assert {case["word_len"] for case in cases} == {17, 22, 77}
    for case in cases:
        assert clip().encode(text, case["word_len"]).tolist() == case["ids"]


def test_the_vocabulary_is_as_large_as_clips() -> None:
    assert (clip().vocab_size, clip().start_id, clip().end_id) == (49_408, 49_406, 49_407)


def test_a_saved_tokenizer_gives_these_ids_without_torch_open_clip_training_or_an_engine(
    tmp_path: Path,
) -> None:
    saved = tmp_path / "tokenizer.json"
    saved.write_text(clip().to_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ENCODE_WITHOUT_THE_REST, str(saved), str(TOKENS)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [case["ids"] for case in CASES]


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        pytest.param("cafÃ© sign", "café sign", id="broken Unicode is mended"),
        pytest.param("“red” car", '"red" car', id="quotes are straightened"),
        pytest.param("fries &amp; coke", "fries & coke", id="entities"),
        # ftfy leaves entities alone where it sees a "<", so this shows CLIP's own two rounds.
        pytest.param("1 < 2 &amp;amp; 3", "1 < 2 & 3", id="entities in two rounds"),
        pytest.param("left&nbsp;car", "left car", id="no-break space"),
        pytest.param(" the\tleft \n\n car ", "the left car", id="white space is joined"),
        pytest.param("ÄRGER MIT É", "ärger mit é", id="lower case beyond ASCII"),
    ],
)
def test_what_is_written_alike_has_the_same_ids(raw: str, meant: str) -> None:
    assert clean(raw) == meant
    assert clip().encode(raw, 20).tolist() == clip().encode(meant, 20).tolist()
    assert clip().encode(raw, 20).tolist() != clip().encode("", 20).tolist()


# --- any text ---


@fixed
@given(phrases, st.integers(2, 40))
@example("\ud800 \udcff", 8)
@example(f"{END} {START} {END}", 12)
def test_any_text_is_start_tokens_end_once_then_zeros(text: str, word_len: int) -> None:
    ids = small().encode(text, word_len)
    assert ids.shape == (word_len,)
    assert ids.dtype == np.int64
    assert ids[0] == small().start_id
    (end,) = (ids == small().end_id).nonzero()[0]
    assert not ids[end + 1 :].any()
    inner = ids[1:end]
    assert ((inner >= 0) & (inner < small().start_id)).all()


@fixed
@given(phrases, st.integers(2, 20))
def test_a_longer_phrase_is_cut_and_the_end_stays_last(text: str, word_len: int) -> None:
    whole, cut = small().encode(text, 512), small().encode(text, word_len)
    tokens = int((whole == small().end_id).argmax()) - 1
    kept = min(tokens, word_len - 2)
    np.testing.assert_array_equal(cut[: kept + 1], whole[: kept + 1])
    assert cut[kept + 1] == small().end_id


@fixed
@given(st.text(st.characters(max_codepoint=127, exclude_characters="&"), max_size=60))
def test_upper_case_does_not_matter(text: str) -> None:
    lower, upper = (small().encode(way, 40) for way in (text.lower(), text.upper()))
    np.testing.assert_array_equal(lower, upper)


@fixed
@given(phrases)
def test_a_tokenizer_read_back_from_its_json_gives_the_same_ids(text: str) -> None:
    np.testing.assert_array_equal(again().encode(text, 30), small().encode(text, 30))


@cache
def again() -> Tokenizer:
    return Tokenizer.from_json(small().to_json())


def test_a_tokenizer_read_back_knows_the_same_of_itself() -> None:
    for field in ("vocab_size", "start_id", "end_id"):
        assert getattr(again(), field) == getattr(small(), field)
    assert again().to_json() == small().to_json()


# --- the student's vocabulary ---


def test_a_reduced_vocabulary_splits_its_texts_as_clip_does() -> None:
    student = student_tokenizer(TEXTS, first=200)
    assert student.vocab_size < 1500
    assert pieces(student, TEXTS) == pieces(clip(), TEXTS)


def test_a_reduced_vocabulary_splits_other_texts_into_parts_of_the_same_words() -> None:
    student, text = student_tokenizer(["red car"], first=200), "second rhinoceros from the left"
    parts, words = pieces(student, [text])[text], pieces(clip(), [text])[text]
    assert len(parts) > len(words)
    assert "".join(parts) == "".join(words)


# --- what is refused ---


@pytest.mark.parametrize("text", [None, 3, b"the man in red", ["the man"], 1.5])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(InputError, match=f"must be a str, not {type(text).__name__}"):
        small().encode(text, 8)  # type: ignore[arg-type]


def foreign(*tokens: str) -> str:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, tokens[0])).to_str()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "JSON form", id="empty"),
        pytest.param("the man in red", "JSON form", id="no JSON"),
        pytest.param("null", "JSON form", id="null"),
        pytest.param("{}", "JSON form", id="empty object"),
        pytest.param('{"version": "1.0", "model": {"type": "Magic"}}', "JSON form", id="unknown"),
        pytest.param(foreign("[UNK]", "dog"), "not one of CLIP's kind", id="foreign"),
        pytest.param(foreign("[UNK]", START), "not one of CLIP's kind", id="no end token"),
        pytest.param(foreign("[UNK]", END), "not one of CLIP's kind", id="no start token"),
    ],
)
def test_what_is_no_tokenizer_of_clips_kind_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer.from_json(text)


@fixed
@given(st.floats(0, 1, exclude_max=True))
def test_json_that_is_cut_anywhere_is_refused(share: float) -> None:
    whole = json_of_a_few_merges().rstrip()
    with pytest.raises(BundleError, match="JSON form"):
        Tokenizer.from_json(whole[: int(share * len(whole))])


@fixed
@given(st.floats(0, 1, exclude_max=True), st.characters(codec="utf-8"))
def test_json_with_another_character_is_refused_or_works(share: float, other: str) -> None:
    whole = json_of_a_few_merges()
    place = int(share * len(whole))
    try:
        tokenizer = Tokenizer.from_json(whole[:place] + other + whole[place + 1 :])
    except BundleError:
        return
    assert tokenizer.encode("the man in red", 12)[0] == tokenizer.start_id


def test_files_that_are_no_text_or_are_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe\xe9")
    for path in (tmp_path / "latin.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(BundleError, match=f"{path.name}: the tokenizer cannot be read"):
            Tokenizer.load(path)
