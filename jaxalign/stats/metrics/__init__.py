"""Metrics that compare a model's answers to a survey with a country's, extended by adding one file.

A metric is a function that returns the error of each item, decorated with `metric`. Its score is

    1 − f(sum of the items' errors / sum of the items' largest possible errors)

with f the identity or the square root: 1 is the country's own answers, 0 the farthest possible
ones. Every metric is a ratio of two sums over items, so the bootstrap over items computes all of
them in one matrix product (`jaxalign.stats.comparison`).

To add a metric, write a module in this folder; nothing else needs an edit::

    from jaxalign.stats.metrics import ItemPairs, metric

    @metric("within_one_step", "share of items at most one option off", "ours", needs_order=True)
    def within_one_step(pairs: ItemPairs) -> jax.Array:
        return (pairs.gap > 1).astype(jnp.float32)

and name it: `jaxalign score --metrics alignment within_one_step …`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.core.registry import Registry

# The metric of all headline figures. An analysis always includes it.
HEADLINE = "alignment"
DEFAULT_METRICS = (
    HEADLINE,
    "alignment_ordinal",
    "exact_match",
    "closeness",
    "total_variation",
    "wasserstein",
    "js_divergence",
    "js_distance",
)


class ItemPairs(NamedTuple):
    """The answers of systems S in runs R, each paired with the answer of a country C.

    Entries for items that one side did not answer are finite and are ignored afterwards.
    """

    gap: jax.Array  # float32 [S, R, C, Q]: |answer − majority answer| in option steps
    range: jax.Array  # float32 [1, 1, 1, Q]: the number of the item's options less one
    answer_shares: jax.Array  # float32 [S, R, C, Q, O]: the answer as shares of the options
    country_shares: jax.Array  # float32 [S, R, C, Q, O]: how the country's people answered
    valid: jax.Array  # bool [1, 1, 1, Q, O]: false past an item's options


ItemFunction = Callable[[ItemPairs], jax.Array]


def one(pairs: ItemPairs) -> jax.Array:
    """Return 1 for every item: the largest error of an error in [0, 1]."""
    return jnp.ones_like(pairs.gap)


def squared_range(pairs: ItemPairs) -> jax.Array:
    """Return the largest squared gap of each item."""
    return jnp.broadcast_to(pairs.range[0, 0, 0] ** 2, pairs.gap.shape)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as it was registered with `metric`."""

    name: str
    label: str
    source: str
    error: ItemFunction  # float32 [S, R, C, Q], at least 0
    needs_order: bool = False
    largest_error: ItemFunction = one
    rooted: bool = False
    range: tuple[float, float] = (0.0, 1.0)


METRICS: Registry[Metric] = Registry("metric", __name__, parameter="metrics")


def metric(
    name: str,
    label: str,
    source: str,
    *,
    needs_order: bool = False,
    largest_error: ItemFunction = one,
    rooted: bool = False,
    range: tuple[float, float] = (0.0, 1.0),
) -> Callable[[ItemFunction], ItemFunction]:
    """Return a decorator that registers a function of item errors as a metric.

    Args:
        name: how users select the metric, and its key in an analysis.
        label: what the score is, in a few words; the heading of the column in reports.
        source: publication that defines the metric, or "ours".
        needs_order: whether the options must have an order; nominal items are left out if so.
        largest_error: the largest error that each item can have.
        rooted: whether the square root of the ratio is taken.
        range: least and greatest possible score.
    """

    def register(error: ItemFunction) -> ItemFunction:
        entry = Metric(name, label, source, error, needs_order, largest_error, rooted, range)
        METRICS.register(name)(entry)
        return error

    return register


def select(names: Sequence[str] = DEFAULT_METRICS) -> tuple[Metric, ...]:
    """Return the metrics of these names, the headline metric first even if it is not named.

    Raises:
        UserError: a name is not registered.

    Example:
        >>> from jaxalign.stats.metrics import select
        >>> [m.name for m in select(["wasserstein"])]
        ['alignment', 'wasserstein']
    """
    return tuple(METRICS[name] for name in dict.fromkeys((HEADLINE, *names)))
