"""The cultural alignment score of CultureSPA."""

from __future__ import annotations

import jax

from jaxalign.stats.metrics import ItemPairs, metric, squared_range

_SOURCE = "Xu et al. 2025 (CultureSPA, arXiv 2410.12971)"


@metric(
    "alignment",
    "cultural alignment score, all items as published",
    _SOURCE,
    largest_error=squared_range,
    rooted=True,
)
@metric(
    "alignment_ordinal",
    "cultural alignment score, ordinal items only",
    _SOURCE,
    needs_order=True,
    largest_error=squared_range,
    rooted=True,
)
def squared_gap(pairs: ItemPairs) -> jax.Array:
    """Return the squared distance from the majority answer, in option steps squared."""
    return pairs.gap**2
