"""Does a prompt tuned on one survey carry over to another? Scores, intervals, permutation test.

A low loss on the tuned survey is weak evidence: ten thousands of answer patterns reach any six
scores. Evidence is that the *held-out* survey moves toward the same country, and more so than
under the prompts tuned for other countries.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.stats.bootstrap import mean_interval
from jaxalign.stats.distances import item_similarities
from jaxalign.stats.vsm import answer_distributions
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table, ordinal_items

_MOST_PERMUTATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A survey that nothing was tuned on, and the truth of C countries.

    `similarity(log_probs)` compares answers with every country item by item, so that paired
    differences and bootstraps over items can follow.
    """

    instrument: Survey
    countries: tuple[str, ...]

    def similarity(self, log_probs_PxQxO: np.ndarray) -> np.ndarray:
        """float32 [P, C, Q]: 1 where an answer distribution equals the country's, 0 at the far
        end; NaN for items the country did not answer. See `metrics.item_similarities`."""
        valid_QxO, _ = option_table(self.instrument)
        truth_CxQxO = np.stack([self.instrument.truth_QxO(c) for c in self.countries])
        p_PxQxO = answer_distributions(log_probs_PxQxO, valid_QxO[None])
        found = item_similarities(
            p_PxQxO[:, None], truth_CxQxO[None], ordinal_items(self.instrument)[None, None],
            valid_QxO[None, None],
        )  # fmt: skip
        return np.asarray(found)


def interval(values_Q: np.ndarray, seed: int) -> dict[str, float] | None:
    """Mean over items with its 95 % item-bootstrap interval; None where no item has a value."""
    if np.isnan(values_Q).all():
        return None
    return mean_interval(values_Q, jax.random.key(seed)).record()


def permutation_test(matrix_CxC: np.ndarray, seed: int) -> dict[str, Any]:
    """Are prompts closest to their own countries? matrix[p, c]: score of p's prompt against c.

    The statistic is the mean of the diagonal; the p-value is the share of all assignments of
    prompts to countries (of 10,000 random ones, where there are more) that reach it, the true one
    among them: its floor is 1 / assignments.
    """
    C = len(matrix_CxC)
    rows = np.arange(C)
    every = math.factorial(C) <= _MOST_PERMUTATIONS
    if every:
        assignments = np.array(list(itertools.permutations(range(C))))
    else:
        random = np.random.default_rng(seed)
        drawn = [random.permutation(C) for _ in range(_MOST_PERMUTATIONS - 1)]
        assignments = np.array([rows, *drawn])
    means = matrix_CxC[rows[None], assignments].mean(axis=1)
    own = float(matrix_CxC[rows, rows].mean())
    return {
        "own": own,
        "others": float(matrix_CxC[~np.eye(C, dtype=bool)].mean()) if C > 1 else None,
        "p_value": float((means >= own - 1e-9).mean()),
        "assignments": len(assignments),
        "exhaustive": every,
    }


def held_out_record(
    similarity: dict[str, np.ndarray], countries: Sequence[str], country: str, seed: int
) -> dict[str, Any]:
    """One country's `held_out` entry of `result.json`, from `similarity[method]` [C, C, Q]: the
    method's answers for country p against country c's truth. `before` is the naive model."""
    c = list(countries).index(country)
    own = {method: values[c, c] for method, values in similarity.items()}
    others = [similarity["tuned"][p, c] for p in range(len(countries)) if p != c]
    permuted = np.mean(others, axis=0) if others else np.full_like(own["tuned"], np.nan)
    gradient = {"gradient": interval(own["gradient"], seed)} if "gradient" in own else {}
    return gradient | {
        "before": interval(own["naive"], seed),
        "start": interval(own["start"], seed),
        "after": interval(own["tuned"], seed),
        "persona": interval(own["persona"], seed),
        "icl": interval(own["icl"], seed),
        "permuted": interval(permuted, seed),
        "after_minus_before": interval(own["tuned"] - own["naive"], seed),
        "after_minus_start": interval(own["tuned"] - own["start"], seed),
        "after_minus_permuted": interval(own["tuned"] - permuted, seed),
    }
