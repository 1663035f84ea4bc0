"""How near one set of survey answers is to another: pure JAX, each with its range and source.

Distributions `p_xO` are float [..., O] over an item's options, zero past them; answers are float
[..., Q] in units of the codes; `counts_Q` is bool, the items that enter. Leading dimensions
broadcast. A mean over no items is NaN, never 0 or 1.

Ordinal metrics assume options listed in their order. Build their mask with `ordinal_items`, or
check one with `check_ordinal`: a nominal item has no distance between its options, and takes
`total_variation` or `exact_match` only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr


def total_variation(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Half the summed absolute difference: [...] in [0, 1], 0 if equal. Any scale."""
    p, q = jnp.broadcast_arrays(p_xO, q_xO)
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)


def ordinal_wasserstein(p_xO: jax.Array, q_xO: jax.Array, valid_xO: jax.Array) -> jax.Array:
    """Least mean number of option steps that turns p into q, over the options less one.

    [...] in [0, 1]: 0 if equal, 1 from one end of the scale to the other. `valid_xO` is false past
    the item's options. Wasserstein-1 on the option index, which in one dimension is the summed
    difference of cumulative shares (Vallender 1974).
    """
    p, q, valid = jnp.broadcast_arrays(p_xO, q_xO, valid_xO)
    steps = jnp.abs(jnp.cumsum(p, axis=-1) - jnp.cumsum(q, axis=-1))[..., :-1]
    between = valid[..., 1:]  # the step from option o to o + 1 exists
    return jnp.sum(steps, axis=-1, where=between) / jnp.sum(between, axis=-1)


def jensen_shannon_divergence(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Mean relative entropy to the midpoint, in bits (base 2): [...] in [0, 1], 0 if equal.

    1 where no option is shared. Any scale. Source: Lin 1991.
    """
    p, q = jnp.broadcast_arrays(p_xO, q_xO)
    middle = 0.5 * (p + q)
    nats = 0.5 * jnp.sum(rel_entr(p, middle) + rel_entr(q, middle), axis=-1)
    return jnp.maximum(nats / jnp.log(2.0), 0.0)  # rounding may fall below 0: no root then


def jensen_shannon_distance(p_xO: jax.Array, q_xO: jax.Array) -> jax.Array:
    """Square root of the base-2 divergence: [...] in [0, 1]; a metric (Endres and Schindelin 2003).

    Not differentiable at equality.
    """
    return jnp.sqrt(jensen_shannon_divergence(p_xO, q_xO))


def cultural_alignment(
    answers_Q: jax.Array, gold_Q: jax.Array, range_Q: jax.Array, counts_Q: jax.Array
) -> jax.Array:
    """1 − ‖a − g‖₂ / ‖r‖₂ over the items that count: [...], 1 if equal, 0 at opposite ends.

    Ordinal items only, and those answered. `range_Q`: the number of options less one. Long scales
    weigh by their square: ten-point items dominate a survey of four-point ones.
    Source: Xu et al. 2025 (CultureSPA, arXiv 2410.12971).
    """
    a, g, r, counts = jnp.broadcast_arrays(answers_Q, gold_Q, range_Q, counts_Q)
    error = jnp.sum((a - g) ** 2, axis=-1, where=counts)
    return 1 - jnp.sqrt(error / jnp.sum(r.astype(jnp.float32) ** 2, axis=-1, where=counts))


def item_similarities(
    p_QxO: jax.Array, truth_QxO: jax.Array, ordinal_Q: jax.Array, valid_QxO: jax.Array
) -> jax.Array:
    """One number per item, [..., Q] in [0, 1]: 1 where the distributions are equal.

    1 − `ordinal_wasserstein` for ordinal items, 1 − `total_variation` for nominal ones. NaN where
    the truth is NaN: the country was not asked.
    """
    ordered = ordinal_wasserstein(p_QxO, truth_QxO, valid_QxO)
    unordered = total_variation(p_QxO, truth_QxO)
    return 1 - jnp.where(jnp.broadcast_to(ordinal_Q, ordered.shape), ordered, unordered)


def survey_similarity(
    p_QxO: jax.Array, truth_QxO: jax.Array, ordinal_Q: jax.Array, valid_QxO: jax.Array
) -> jax.Array:
    """The held-out survey score: mean of `item_similarities` over items with a truth.

    [...] in [0, 1]: 1 is identity with the country's distributions in every item. Each item weighs
    the same whatever its number of options. `p_QxO`, `truth_QxO` [..., Q, O] sum to 1 per item;
    `ordinal_Q` and `valid_QxO` bool. An item without truth is dropped; a NaN in `p_QxO` is not: it
    makes the score NaN.
    """
    asked = ~jnp.isnan(truth_QxO).any(axis=-1)
    known = jnp.where(jnp.isnan(truth_QxO), 0.0, truth_QxO)  # a NaN would reach the gradient
    values = item_similarities(p_QxO, known, ordinal_Q, valid_QxO)
    return jnp.mean(values, axis=-1, where=jnp.broadcast_to(asked, values.shape))
