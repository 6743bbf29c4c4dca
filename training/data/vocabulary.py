"""CLIP's byte pair merges, and the part of them that a small model needs."""

import gzip
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cris_edge.tokenizer import Tokenizer, build
from training.errors import DataError

Merge = tuple[str, str]

_MERGES = 49152 - 256 - 2
_BYTES = 512  # 256 byte characters, alone and at the end of a word
_LONGEST = 512  # ids kept of a phrase while looking for what it uses


@cache
def clip_merges() -> tuple[Merge, ...]:
    """CLIP's 48,894 merges in order of rank, from the file that open_clip brings along.

    Raises:
        DataError: open_clip is not installed, or its file is not the expected one.
    """
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("CLIP's vocabulary comes with open_clip: pip install cris-edge[train]")
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except OSError as error:
        raise DataError(f"CLIP's vocabulary {path} cannot be read: {error}") from error
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1]]
    if len(merges) != _MERGES or any(len(merge) != 2 for merge in merges):
        raise DataError(f"{path} should hold {_MERGES} merges of two tokens each")
    return tuple((merge[0], merge[1]) for merge in merges)


def student_tokenizer(texts: Iterable[str], first: int = 4096) -> Tokenizer:
    """CLIP's tokenizer with a small vocabulary, for which `texts` split exactly as for CLIP.

    Kept are the `first` merges and every merge on the way to a token of `texts`. Merges that were
    never used do not change which one is applied next, so leaving them out changes nothing.

    Args:
        texts: phrases the tokenizer must not split finer than CLIP does.
        first: how many of the commonest merges to keep in any case.
    """
    merges = clip_merges()
    ranks = {left + right: rank for rank, (left, right) in enumerate(merges)}
    kept = set(range(min(first, len(merges))))
    waiting = sorted(_used(build(merges), texts))
    while waiting:
        rank = waiting.pop()
        if rank not in kept:
            kept.add(rank)
        waiting += [ranks[part] for part in merges[rank] if ranks.get(part, rank) not in kept]
    return build([merges[rank] for rank in sorted(kept)])


def _used(tokenizer: Tokenizer, texts: Iterable[str]) -> set[int]:
    """Ranks of the merges whose tokens occur in the texts."""
    ids = {int(i) for text in set(texts) for i in tokenizer.encode(text, _LONGEST)}
    specials = {tokenizer.end_id, tokenizer.end_id - 1}
    return {i - _BYTES for i in ids - specials if i >= _BYTES}
