"""Whether personas differ as their countries do: identification, dispersion, long scales, a map.

Answers are positions of options, NaN for none; scores are cultural alignment in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxalign.stats.culture_lines import alignment
from jaxalign.surveys.tables import Tables


class Identification(NamedTuple):
    """How often the nearest is one's own. A tie with another is no hit."""

    hits: int
    of: int
    nearest: tuple[int, ...]  # per row asked about, the column of the highest score; -1 for none


def identify(scores_AxB: np.ndarray, own_A: np.ndarray) -> Identification:
    """Rows A of `scores` whose highest entry, and no other as high, stands in column `own_A`.

    With personas as rows: is a persona closest to its own country? Transposed: is a country
    closest to its own persona? A row of NaN is a miss.
    """
    nearest, hits = [], 0
    for row, own in zip(scores_AxB, own_A, strict=True):
        known = np.where(np.isnan(row), -np.inf, row)
        nearest.append(int(np.argmax(known)) if np.isfinite(known).any() else -1)
        best = np.flatnonzero(np.isclose(known, known.max(), rtol=0, atol=1e-6))
        hits += bool(nearest[-1] >= 0 and len(best) == 1 and best[0] == own)
    return Identification(hits, len(own_A), tuple(nearest))


def agreement(answers_PxQ: np.ndarray, tables: Tables) -> tuple[float, int]:
    """Mean alignment of two different respondents, in [0, 1], and the number of pairs.

    With a country's majority answers as respondents this is how alike humans are; personas that
    score higher among each other homogenise. NaN and 0 with fewer than two.
    """
    matrix = alignment(answers_PxQ[:, None], answers_PxQ[None], tables)
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    pairs = pairs[~np.isnan(pairs)]
    return (float(pairs.mean()) if len(pairs) else float("nan")), len(pairs)


def long_item_share(tables: Tables) -> float:
    """Share of the score's squared denominator that items of ten options or more carry, [0, 1]."""
    squares = tables.range_Q.astype(np.float64) ** 2
    return float(squares[tables.long_Q].sum() / squares.sum())


def long_error_share(answers_Q: np.ndarray, gold_Q: np.ndarray, tables: Tables) -> float:
    """Share of the squared error that those items carry, [0, 1]; NaN where there is no error."""
    squares = np.nan_to_num(answers_Q.astype(np.float64) - gold_Q) ** 2
    total = squares.sum()
    return float(squares[tables.long_Q].sum() / total) if total > 0 else float("nan")


class Map(NamedTuple):
    """Coordinates in units of 1 − alignment, and the share of the squared distances they keep."""

    xy_Px2: np.ndarray
    explained: float


def place(answers_PxQ: np.ndarray, tables: Tables) -> Map:
    """Two dimensions in which points lie about as far apart as 1 − their alignment.

    Classical multidimensional scaling (Torgerson 1952). Axes are signed so that the point farthest
    out on each lies on the positive side. Pairs without a common item are put at the mean distance.
    """
    distance = 1 - alignment(answers_PxQ[:, None], answers_PxQ[None], tables).astype(np.float64)
    known = ~np.isnan(distance)
    distance = np.where(known, distance, distance[known].mean() if known.any() else 0.0)
    np.fill_diagonal(distance, 0.0)
    n = len(distance)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centre @ distance**2 @ centre)
    positive = np.maximum(values[::-1], 0.0)
    xy = np.zeros((n, 2))
    for axis in range(min(2, n)):
        column = vectors[:, -1 - axis] * np.sqrt(positive[axis])
        farthest = column[np.argmax(np.round(np.abs(column), 9))]
        xy[:, axis] = column * (np.sign(farthest) or 1.0)
    total = positive.sum()
    return Map(xy, float(positive[:2].sum() / total) if total > 0 else 1.0)
