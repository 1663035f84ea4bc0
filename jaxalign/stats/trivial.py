"""What the six-score loss comes to without any model: the lines every result is printed beside.

Without its constant each dimension is w1·d1 + w2·d2, where d1 and d2 are differences of two items'
answers and no item enters twice. With integer answers on 1...5 each difference is one of
−4...4, so 81 pairs exhaust a dimension and every figure here is exact.
"""

from __future__ import annotations

import numpy as np

from jaxalign.stats.vsm import FORMULAS, VALUE_CODES
from jaxalign.surveys.hofstede import DIMENSIONS

STEPS = np.arange(VALUE_CODES[0] - VALUE_CODES[-1], VALUE_CODES[-1] - VALUE_CODES[0] + 1)


def integer_scores() -> np.ndarray:
    """float64 [6, 81]: every score without C that integer answers can give, in points."""
    d1, d2 = (d.ravel() for d in np.meshgrid(STEPS, STEPS, indexing="ij"))
    pairs = [[w for w, _, _ in FORMULAS[d]] for d in DIMENSIONS]
    return np.array([w1 * d1 + w2 * d2 for w1, w2 in pairs], np.float64)


def integer_chances() -> np.ndarray:
    """float64 [81]: probability of each column of `integer_scores` under uniform random answers."""
    n = len(VALUE_CODES)
    step = (n - np.abs(STEPS)) / n**2  # difference of two independent uniform answers
    return np.outer(step, step).ravel()


def trivial_lines(target_6: np.ndarray, used_6: np.ndarray, constants_6: np.ndarray) -> dict:
    """Losses in points (sum over the dimensions used) that need no model, each a float.

    `all_middle`: answering 3 throughout, or a uniform distribution read as its mean: scores = C.
    `uniform_random`: expected loss of independent uniform integer answers.
    `smallest_integer`: the least that one integer answer per item can reach.
    `target_6` may be NaN where `used_6` (bool) is false.
    """
    used = np.asarray(used_6, bool)
    gap = (np.asarray(target_6, np.float64) - np.asarray(constants_6, np.float64))[used]
    errors = np.abs(integer_scores()[used] - gap[:, None])
    return {
        "all_middle": float(np.abs(gap).sum()),
        "uniform_random": float((errors @ integer_chances()).sum()),
        "smallest_integer": float(errors.min(axis=1).sum()),
    }
