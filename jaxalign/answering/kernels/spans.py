"""Who sees whom in a prefix tree laid out depth first: one number per key.

A token's descendants stand right after it, so key s is seen by the token at t if
s <= t < until[s]. Text before the tree is seen by all that follows. The same rule describes plain
causal attention (`until` is the end) and packed sequences (`until` is the end of the key's own
sequence).

Pure numpy: knows neither model nor JAX. Letters: T query, S key.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxalign.answering.plan import Layout


def sees(asks: Any, at: Any, until: Any) -> Any:
    """Return whether queries at the positions `asks` see keys at the positions `at`.

    Args:
        asks: positions of queries, numpy or JAX; the three broadcast.
        at: positions of keys.
        until: of each key, the first position that no longer sees it.
    """
    return (at <= asks) & (asks < until)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Queries and keys of one attention, counted over [before | common | tree]."""

    asks_T: np.ndarray  # int32: the position of each query
    until_S: np.ndarray  # int32: the first position that no longer sees a key

    def mask(self) -> np.ndarray:
        """Return which query sees which key, bool [T, S]."""
        return sees(self.asks_T[:, None], np.arange(len(self.until_S)), self.until_S)

    def padded(self, queries: int, keys: int) -> Spans:
        """Return the spans filled up to multiples of `queries` and `keys`.

        No query sees a padding key. A padding query sees what the first token sees, so that its
        softmax does not divide by zero.
        """
        more = -len(self.asks_T) % queries, -len(self.until_S) % keys
        return Spans(
            *(np.pad(a, (0, n)) for a, n in zip((self.asks_T, self.until_S), more, strict=True))
        )

    def blocks(self, queries: int, keys: int) -> np.ndarray:
        """Return which blocks of keys each block of queries has to look at.

        Args:
            queries: length of a block of queries; T must be a multiple.
            keys: length of a block of keys; S must be a multiple.

        Returns:
            int32 [T / queries, 1 + most]: for each block of queries the number of blocks of keys
            that any of them sees, then which ones.
        """
        mask = self.mask().reshape(len(self.asks_T) // queries, queries, -1, keys)
        visible = [np.flatnonzero(row) for row in mask.any(axis=(1, 3))]
        table = np.zeros((len(visible), 1 + max(map(len, visible))), np.int32)
        for row, blocks in zip(table, visible, strict=True):
            row[0], row[1 : 1 + len(blocks)] = len(blocks), blocks
        return table


def all_tokens(layout: Layout) -> Spans:
    """Return the spans where every token of a candidate asks: prompt, trunk and tree."""
    first, total = len(layout.before), _total(layout)
    # What comes before the tree is seen to the end; a tree token until its descendants end.
    shared = np.full(first + layout.common_length, total)
    until = np.concatenate([shared, len(shared) + layout.ends]).astype(np.int32)
    return Spans(np.arange(first, total, dtype=np.int32), until)


def answers_only(layout: Layout) -> Spans:
    """Return the spans where only the answer nodes ask, as in the last layer."""
    first = _total(layout) - len(layout.tree)
    return Spans((first + layout.answers).astype(np.int32), all_tokens(layout).until_S)


def _total(layout: Layout) -> int:
    return len(layout.before) + layout.tokens_computed
