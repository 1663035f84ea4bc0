"""Metrics that compare the shares of an item's options with those among the country's people."""

from __future__ import annotations

import jax

from jaxalign.stats import distances
from jaxalign.stats.metrics import ItemPairs, metric


@metric(
    "total_variation",
    "1 − total variation to the country's shares",
    "half the summed absolute difference of shares; textbook",
)
def total_variation(pairs: ItemPairs) -> jax.Array:
    """Return the total variation distance of each item."""
    return distances.total_variation(pairs.answer_shares, pairs.country_shares)


@metric(
    "wasserstein",
    "1 − ordinal Wasserstein to the country's shares",
    "Vallender 1974",
    needs_order=True,
)
def wasserstein(pairs: ItemPairs) -> jax.Array:
    """Return the Wasserstein-1 distance of each item on the option index, scaled to [0, 1]."""
    return distances.ordinal_wasserstein(pairs.answer_shares, pairs.country_shares, pairs.valid)


@metric("js_divergence", "1 − Jensen-Shannon divergence, base 2", "Lin 1991")
def js_divergence(pairs: ItemPairs) -> jax.Array:
    """Return the Jensen-Shannon divergence of each item in bits."""
    return distances.jensen_shannon_divergence(pairs.answer_shares, pairs.country_shares)


@metric("js_distance", "1 − Jensen-Shannon distance, base 2", "Endres and Schindelin 2003")
def js_distance(pairs: ItemPairs) -> jax.Array:
    """Return the Jensen-Shannon distance of each item."""
    return distances.jensen_shannon_distance(pairs.answer_shares, pairs.country_shares)
