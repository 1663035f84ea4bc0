"""Metrics that take several items or countries together, beside those in `metrics.py`.

For who asks a model the items of a `ChoiceTest` or compares countries within an item; no experiment
here does.

- `group_accuracy`: CulturalBench Hard (Chiu et al. 2024) asks four true-or-false rows a question
  and counts the question only when all four are right. Rows scored apart would give three quarters
  to a constant "false".
- `over_countries`: a rank correlation of countries within an item, where `kendall_tau` and
  `spearman_rho` as they stand rank items. Whether a model orders countries rightly does not depend
  on where it places all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

RankCorrelation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def group_index(groups: Sequence[str]) -> np.ndarray:
    """int32 [Q]: the number of each item's group, counted in order of appearance."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(g, len(number)) for g in groups], np.int32)


def all_right(correct_xQ: jax.Array, group_Q: np.ndarray) -> jax.Array:
    """bool [..., G]: whether every item of a group is right. `group_Q` from `group_index`."""
    correct = jnp.moveaxis(jnp.asarray(correct_xQ, jnp.int32), -1, 0)
    groups = int(group_Q.max()) + 1
    right = jax.ops.segment_min(correct, jnp.asarray(group_Q), num_segments=groups)
    return jnp.moveaxis(right, 0, -1) == 1


def group_accuracy(correct_xQ: jax.Array, group_Q: np.ndarray) -> jax.Array:
    """Share of the groups in which every item is right: [...] in [0, 1].

    `correct_xQ` bool. With every item in a group of its own this is plain accuracy.
    """
    return jnp.mean(all_right(correct_xQ, group_Q).astype(jnp.float32), axis=-1)


def over_countries(
    correlation: RankCorrelation, x_CxQ: jax.Array, y_CxQ: jax.Array, counts_CxQ: jax.Array
) -> jax.Array:
    """`kendall_tau` or `spearman_rho` over countries, for each item: [Q] in [−1, 1].

    `counts_CxQ` bool: the country enters for that item. Ordinal items only: a nominal item's
    answers have no ranks. NaN where one side is constant or fewer than two countries enter.
    """
    return correlation(x_CxQ.T, y_CxQ.T, counts_CxQ.T)
