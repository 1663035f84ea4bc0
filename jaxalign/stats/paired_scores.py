"""Alignment scores of many methods on the same resampled questions, so that any two are paired.

The score is the one of `jaxalign.stats.distances.alignment_score`, for R runs (seeds) of a method,
C countries and Q items at once. `jaxalign.stats.bootstrap` gives intervals of every metric for a
few systems against the first; here it is one metric, for any difference of means, in plain numpy:
nothing to compile. A test holds the two equal.

Source: score, Xu et al. 2025 (CultureSPA, arXiv 2410.12971); bootstrap, Efron 1979.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jaxalign.stats.bootstrap import ScoreDraws, bootstrap
from jaxalign.stats.intervals import Interval, seed_interval
from jaxalign.surveys.tables import Tables


class Spread(NamedTuple):
    """A value in points (0 to 100) and how certain it is.

    `questions` is the percentile interval over resampled questions, all runs kept; `seeds` is
    Student's interval over runs, None where runs are fewer than two or cannot differ. The value is
    NaN and both intervals are None where a run has no answer at all.
    """

    value: float
    questions: Interval | None
    seeds: Interval | None
    by_seed: tuple[float, ...]


def drawn_scores(answers_RxCxQ: np.ndarray, tables: Tables, draws_NxQ: np.ndarray) -> np.ndarray:
    """Scores in points, [N, R, C]. Answers are positions of options, NaN for none: an item counts
    where both sides have an answer. NaN where a resample holds no such item."""
    gold_1xCxQ = tables.gold_CxQ[None]
    counts = ~np.isnan(answers_RxCxQ) & ~np.isnan(gold_1xCxQ)
    error = np.where(counts, np.nan_to_num(answers_RxCxQ - gold_1xCxQ) ** 2, 0.0)
    allowed = np.where(counts, tables.range_Q[None, None] ** 2, 0.0)
    sums = [np.einsum("nq,rcq->nrc", draws_NxQ, x.astype(np.float32)) for x in (error, allowed)]
    with np.errstate(invalid="ignore"):
        return 100 * (1 - np.sqrt(sums[0] / sums[1]))


def spread(scores_NxR: np.ndarray, level: float = 0.95) -> Spread:
    """Compute the value and both intervals of a mean over runs.

    Args:
        scores_NxR: scores from `drawn_scores`, or differences of them, [1 + resamples, R].
        level: confidence level in (0, 1).
    """
    by_seed = tuple(map(float, scores_NxR[0]))
    if np.isnan(by_seed).any():
        return Spread(float("nan"), None, None, by_seed)
    mean_over_runs = functools.partial(np.mean, axis=-1, dtype=np.float64)
    questions = bootstrap(mean_over_runs, ScoreDraws(scores_NxR), level)
    seeds = seed_interval(scores_NxR[0], level) if np.ptp(by_seed) > 0 else None
    return Spread(questions.mean, questions, seeds, by_seed)
