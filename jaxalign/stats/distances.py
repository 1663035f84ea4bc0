"""Distances between two sets of survey answers, in pure JAX, each with its range and source.

Distributions `p_xO` are float [..., O] over an item's options, zero past them. Answers are float
[..., Q] in units of the codes or positions. `counts_Q` is bool, the items that enter. Leading
dimensions broadcast. A mean over no items is NaN, never 0 or 1.

Ordinal distances assume that options are listed in their order. Build the mask of their items with
`jaxalign.surveys.tables.ordinal_items`: between the options of a nominal item there is no distance,
so it takes `total_variation` or a Jensen-Shannon measure.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr


def total_variation(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Compute half the summed absolute difference of two distributions, for any scale.

    Returns:
        [...] in [0, 1], 0 if the distributions are equal.
    """
    p, q = jnp.broadcast_arrays(p_xO, q_xO)
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)


def ordinal_wasserstein(p_xO: jax.Array, q_xO: jax.Array, valid_xO: jax.Array) -> jax.Array:
    """Compute the mean number of option steps that turn p into q, divided by the scale's length.

    This is the Wasserstein-1 distance on the option index. In one dimension it is the summed
    difference of the cumulative shares (Vallender 1974).

    Args:
        p_xO: distributions over options.
        q_xO: distributions to compare with.
        valid_xO: bool, false past the item's options.

    Returns:
        [...] in [0, 1]: 0 if the distributions are equal, 1 from one end of the scale to the other.
    """
    # Moving one unit of share across one step costs 1, and what has to cross the step after option
    # o is the difference of the shares up to o.
    p, q, valid = jnp.broadcast_arrays(p_xO, q_xO, valid_xO)
    steps = jnp.abs(jnp.cumsum(p, axis=-1) - jnp.cumsum(q, axis=-1))[..., :-1]
    between = valid[..., 1:]  # the step from option o to o + 1 exists
    return jnp.sum(steps, axis=-1, where=between) / jnp.sum(between, axis=-1)


def jensen_shannon_divergence(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Compute the mean relative entropy to the midpoint of two distributions, for any scale.

    Returns:
        [...] in bits (base 2), in [0, 1]: 0 if the distributions are equal, 1 where they share no
        option. Source: Lin 1991.
    """
    p, q = jnp.broadcast_arrays(p_xO, q_xO)
    middle = 0.5 * (p + q)
    nats = 0.5 * jnp.sum(rel_entr(p, middle) + rel_entr(q, middle), axis=-1)
    # Rounding may fall below 0, and the root in the distance would be NaN.
    return jnp.maximum(nats / jnp.log(2.0), 0.0)


def jensen_shannon_distance(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Compute the square root of the base-2 divergence, which is a metric.

    Returns:
        [...] in [0, 1]. Not differentiable where the distributions are equal. Source: Endres and
        Schindelin 2003.
    """
    return jnp.sqrt(jensen_shannon_divergence(p_xO, q_xO))


def cultural_alignment(
    answers_Q: jax.Array, gold_Q: jax.Array, range_Q: jax.Array, counts_Q: jax.Array
) -> jax.Array:
    """Compute the cultural alignment score 1 − ‖a − g‖₂ / ‖r‖₂ over the items that count.

    Long scales weigh by their square: ten-point items dominate a survey of four-point ones.

    Args:
        answers_Q: answers a, known for every item that counts.
        gold_Q: a country's majority answers g, in the same unit.
        range_Q: the largest possible distance r of each item, its options less one.
        counts_Q: bool, the items that enter.

    Returns:
        [...] in [0, 1]: 1 if the answers are equal, 0 at opposite ends of every scale.
        Source: Xu et al. 2025 (CultureSPA, arXiv 2410.12971).
    """
    # Sums over items rather than norms of vectors, so that items can be left out under jit.
    a, g, r, counts = jnp.broadcast_arrays(answers_Q, gold_Q, range_Q, counts_Q)
    error = jnp.sum((a - g) ** 2, axis=-1, where=counts)
    return 1 - jnp.sqrt(error / jnp.sum(r.astype(jnp.float32) ** 2, axis=-1, where=counts))


def item_similarities(
    p_QxO: jax.Array, truth_QxO: jax.Array, ordinal_Q: jax.Array, valid_QxO: jax.Array
) -> jax.Array:
    """Compute how similar two distributions are, item by item.

    Args:
        p_QxO: answer distributions [..., Q, O].
        truth_QxO: the country's distributions [..., Q, O]; NaN for an item it was not asked.
        ordinal_Q: bool, whether the item's options have an order.
        valid_QxO: bool, false past an item's options.

    Returns:
        [..., Q] in [0, 1]: 1 − `ordinal_wasserstein` for ordinal items, 1 − `total_variation` for
        nominal ones; NaN where the truth is NaN.
    """
    # Both are computed for every item: a branch per item would not be traceable.
    ordered = ordinal_wasserstein(p_QxO, truth_QxO, valid_QxO)
    unordered = total_variation(p_QxO, truth_QxO)
    return 1 - jnp.where(jnp.broadcast_to(ordinal_Q, ordered.shape), ordered, unordered)


def survey_similarity(
    p_QxO: jax.Array, truth_QxO: jax.Array, ordinal_Q: jax.Array, valid_QxO: jax.Array
) -> jax.Array:
    """Compute the mean of `item_similarities` over the items that the country was asked.

    Each item weighs the same, whatever its number of options. An item without truth is left out. A
    NaN in `p_QxO` is not: it makes the score NaN, so that a broken answer cannot look like a good
    one. Differentiable in `p_QxO`.

    Args:
        p_QxO: answer distributions [..., Q, O].
        truth_QxO: the country's distributions [..., Q, O]; NaN for an item it was not asked.
        ordinal_Q: bool, whether the item's options have an order.
        valid_QxO: bool, false past an item's options.

    Returns:
        [...] in [0, 1]: 1 means the country's distributions in every item.
    """
    asked = ~jnp.isnan(truth_QxO).any(axis=-1)
    known = jnp.where(jnp.isnan(truth_QxO), 0.0, truth_QxO)  # a NaN would reach the gradient
    values = item_similarities(p_QxO, known, ordinal_Q, valid_QxO)
    return jnp.mean(values, axis=-1, where=jnp.broadcast_to(asked, values.shape))
