"""Phrases as the model keeps them, so that a phrase asked again costs nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cris_edge.engines.base import Graph
from cris_edge.tokenizer import Tokenizer

KEPT = 256
"""Phrases kept: 20 MB of cris_edge_s, 56 MB of full CRIS."""

Said = dict[str, NDArray[np.generic]]


class Phrases:
    """Encodes phrases and keeps the latest; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, word_len: int, graph: Graph, kept: int = KEPT):
        """Keep at most `kept` phrases, those used last."""
        self.tokenizer, self.word_len = tokenizer, word_len
        self._graph, self._kept = graph, kept
        self._known: OrderedDict[bytes, Said] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Phrases kept at the moment."""
        return len(self._known)

    def __call__(self, texts: Sequence[str]) -> Said:
        """What the graph `phrase` gives of N phrases, (N, …) each; new ones run in one batch.

        Phrases of the same tokens are one.
        """
        tokens = [self.tokenizer.encode(text, self.word_len) for text in texts]
        keys = [ids.tobytes() for ids in tokens]
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
        new = {key: ids for key, ids in zip(keys, tokens, strict=True) if key not in found}
        if new:
            found |= self._encode(new)
        self._remember({key: found[key] for key in keys})
        said = [found[key] for key in keys]
        if len(said) == 1:
            return said[0]
        return {name: np.concatenate([one[name] for one in said]) for name in said[0]}

    def _encode(self, new: dict[bytes, NDArray[np.int64]]) -> dict[bytes, Said]:
        results = self._graph({"tokens": np.stack(list(new.values()))})
        arrays = {name: self._graph.fetch(value) for name, value in results.items()}
        return {
            # Copies, so that a phrase does not keep its whole batch alive.
            key: {name: array[place : place + 1].copy() for name, array in arrays.items()}
            for place, key in enumerate(new)
        }

    def _remember(self, used: dict[bytes, Said]) -> None:
        with self._lock:
            for key, said in used.items():
                self._known[key] = said
                self._known.move_to_end(key)
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
