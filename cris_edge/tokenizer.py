"""Phrase to token ids: CLIP's byte pair encoding, by Hugging Face's `tokenizers`.

The cleaning (mended Unicode, HTML entities, white space, lower case) is CLIP's. A model may know a
part of CLIP's vocabulary only; then it brings its own file.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers

from cris_edge.errors import BundleError, InputError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's rule for what is one word.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clean(text: str) -> str:
    """CLIP's cleaning: mended Unicode, HTML entities (twice), single spaces, lower case.

    Raises:
        InputError: an entity is a number of thousands of digits.
    """
    try:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    except ValueError as error:
        raise InputError(f"the phrase holds an HTML entity that is none: {error}") from error
    return " ".join(text.split()).lower()


class Tokenizer:
    """Turns phrases into the ids that a model was trained on."""

    def __init__(self, encoder: tokenizers.Tokenizer):
        start, end = encoder.token_to_id(START), encoder.token_to_id(END)
        if start is None or end is None:
            raise BundleError(f"the tokenizer has no {START} or no {END}: not one of CLIP's kind")
        self._encoder = encoder
        self.start_id: int = start
        self.end_id: int = end

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read a tokenizer in the JSON form of `tokenizers`.

        Raises:
            BundleError: it is not one, or not of CLIP's kind.
        """
        try:
            encoder = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"not a tokenizer in `tokenizers`' JSON form: {error}") from error
        return cls(encoder)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer's JSON file; errors as for `from_json`."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: the tokenizer cannot be read: {error}") from error

    def to_json(self) -> str:
        """The whole tokenizer as JSON."""
        return self._encoder.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._encoder.get_vocab_size()

    def encode(self, text: str, word_len: int) -> NDArray[np.int64]:
        """Encode one phrase as start, its tokens, end, padding of 0.

        Args:
            text: any phrase; of an empty one start and end are left.
            word_len: length of the result; a longer phrase is cut, the end token stays last.

        Returns:
            (word_len,) int64.

        Raises:
            InputError: it is no text.
            BundleError: the tokenizer is not of CLIP's kind after all.
        """
        if not isinstance(text, str):
            raise InputError(f"a phrase must be a str, not {type(text).__name__}")
        cleaned = clean(text)
        try:
            inner = self._encoder.encode(cleaned, add_special_tokens=False).ids[: word_len - 2]
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"the tokenizer cannot split {text!r}: {error}") from error
        ids = np.zeros(word_len, np.int64)
        ids[: len(inner) + 2] = [self.start_id, *inner, self.end_id]
        return ids


def build(merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Make a tokenizer of CLIP's kind from merges in order of rank.

    Ids are CLIP's: 256 byte characters, the same at the end of a word, one a merge, start, end.
    With all of CLIP's 48,894 merges the ids are CLIP's own 49,408.
    """
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += [left + right for left, right in merges] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    encoder = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), end_of_word_suffix="</w>"))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Tokenizer(encoder)


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte, in the order of CLIP's ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(len(others))]
