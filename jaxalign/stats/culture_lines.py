"""What the cultural alignment score comes to without any model: the lines to print beside it.

    random_option      an option drawn uniformly for every item
    midpoint           the middle of every scale, also where no option stands there
    another_country    another country's majority answers, mean over the others
    random_respondent  an answer drawn from the country's own shares, item by item
    median_of_others   lower median of the other countries' majority answers: one that exists
    mean_of_others     mean of the other countries' majority answers
    best_neighbour     the one other country's majority answers that score highest
    own_mean           the mean answer of the country's own respondents

Scores are in [0, 1]; answers are positions of options (see `jaxalign.surveys.tables`), NaN for
none.
A line is scored against a country on the items that the country was asked and the line answers.
Score: Xu et al. 2025 (CultureSPA, arXiv 2410.12971), who print none of these lines.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats.distances import alignment_score
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


class CultureLines(NamedTuple):
    """`scores[line]` float32 [C] in [0, 1], NaN where it cannot be had; `best_neighbour[c]` is the
    country behind that line, "" without one; `answers[line]` [C, Q] for lines that are one set of
    answers per country."""

    scores: dict[str, np.ndarray]
    best_neighbour: tuple[str, ...]
    answers: dict[str, np.ndarray]


def alignment(
    answers_xQ: np.ndarray, gold_xQ: np.ndarray, tables: Tables, counts_Q: np.ndarray | None = None
) -> np.ndarray:
    """Cultural alignment score [...] in [0, 1] over items that both sides answer, float32.

    Leading dimensions broadcast. `counts_Q` leaves items out; by default all enter, nominal ones
    too, as in the published scores. NaN where no item is left.
    """
    counts_Q = np.ones(len(tables.range_Q), bool) if counts_Q is None else counts_Q
    return np.asarray(_alignment(answers_xQ, gold_xQ, tables.range_Q, counts_Q))


@jax.jit
def _alignment(
    answers_xQ: jax.Array, gold_xQ: jax.Array, range_Q: jax.Array, counts_Q: jax.Array
) -> jax.Array:
    a, g = jnp.broadcast_arrays(answers_xQ, gold_xQ)
    counts = ~jnp.isnan(a) & ~jnp.isnan(g) & jnp.broadcast_to(counts_Q, a.shape)
    known = (jnp.where(counts, x, 0.0) for x in (a, g))
    return alignment_score(*known, range_Q, counts)


def between_countries(tables: Tables, counts_Q: np.ndarray | None = None) -> np.ndarray:
    """float32 [C, C] in [0, 1]: alignment of countries' majority answers; symmetric, 1 on the
    diagonal. × 100 and rounded to one decimal it is CultureSPA's similarity of countries."""
    gold = tables.gold_CxQ
    return alignment(gold[:, None], gold[None], tables, counts_Q)


def culture_lines(
    tables: Tables, counts_Q: np.ndarray | None = None, draws: int = 4096, seed: int = 0
) -> CultureLines:
    """Every line for every country. The two random ones are means over `draws` draws of all items:
    an error of about 0.0003, the same in every call."""
    answers = line_answers(tables)
    scores = {name: alignment(a, tables.gold_CxQ, tables, counts_Q) for name, a in answers.items()}
    others = between_countries(tables, counts_Q)
    np.fill_diagonal(others := others.copy(), np.nan)
    scores["another_country"] = _nan_mean(others, axis=1)
    best = [int(np.nanargmax(row)) if not np.isnan(row).all() else -1 for row in others]
    scores["best_neighbour"] = np.array([others[c, b] if b >= 0 else np.nan
                                         for c, b in enumerate(best)], np.float32)  # fmt: skip
    counts_CxQ = tables.asked_CxQ if counts_Q is None else tables.asked_CxQ & counts_Q
    scores |= _random_lines(tables, counts_CxQ, draws, seed)
    neighbours = tuple(tables.countries[b] if b >= 0 else "" for b in best)
    answers["best_neighbour"] = np.stack(
        [tables.gold_CxQ[b] if b >= 0 else np.full_like(tables.gold_CxQ[0], np.nan) for b in best]
    )
    return CultureLines({name: scores[name] for name in LINES}, neighbours, answers)


def line_answers(tables: Tables) -> dict[str, np.ndarray]:
    """float32 [C, Q] for each line that is one set of answers, but for `best_neighbour`."""
    steps_O = np.arange(tables.truth_CxQxO.shape[-1], dtype=np.float32)
    others = [np.delete(tables.gold_CxQ, c, axis=0) for c in range(len(tables.countries))]
    return {
        "midpoint": np.broadcast_to(tables.range_Q / 2, tables.gold_CxQ.shape),
        "median_of_others": np.stack([_lower_median(o) for o in others]),
        "mean_of_others": np.stack([_nan_mean(o, axis=0) for o in others]),
        "own_mean": np.sum(tables.truth_CxQxO * steps_O, axis=-1),
    }


def _lower_median(answers_CxQ: np.ndarray) -> np.ndarray:
    """[Q]: of an even number of answers the lower of the middle two; NaN where there is none."""
    known = np.sum(~np.isnan(answers_CxQ), axis=0)
    if not len(answers_CxQ):
        return np.full(answers_CxQ.shape[1], np.nan, np.float32)
    middle = np.maximum(known - 1, 0) // 2
    return np.take_along_axis(np.sort(answers_CxQ, axis=0), middle[None], axis=0)[0]


def _nan_mean(x: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is known, NaN where nothing is."""
    known = ~np.isnan(x)
    count = known.sum(axis)
    total = np.where(known, x, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _random_lines(
    tables: Tables, counts_CxQ: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """The root in the score keeps its expectation from a closed form, so it is sampled."""
    option, respondent = jax.random.split(jax.random.key(seed))
    gold = jnp.nan_to_num(jnp.asarray(tables.gold_CxQ))
    ranges, counts = jnp.asarray(tables.range_Q), jnp.asarray(counts_CxQ)
    truth = jnp.nan_to_num(jnp.asarray(tables.truth_CxQxO))
    uniform = jnp.asarray(tables.valid_QxO) / (ranges + 1)[:, None]
    everywhere = jnp.broadcast_to(uniform[None], truth.shape)
    return {
        "random_option": np.asarray(_sampled(option, everywhere, gold, ranges, counts, draws)),
        "random_respondent": np.asarray(_sampled(respondent, truth, gold, ranges, counts, draws)),
    }


@functools.partial(jax.jit, static_argnames="draws")
def _sampled(
    key: jax.Array,
    shares_CxQxO: jax.Array,
    gold_CxQ: jax.Array,
    range_Q: jax.Array,
    counts_CxQ: jax.Array,
    draws: int,
) -> jax.Array:
    """float32 [C]: mean score of answers drawn from `shares`, the same luck for every country."""
    luck = jax.random.uniform(key, (draws, len(range_Q)))

    def one_country(of: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        shares_QxO, gold_Q, counts_Q = of
        reached_QxO = jnp.cumsum(shares_QxO, axis=-1)
        passed = luck[..., None] > reached_QxO[None]
        # A sum of shares may round to less than 1, and luck may pass it.
        drawn = jnp.minimum(jnp.sum(passed, axis=-1).astype(jnp.float32), range_Q[None])
        return jnp.mean(alignment_score(drawn, gold_Q, range_Q, counts_Q))

    return jax.lax.map(one_country, (shares_CxQxO, gold_CxQ, counts_CxQ))
