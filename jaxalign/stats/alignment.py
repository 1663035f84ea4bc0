"""The cultural alignment score, what it amounts to without a model, and whether personas differ.

The score compares answers with a country's majority answers; answers are positions of options
(`jaxalign.surveys.tables`), NaN for none, and scores are in [0, 1]. Source: Xu et al. 2025
(CultureSPA, arXiv 2410.12971).

A score means little without the scores of answers that need no model. These lines, which the paper
does not print, are computed by `culture_lines`:

    random_option      an option drawn uniformly for every item
    midpoint           the middle of every scale, also where no option stands there
    another_country    another country's majority answers, mean over the others
    random_respondent  an answer drawn from the country's own shares, item by item
    median_of_others   lower median of the other countries' majority answers: one that exists
    mean_of_others     mean of the other countries' majority answers
    best_neighbour     the one other country's majority answers that score highest
    own_mean           the mean answer of the country's own respondents

Every line is scored against a country on the items that the country was asked and the line answers.

The second half asks whether personas differ as their countries do: is a persona nearest to its own
country (`identify`), are personas more alike than people (`agreement`), how much of the score do
long scales decide, and a map of all of them (`classical_scaling`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats.distances import cultural_alignment
from jaxalign.surveys.tables import Tables

LINES = {
    "random_option": "random option",
    "midpoint": "scale midpoint",
    "another_country": "another country's majority answers",
    "random_respondent": "a random respondent of the country",
    "median_of_others": "median of the other majorities",
    "mean_of_others": "mean of the other majorities",
    "best_neighbour": "best single neighbour",
    "own_mean": "own country's mean answer",
}


def alignment(
    answers_xQ: np.ndarray, gold_xQ: np.ndarray, tables: Tables, counts_Q: np.ndarray | None = None
) -> np.ndarray:
    """Compute the cultural alignment score over the items that both sides answer.

    Args:
        answers_xQ: positions of options [..., Q], NaN for no answer.
        gold_xQ: majority answers in the same form; leading dimensions broadcast.
        tables: the survey as arrays, for the ranges of the items.
        counts_Q: bool [Q], the items that enter; by default all, nominal ones included, as in the
            published scores.

    Returns:
        float32 [...] in [0, 1]; NaN where no item is left.
    """
    counts_Q = np.ones(len(tables.range_Q), bool) if counts_Q is None else counts_Q
    return np.asarray(_alignment(answers_xQ, gold_xQ, tables.range_Q, counts_Q))


@jax.jit
def _alignment(
    answers_xQ: jax.Array, gold_xQ: jax.Array, range_Q: jax.Array, counts_Q: jax.Array
) -> jax.Array:
    a, g = jnp.broadcast_arrays(answers_xQ, gold_xQ)
    # An item enters where both sides answered it; elsewhere 0 stands in for NaN.
    counts = ~jnp.isnan(a) & ~jnp.isnan(g) & jnp.broadcast_to(counts_Q, a.shape)
    known = (jnp.where(counts, x, 0.0) for x in (a, g))
    return cultural_alignment(*known, range_Q, counts)


def between_countries(tables: Tables, counts_Q: np.ndarray | None = None) -> np.ndarray:
    """Compute the alignment of the countries' majority answers with each other.

    Returns:
        float32 [C, C] in [0, 1], symmetric with a diagonal of 1. Times 100 and rounded to one
        decimal it is CultureSPA's similarity of countries.
    """
    gold = tables.gold_CxQ
    # Rows against columns by broadcasting: [C, 1, Q] and [1, C, Q] give [C, C].
    return alignment(gold[:, None], gold[None], tables, counts_Q)


class CultureLines(NamedTuple):
    """Scores that need no model.

    Attributes:
        scores: for each line float32 [C] in [0, 1]; NaN where a country has none.
        best_neighbour: the country behind that line for each of C; "" where there is none.
        answers: float32 [C, Q] for each line that is one set of answers per country.
    """

    scores: dict[str, np.ndarray]
    best_neighbour: tuple[str, ...]
    answers: dict[str, np.ndarray]


def culture_lines(
    tables: Tables, counts_Q: np.ndarray | None = None, draws: int = 4096, seed: int = 0
) -> CultureLines:
    """Compute every line for every country.

    Args:
        tables: how the countries answered.
        counts_Q: bool [Q], the items that enter; default: all.
        draws: number of draws of all items behind each of the two random lines. Their error is then
            about 0.0003, and the same in every call.
        seed: seed of the random lines.
    """
    # Lines that are one set of answers per country are scored like a model's answers.
    answers = line_answers(tables)
    scores = {name: alignment(a, tables.gold_CxQ, tables, counts_Q) for name, a in answers.items()}
    # The lines made of other countries; a country is not its own neighbour.
    others_CxC = between_countries(tables, counts_Q).copy()
    np.fill_diagonal(others_CxC, np.nan)
    scores["another_country"] = _nan_mean(others_CxC, axis=1)
    # -1 stands for "no other country shares an item with this one".
    best_C = [-1 if np.isnan(row).all() else int(np.nanargmax(row)) for row in others_CxC]
    scores["best_neighbour"] = np.array(
        [others_CxC[c, best] if best >= 0 else np.nan for c, best in enumerate(best_C)], np.float32
    )
    no_answers_Q = np.full_like(tables.gold_CxQ[0], np.nan)
    answers["best_neighbour"] = np.stack(
        [tables.gold_CxQ[best] if best >= 0 else no_answers_Q for best in best_C]
    )
    neighbours = tuple(tables.countries[best] if best >= 0 else "" for best in best_C)
    counts_CxQ = tables.asked_CxQ if counts_Q is None else tables.asked_CxQ & counts_Q
    scores |= _random_lines(tables, counts_CxQ, draws, seed)
    return CultureLines({name: scores[name] for name in LINES}, neighbours, answers)


def line_answers(tables: Tables) -> dict[str, np.ndarray]:
    """Return float32 [C, Q] for each line that is one set of answers, except `best_neighbour`."""
    steps_O = np.arange(tables.truth_CxQxO.shape[-1], dtype=np.float32)
    # For each country, the majority answers of all the others: [C - 1, Q].
    others = [np.delete(tables.gold_CxQ, c, axis=0) for c in range(len(tables.countries))]
    return {
        "midpoint": np.broadcast_to(tables.range_Q / 2, tables.gold_CxQ.shape),
        "median_of_others": np.stack([_lower_median(o) for o in others]),
        "mean_of_others": np.stack([_nan_mean(o, axis=0) for o in others]),
        "own_mean": np.sum(tables.truth_CxQxO * steps_O, axis=-1),
    }


def _lower_median(answers_CxQ: np.ndarray) -> np.ndarray:
    """Return the median [Q]: the lower of the middle two answers of an even number; NaN if none."""
    known = np.sum(~np.isnan(answers_CxQ), axis=0)
    if not len(answers_CxQ):
        return np.full(answers_CxQ.shape[1], np.nan, np.float32)
    # numpy sorts NaN last, so the known answers come first.
    middle = np.maximum(known - 1, 0) // 2
    return np.take_along_axis(np.sort(answers_CxQ, axis=0), middle[None], axis=0)[0]


def _nan_mean(x: np.ndarray, axis: int) -> np.ndarray:
    """Return the float32 mean of the known values; NaN where there is none, without a warning."""
    known = ~np.isnan(x)
    count = known.sum(axis)
    total = np.where(known, x, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _random_lines(
    tables: Tables, counts_CxQ: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute the two random lines by sampling: because of the root in the score, its expectation
    has no closed form."""
    option_key, respondent_key = jax.random.split(jax.random.key(seed))
    gold = jnp.nan_to_num(jnp.asarray(tables.gold_CxQ))
    ranges, counts = jnp.asarray(tables.range_Q), jnp.asarray(counts_CxQ)
    truth = jnp.nan_to_num(jnp.asarray(tables.truth_CxQxO))
    # "random option" draws from the uniform distribution over an item's options, the same for all.
    uniform_QxO = jnp.asarray(tables.valid_QxO) / (ranges + 1)[:, None]
    uniform = jnp.broadcast_to(uniform_QxO[None], truth.shape)
    return {
        "random_option": np.asarray(
            _sampled_score(option_key, uniform, gold, ranges, counts, draws)
        ),
        "random_respondent": np.asarray(
            _sampled_score(respondent_key, truth, gold, ranges, counts, draws)
        ),
    }


