"""Metrics that compare an answer with the country's majority answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.stats.metrics import ItemPairs, metric


@metric("exact_match", "share of items with the majority answer", "ours")
def differs(pairs: ItemPairs) -> jax.Array:
    """Return 1 where the answer is not the majority answer, else 0."""
    return (pairs.gap != 0).astype(jnp.float32)


@metric(
    "closeness",
    "1 − mean |answer − majority| / range, ordinal items",
    "ours",
    needs_order=True,
)
def relative_gap(pairs: ItemPairs) -> jax.Array:
    """Return the distance from the majority answer as a fraction of the item's scale."""
    return pairs.gap / pairs.range
