"""Who sees whom in a prefix tree laid out depth first: one number a key.

A token's descendants stand right after it, so key s is seen by the token at t if
s <= t < until[s]. Text before the tree is seen by all that follows. The same rule holds for plain
causal attention (`until` is the end) and for packed sequences (the end of one's own).

Pure numpy: knows neither model nor JAX. Letters: T query, S key.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxalign.answering.plan import Layout


def sees(asks: Any, at: Any, until: Any) -> Any:
    """Whether queries standing at `asks` see keys that stand at `at`; numpy or JAX, broadcast."""
    return (at <= asks) & (asks < until)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Queries and keys of one attention, counted over [before | common | tree]."""

    asks_T: np.ndarray  # int32: where each query stands
    until_S: np.ndarray  # int32: the first position that no longer sees a key

    def mask(self) -> np.ndarray:
        """bool [T, S]: query t sees key s."""
        return sees(self.asks_T[:, None], np.arange(len(self.until_S)), self.until_S)

    def padded(self, queries: int, keys: int) -> Spans:
        """To multiples of so many queries and keys. Nobody sees a padding key; a padding query
        sees what the first token sees, so that nothing is divided by nothing."""
        more = -len(self.asks_T) % queries, -len(self.until_S) % keys
        return Spans(
            *(np.pad(a, (0, n)) for a, n in zip((self.asks_T, self.until_S), more, strict=True))
        )

    def blocks(self, queries: int, keys: int) -> np.ndarray:
        """int32 [T / queries, 1 + most]: for each block of queries how many blocks of keys any of
        them sees, and then which. Both lengths must be multiples."""
        mask = self.mask().reshape(len(self.asks_T) // queries, queries, -1, keys)
        seen = [np.flatnonzero(row) for row in mask.any(axis=(1, 3))]
        table = np.zeros((len(seen), 1 + max(map(len, seen))), np.int32)
        for row, found in zip(table, seen, strict=True):
            row[0], row[1 : 1 + len(found)] = len(found), found
        return table


def all_tokens(layout: Layout) -> Spans:
    """Every token of a candidate asks: the prompt, the trunk and the tree."""
    first, total = len(layout.before), _total(layout)
    shared = np.full(first + layout.common_length, total)
    until = np.concatenate([shared, len(shared) + layout.ends]).astype(np.int32)
    return Spans(np.arange(first, total, dtype=np.int32), until)


def answers_only(layout: Layout) -> Spans:
    """Only the answer nodes ask, as in the last layer."""
    first = _total(layout) - len(layout.tree)
    return Spans((first + layout.answers).astype(np.int32), all_tokens(layout).until_S)


def _total(layout: Layout) -> int:
    return len(layout.before) + layout.tokens_computed
