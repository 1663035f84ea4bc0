"""Alignment scores of many methods on the same resampled questions, so that any two are paired.

The score is the cultural alignment score (`jaxalign.stats.distances.cultural_alignment`), for R
runs (seeds) of a method, C countries and Q items at once. `jaxalign.stats.comparison` computes
intervals of every metric for a few systems against the first. This module computes one metric for
any difference of means, in plain numpy with nothing to compile. A test holds the two equal.

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
    """A score in points (0 to 100), or a difference of scores, and how certain it is.

    Attributes:
        value: the mean over runs; NaN where a run has no answer at all.
        questions: percentile interval over resampled questions, with all runs kept; None where the
            value is NaN.
        seeds: Student's interval over runs; None where there are fewer than two or they cannot
            differ.
        by_seed: the score of each run.
    """

    value: float
    questions: Interval | None
    seeds: Interval | None
    by_seed: tuple[float, ...]


def drawn_scores(answers_RxCxQ: np.ndarray, tables: Tables, draws_NxQ: np.ndarray) -> np.ndarray:
    """Compute the scores of every run on every resample.

    Args:
        answers_RxCxQ: positions of options, NaN for no answer. An item counts where the run and the
            country both have an answer.
        tables: how the countries answered.
        draws_NxQ: how often each item is drawn, from `jaxalign.stats.bootstrap.count_draws`.

    Returns:
        float32 [N, R, C] in points; NaN where a resample holds no item that counts.
    """
    gold_1xCxQ = tables.gold_CxQ[None]
    counts = ~np.isnan(answers_RxCxQ) & ~np.isnan(gold_1xCxQ)
    error = np.where(counts, np.nan_to_num(answers_RxCxQ - gold_1xCxQ) ** 2, 0.0)
    largest = np.where(counts, tables.range_Q[None, None] ** 2, 0.0)
    # A resample's sum over its items is the product of its counts with the per-item terms.
    sums = [np.einsum("nq,rcq->nrc", draws_NxQ, x.astype(np.float32)) for x in (error, largest)]
    with np.errstate(invalid="ignore"):
        return 100 * (1 - np.sqrt(sums[0] / sums[1]))


def spread(scores_NxR: np.ndarray, level: float = 0.95) -> Spread:
    """Compute the mean over runs and its two intervals.

    Args:
        scores_NxR: scores from `drawn_scores`, or differences of them, [1 + resamples, R].
        level: confidence level in (0, 1).
    """
    by_seed = tuple(map(float, scores_NxR[0]))
    if np.isnan(by_seed).any():
        return Spread(float("nan"), None, None, by_seed)
    # In float64, because `result.json` records the mean with all its digits.
    mean_over_runs = functools.partial(np.mean, axis=-1, dtype=np.float64)
    questions = bootstrap(mean_over_runs, ScoreDraws(scores_NxR), level)
    # Runs that agree exactly cannot differ, as when nothing random happened: no interval then.
    seeds = seed_interval(scores_NxR[0], level) if np.ptp(by_seed) > 0 else None
    return Spread(questions.mean, questions, seeds, by_seed)
