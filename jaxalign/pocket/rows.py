"""Rows of training tokens in which several continuations share one beginning.

A row is a tree of runs of tokens. A run sees its ancestors and itself, never its siblings, and its
RoPE positions continue those of its parent. Each path from the root therefore reads exactly like a
separate conversation, while a system message or a list of options that many questions share is
computed once.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

MOST_OPTIONS = 10
_MOST_RUNS = 64  # ancestors are bits of one unsigned 64-bit number


@dataclasses.dataclass
class Row:
    """One row, to which runs and targets are added.

    Attributes:
        length: Number of tokens that there is room for.
        tokens: Token ids.
        positions: RoPE position of each token.
        runs: Run of each token.
        ancestors: Ancestors of each run and the run itself, one bit each.
        ends: Position after the last token of each run.
        targets: (index of a token, ids that may follow it, their shares, weight).
    """

    length: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    runs: list[int] = dataclasses.field(default_factory=list)
    ancestors: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    targets: list[tuple[int, list[int], np.ndarray, float]] = dataclasses.field(
        default_factory=list
    )

    def fits(self, count: int) -> bool:
        """Whether there is room for runs of `count` tokens in total."""
        return len(self.tokens) + count <= self.length and len(self.ends) + 2 < _MOST_RUNS

    def add(self, parent: int, tokens: list[int]) -> int:
        """Append a run after the run `parent` (-1: a new root) and return its number."""
        run = len(self.ends)
        start = self.ends[parent] if parent >= 0 else 0
        self.ancestors.append((self.ancestors[parent] if parent >= 0 else 0) | 1 << run)
        self.tokens += tokens
        self.positions += range(start, start + len(tokens))
        self.runs += [run] * len(tokens)
        self.ends.append(start + len(tokens))
        return run

    def target(self, at: int, ids: list[int], shares: np.ndarray, weight: float = 1.0) -> None:
        """Add a target: `ids` should follow the token at index `at` with these shares."""
        self.targets.append((at, ids, shares, weight))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of equal length as arrays.

    `shares` are zero beyond an item's options and where there is no target; `weight` is the weight
    of each target, zero where there is none.
    """

    tokens_BxT: np.ndarray
    positions_BxT: np.ndarray
    mask_Bx1xTxT: np.ndarray
    at_BxA: np.ndarray
    ids_BxAxO: np.ndarray
    shares_BxAxO: np.ndarray
    weight_BxA: np.ndarray


jax.tree_util.register_dataclass(Batch, [f.name for f in dataclasses.fields(Batch)], meta_fields=[])


def stack(rows: list[Row], answers: int) -> Batch:
    """Stack rows of one length; targets beyond the first `answers` of a row are dropped."""
    B, T = len(rows), rows[0].length
    tokens, positions = np.zeros((2, B, T), np.int32)
    mask = np.zeros((B, 1, T, T), bool)
    at, weight = np.zeros((B, answers), np.int32), np.zeros((B, answers), np.float32)
    ids = np.zeros((B, answers, MOST_OPTIONS), np.int32)
    shares = np.zeros((B, answers, MOST_OPTIONS), np.float32)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens[b, :n], positions[b, :n] = row.tokens, row.positions
        runs = np.array(row.runs, np.uint64)
        # Token t sees token s if s comes no later and its run is an ancestor of t's run.
        seen = np.array(row.ancestors, np.uint64)[row.runs]
        mask[b, 0, :n, :n] = np.tril((seen[:, None] >> runs[None]) & np.uint64(1))
        for a, (index, options, target_shares, w) in enumerate(row.targets[:answers]):
            at[b, a], weight[b, a] = index, w
            ids[b, a, : len(options)], shares[b, a, : len(options)] = options, target_shares
    mask |= np.eye(T, dtype=bool)  # padding sees itself, because a softmax needs one key
    return Batch(tokens, positions, mask, at, ids, shares, weight)
