"""The mean over presentations: an item's answer whichever way its options are shown.

Letters: F presentation, S shown item, Q item, O option.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def mean_log_probs(log_probs_xSxO: jax.Array | np.ndarray, index_FxQ: np.ndarray) -> Any:
    """Return the logarithm of the mean probability of each option over the presentations.

    Differentiable. With one presentation the log-probabilities are returned bit for bit.

    Args:
        log_probs_xSxO: natural logarithms [..., S, O] of the shown items' options, in published
            order whichever way they are shown; -inf for options that an item does not have.
        index_FxQ: which shown item is item q under presentation f, as in `ShownItems`.

    Returns:
        [..., Q, O] of the same kind, numpy or jax, and dtype.

    >>> both_SxO = np.log(np.float32([[0.25, 0.75], [0.75, 0.25]]))  # one item, shown twice
    >>> np.exp(mean_log_probs(both_SxO, np.array([[0], [1]]))).tolist()
    [[0.5, 0.5]]
    """
    presentations = len(index_FxQ)
    if isinstance(log_probs_xSxO, np.ndarray):
        # One presentation at a time: a job's answers may be large.
        mean = log_probs_xSxO[..., index_FxQ[0], :]
        for row_Q in index_FxQ[1:]:
            mean = np.logaddexp(mean, log_probs_xSxO[..., row_Q, :])
        return mean if presentations == 1 else mean - mean.dtype.type(math.log(presentations))
    log_probs_xFxQxO = jnp.take(log_probs_xSxO, jnp.asarray(index_FxQ), axis=-2)
    if presentations == 1:
        return log_probs_xFxQxO[..., 0, :, :]
    # Past an item's options everything is -inf, where the gradient of a logsumexp is NaN.
    exists = jnp.isfinite(log_probs_xFxQxO).any(axis=-3)
    safe = jnp.where(exists[..., None, :, :], log_probs_xFxQxO, 0.0)
    mean = jax.nn.logsumexp(safe, axis=-3) - math.log(presentations)
    return jnp.where(exists, mean, -jnp.inf)
