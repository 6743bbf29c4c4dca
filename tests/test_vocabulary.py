"""A student's small vocabulary."""

import json

from cris_edge.tokenizer import build
from training.data.nouns import NOUNS
from training.data.vocabulary import clip_merges, student_tokenizer


def pieces(tokenizer, merges, text):
    """The text's tokens as strings, from ids by CLIP's order of the vocabulary."""
    ids = [int(i) for i in tokenizer.encode(text, 64)]
    inner = ids[1 : ids.index(tokenizer.end_id)]
    return ["".join(merges[i - 512]) if i >= 512 else i for i in inner]


def test_a_small_vocabulary_splits_as_clip_does():
    merges = clip_merges()
    assert len(merges) == 48_894
    texts = [noun for nouns in NOUNS.values() for noun in nouns]
    texts += ["second rhinoceros from the left", "café's  naïve &amp; ünïcode ☕ 42nd", "zzyzx"]
    small, full = student_tokenizer(texts, first=300), build(merges)
    assert small.vocab_size < 1500
    kept = small_merges(small, merges)
    for text in texts:
        assert pieces(small, kept, text) == pieces(full, merges, text)
    assert student_tokenizer([], first=300).vocab_size == 512 + 300 + 2


def small_merges(small, merges):
    """The kept merges in order, read from the tokenizer's saved file."""
    rank = {merge: i for i, merge in enumerate(merges)}
    content = json.loads(small.to_json())["model"]["merges"]
    kept = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in content]
    assert kept == sorted(kept, key=rank.__getitem__)
    return kept