@functools.partial(jax.jit, static_argnames="draws")
def _sampled_score(
    key: jax.Array,
    shares_CxQxO: jax.Array,
    gold_CxQ: jax.Array,
    range_Q: jax.Array,
    counts_CxQ: jax.Array,
    draws: int,
) -> jax.Array:
    """Return float32 [C]: the mean score of answers drawn from `shares`."""
    # All countries see the same uniform numbers, so that they differ by their shares alone.
    uniform_NxQ = jax.random.uniform(key, (draws, len(range_Q)))

    def one_country(country: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        shares_QxO, gold_Q, counts_Q = country
        # Inverse sampling: the option drawn is the number of cumulative shares that are passed.
        cumulative_QxO = jnp.cumsum(shares_QxO, axis=-1)
        passed = uniform_NxQ[..., None] > cumulative_QxO[None]
        # Shares may sum to slightly less than 1, so that a draw passes even the last option.
        drawn = jnp.minimum(jnp.sum(passed, axis=-1).astype(jnp.float32), range_Q[None])
        return jnp.mean(cultural_alignment(drawn, gold_Q, range_Q, counts_Q))

    return jax.lax.map(one_country, (shares_CxQxO, gold_CxQ, counts_CxQ))


class Identification(NamedTuple):
    """How many rows are nearest to their own column.

    Attributes:
        hits: rows whose own column scores highest; a tie with another column is no hit.
        of: rows in total.
        nearest: for each row the column of the highest score; -1 where the row has no score.
    """

    hits: int
    of: int
    nearest: tuple[int, ...]


def identify(scores_AxB: np.ndarray, own_A: np.ndarray) -> Identification:
    """Count the rows whose highest score stands in their own column, with no other as high.

    With personas as rows it answers: is a persona nearest to its own country? Transposed: is a
    country nearest to its own persona? A row of NaN is a miss.

    Args:
        scores_AxB: scores; NaN where there is none.
        own_A: the column that is a row's own.
    """
    nearest, hits = [], 0
    for row, own in zip(scores_AxB, own_A, strict=True):
        known = np.where(np.isnan(row), -np.inf, row)
        # -1 stands for a row without any score.
        nearest.append(int(np.argmax(known)) if np.isfinite(known).any() else -1)
        # Scores that differ by rounding only are a tie.
        best = np.flatnonzero(np.isclose(known, known.max(), rtol=0, atol=1e-6))
        hits += bool(nearest[-1] >= 0 and len(best) == 1 and best[0] == own)
    return Identification(hits, len(own_A), tuple(nearest))


def agreement(answers_PxQ: np.ndarray, tables: Tables) -> tuple[float, int]:
    """Compute the mean alignment of two different respondents.

    With the countries' majority answers as respondents this is how alike people are; personas that
    score higher among each other than people do homogenise.

    Returns:
        The mean in [0, 1] and the number of pairs; NaN and 0 with fewer than two respondents.
    """
    matrix = alignment(answers_PxQ[:, None], answers_PxQ[None], tables)
    # Each pair once: the triangle above the diagonal.
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    pairs = pairs[~np.isnan(pairs)]
    return (float(pairs.mean()) if len(pairs) else float("nan")), len(pairs)


def long_item_share(tables: Tables) -> float:
    """Return the share of the score's squared denominator that long items carry, in [0, 1].

    A long item has ten options or more.
    """
    squares = tables.range_Q.astype(np.float64) ** 2
    return float(squares[tables.long_Q].sum() / squares.sum())


def long_error_share(answers_Q: np.ndarray, gold_Q: np.ndarray, tables: Tables) -> float:
    """Return the share of the squared error that long items carry, in [0, 1]; NaN without error."""
    squares = np.nan_to_num(answers_Q.astype(np.float64) - gold_Q) ** 2
    total = squares.sum()
    return float(squares[tables.long_Q].sum() / total) if total > 0 else float("nan")


class Map(NamedTuple):
    """Points in a plane.

    Attributes:
        xy_Px2: coordinates in units of 1 − alignment.
        explained: share of the squared distances that the plane keeps, in [0, 1].
    """

    xy_Px2: np.ndarray
    explained: float


def classical_scaling(answers_PxQ: np.ndarray, tables: Tables) -> Map:
    """Place respondents in a plane so that their distances are about 1 − their alignment.

    Classical multidimensional scaling (Torgerson 1952). The sign of each axis is chosen so that the
    point farthest out lies on the positive side. Pairs without a common item get the mean distance.

    Args:
        answers_PxQ: one respondent per row.
        tables: the survey as arrays.
    """
    distance = 1 - alignment(answers_PxQ[:, None], answers_PxQ[None], tables).astype(np.float64)
    known = ~np.isnan(distance)
    distance = np.where(known, distance, distance[known].mean() if known.any() else 0.0)
    np.fill_diagonal(distance, 0.0)
    # Double centring turns squared distances into products of coordinates, whose eigenvectors with
    # the largest eigenvalues are the axes.
    n = len(distance)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centre @ distance**2 @ centre)
    positive = np.maximum(values[::-1], 0.0)
    xy = np.zeros((n, 2))
    for axis in range(min(2, n)):
        # eigh sorts eigenvalues in ascending order, so the last columns are the first axes.
        column = vectors[:, -1 - axis] * np.sqrt(positive[axis])
        farthest = column[np.argmax(np.round(np.abs(column), 9))]
        xy[:, axis] = column * (np.sign(farthest) or 1.0)
    total = positive.sum()
    return Map(xy, float(positive[:2].sum() / total) if total > 0 else 1.0)
