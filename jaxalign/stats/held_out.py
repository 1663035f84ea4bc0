"""Does a prompt tuned on one survey carry over to another? Scores, intervals, permutation test.

A low loss on the tuned survey is weak evidence: tens of thousands of answer patterns reach any six
scores. Better evidence is that answers to the *held-out* survey move towards the same country, and
that they do so more than under the prompts tuned for other countries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.stats.distances import item_similarities
from jaxalign.stats.seeds import crossed_interval
from jaxalign.stats.vsm import answer_distributions
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table, ordinal_items

BASELINES = ("naive", "persona", "icl")
"""Methods that need no tuning; the strongest of them is what a tuned prompt is compared with."""
_MOST_PERMUTATIONS = 10_000


def similarity_by_item(
    survey: Survey, countries: Sequence[str], log_probs_PxQxO: np.ndarray
) -> np.ndarray:
    """Compare answers with every country, item by item, so that differences can be paired by item.

    Args:
        survey: a survey that nothing was tuned on and that says how the countries answered.
        countries: the C countries, or other groups, to compare with.
        log_probs_PxQxO: log-probabilities of the items' options under P prompts.

    Returns:
        float32 [P, C, Q]: 1 where an answer distribution equals the country's, 0 at the far end of
        the scale; NaN for items that the country did not answer. See
        `jaxalign.stats.distances.item_similarities`.
    """
    # Prompts against countries by broadcasting: [P, 1, Q, O] and [1, C, Q, O] give [P, C, Q].
    valid_QxO, _ = option_table(survey)
    truth_CxQxO = np.stack([survey.truth_QxO(country) for country in countries])
    p_PxQxO = answer_distributions(log_probs_PxQxO, valid_QxO[None])
    similarity = item_similarities(
        p_PxQxO[:, None],
        truth_CxQxO[None],
        ordinal_items(survey)[None, None],
        valid_QxO[None, None],
    )
    return np.asarray(similarity)


def item_interval(values_xQ: np.ndarray, seed: int) -> dict[str, float] | None:
    """Return the mean and its 95 % bootstrap interval as a record of `result.json`.

    Args:
        values_xQ: one value per item [Q], or [..., Q] with seeds and presentations before the
            items, which are then resampled as well; NaN for none.
        seed: seed of the resamples.

    Returns:
        `mean`, `low` and `high`; None if no item has a value.
    """
    interval = crossed_interval(values_xQ, seed)
    return interval.record() if interval else None


def permutation_test(matrix_xCxC: np.ndarray, seed: int) -> dict[str, Any]:
    """Test whether prompts are nearest to the countries they were tuned for.

    The statistic is the mean of the diagonal. The p-value is the share of all assignments of
    prompts to countries that reach it, the true assignment included, so it is at least
    1 / assignments. Where there are more than 10,000 assignments, that many random ones are drawn.

    Args:
        matrix_xCxC: `matrix[..., p, c]`, the score of the prompt for country p against country c;
            the mean is taken over leading axes such as seeds.
        seed: seed of the random assignments.

    Returns:
        `own` and `others`, the mean score on and off the diagonal (None for one country);
        `p_value`; `assignments`, how many were compared; `exhaustive`, whether those were all.
    """
    C = matrix_xCxC.shape[-1]
    matrix_CxC = matrix_xCxC.reshape(-1, C, C).mean(axis=0) if matrix_xCxC.ndim > 2 else matrix_xCxC
    rows = np.arange(C)
    exhaustive = math.factorial(C) <= _MOST_PERMUTATIONS
    if exhaustive:
        assignments = np.array(list(itertools.permutations(range(C))))
    else:
        random = np.random.default_rng(seed)
        # The true assignment is put first and counts as one of them.
        drawn = [random.permutation(C) for _ in range(_MOST_PERMUTATIONS - 1)]
        assignments = np.array([rows, *drawn])
    # For each assignment, the mean score of the prompts with the countries assigned to them.
    means = matrix_CxC[rows[None], assignments].mean(axis=1)
    own = float(matrix_CxC[rows, rows].mean())
    return {
        "own": own,
        "others": float(matrix_CxC[~np.eye(C, dtype=bool)].mean()) if C > 1 else None,
        # A margin for rounding: sums of the same scores in another order must count as equal.
        "p_value": float((means >= own - 1e-9).mean()),
        "assignments": len(assignments),
        "exhaustive": exhaustive,
    }


def strongest_baseline(own: Mapping[str, np.ndarray]) -> str:
    """Return the baseline whose answers are nearest to a country's own.

    It is chosen by the scores that it is then compared by, which favours it, not the tuned prompt.

    Args:
        own: by method, how similar its answers for a country are to the country's, [..., Q].
    """
    means = {name: np.nanmean(own[name]) for name in BASELINES if not np.isnan(own[name]).all()}
    return max(means, key=means.__getitem__, default=BASELINES[0])


def held_out_record(
    similarity: Mapping[str, np.ndarray], countries: Sequence[str], country: str, seed: int
) -> dict[str, Any]:
    """Make one country's `held_out` entry of `result.json`.

    Args:
        similarity: for each method [C, C, Q], the similarity of its answers for country p to
            country c in item q. Seeds may stand in front, [S, C, C, Q]: they are averaged over and
            resampled. Methods are "naive", "start", "tuned", "persona", "icl" and, if it was run,
            "gradient".
        countries: the C countries.
        country: the country of the entry.
        seed: seed of the bootstrap.

    Returns:
        Intervals of the mean over items: `before` is the model asked plainly, `after` the tuned
        prompt, `permuted` the mean of the prompts tuned for the other countries, and
        `after_minus_…` are differences paired by item, `after_minus_strongest` the one from the
        baseline with the highest score. None where there is nothing to compare.
    """
    c = list(countries).index(country)
    # Similarity of each method's answers for this country to this country, by item.
    own = {method: values[..., c, c, :] for method, values in similarity.items()}
    # The control: prompts tuned for the other countries, against this country.
    others = [similarity["tuned"][..., p, c, :] for p in range(len(countries)) if p != c]
    permuted = np.mean(others, axis=0) if others else np.full_like(own["tuned"], np.nan)
    gradient = {"gradient": item_interval(own["gradient"], seed)} if "gradient" in own else {}
    return gradient | {
        "before": item_interval(own["naive"], seed),
        "start": item_interval(own["start"], seed),
        "after": item_interval(own["tuned"], seed),
        "persona": item_interval(own["persona"], seed),
        "icl": item_interval(own["icl"], seed),
        "permuted": item_interval(permuted, seed),
        "after_minus_before": item_interval(own["tuned"] - own["naive"], seed),
        "after_minus_start": item_interval(own["tuned"] - own["start"], seed),
        "after_minus_permuted": item_interval(own["tuned"] - permuted, seed),
        "after_minus_strongest": item_interval(own["tuned"] - own[strongest_baseline(own)], seed),
    }


def gap_over_generations(
    generations: Sequence[int], tuned_losses: Sequence[float], held_out_scores: Sequence[float]
) -> dict[str, Any]:
    """Compare how fast a tuned loss falls with how fast a held-out score rises.

    The two have different units, so each is turned into the share of the distance from people that
    has been removed since the first generation given: 1 - loss / first loss, and for scores in
    [0, 1], of which 1 is people's, 1 - (1 - score) / (1 - first score).

    Args:
        generations: generations at which both were measured, the first of them the start.
        tuned_losses: the loss of the tuned objective at each of them.
        held_out_scores: the held-out score at each of them.

    Returns:
        `generations`, `tuned_loss` and `held_out` as given; `tuned_removed`, `held_out_removed` and
        their difference `gap`, one per generation; None where the first distance is 0.
    """
    loss_G = np.asarray(tuned_losses, np.float64)
    distance_G = 1 - np.asarray(held_out_scores, np.float64)

    def removed(distance_G: np.ndarray) -> list[float | None]:
        if not distance_G[0] > 0:
            return [None] * len(distance_G)
        return (1 - distance_G / distance_G[0]).tolist()

    tuned, held_out = removed(loss_G), removed(distance_G)
    return {
        "generations": list(map(int, generations)),
        "tuned_loss": loss_G.tolist(),
        "held_out": list(map(float, held_out_scores)),
        "tuned_removed": tuned,
        "held_out_removed": held_out,
        "gap": [
            None if a is None or b is None else a - b for a, b in zip(tuned, held_out, strict=True)
        ],
    }
