"""Every metric for every system and country, with bootstrap intervals, in one compiled program.

Every metric here is 1 − f(sum of errors / sum of allowances) over items, with f the identity or a
square root. A resample draws as many items as there are, with replacement; it is described by how
often it drew each item, so all its metrics come out of one product of counts [resamples, Q] with
per-item statistics [Q, statistics]. Rank correlations over items are no such sums and are not here.

All systems see the same draws, and a difference is taken over the items that both answered: it is
paired, and who leaves out what is hard is not the better for it. It need not be the difference of
the two scores, each over a system's own items. The intervals speak for other questions like these,
not for other runs of the model, which `seed_interval` is about.
Source: Efron 1979; percentile intervals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats import distances as metrics
from jaxalign.stats.bootstrap import CountDraws, bootstrap
from jaxalign.stats.intervals import Interval
from jaxalign.surveys.tables import Tables

# What a metric allows an item at most, by which the metrics share their denominators.
_SQUARED_RANGE, _SQUARED_RANGE_ORDINAL, _ONE, _ONE_ORDINAL = range(4)


class Metric(NamedTuple):
    """1 − error, 1 at best. `allowance` is one of the denominators; `rooted` says f is a root."""

    name: str
    label: str
    allowance: int
    rooted: bool = False


METRICS = (
    Metric("alignment", "cultural alignment score, all items as published", _SQUARED_RANGE, True),
    Metric(
        "alignment_ordinal",
        "cultural alignment score, ordinal items only",
        _SQUARED_RANGE_ORDINAL,
        True,
    ),
    Metric("exact_match", "share of items with the majority answer", _ONE),
    Metric("closeness", "1 − mean |answer − majority| / range, ordinal items", _ONE_ORDINAL),
    Metric("total_variation", "1 − total variation to the country's shares", _ONE),
    Metric("wasserstein", "1 − ordinal Wasserstein to the country's shares", _ONE_ORDINAL),
    Metric("js_divergence", "1 − Jensen-Shannon divergence, base 2", _ONE),
    Metric("js_distance", "1 − Jensen-Shannon distance, base 2", _ONE),
)
_ALLOWANCE_M = np.array([m.allowance for m in METRICS])
_ROOTED_M = np.array([m.rooted for m in METRICS])


class ItemStats(NamedTuple):
    """Per-item sums of S systems in R runs against C countries. 0 where an item does not count."""

    errors_SxRxCxMxQ: jax.Array  # float32
    allowances_SxRxCxAxQ: jax.Array  # float32, A = 4


class Comparison(NamedTuple):
    """Intervals of S systems, and of the paired differences of systems 1 to S − 1 from system 0.

    Values are float32, metrics in [0, 1] for answers on the scale and differences in [−1, 1]; NaN
    where no item counts. A difference is taken over the items that both systems answered in each of
    their runs.
    """

    countries: Interval  # [S, C, M]
    country_mean: Interval  # [S, M], over the countries that have a value
    differences: Interval  # [S − 1, C, M]
    mean_difference: Interval  # [S − 1, M], over the countries that have both values


def item_stats(tables: Tables, answers_SxRxCxQ: jax.Array) -> ItemStats:
    """What each item adds to each metric. Answers are positions of options, NaN for none.

    A fractional answer, such as a mean, is shared between its two neighbours where a metric
    compares distributions.
    """
    return _item_stats(
        jnp.asarray(answers_SxRxCxQ, jnp.float32),
        *(tables.gold_CxQ, tables.range_Q, tables.ordinal_Q),
        *(tables.truth_CxQxO, tables.valid_QxO),
    )


@jax.jit
def _item_stats(
    a: jax.Array,
    g: jax.Array,
    r: jax.Array,
    ordinal_Q: jax.Array,
    truth_CxQxO: jax.Array,
    valid_QxO: jax.Array,
) -> ItemStats:
    counts = ~jnp.isnan(a) & ~jnp.isnan(g)[None, None]
    ordinal = counts & ordinal_Q[None, None, None]
    gap = jnp.where(counts, jnp.abs(a - g[None, None]), 0.0)
    per_range = gap / r[None, None, None]
    truth = jnp.nan_to_num(truth_CxQxO)
    p, q = jnp.broadcast_arrays(_as_shares(a, truth.shape[-1]), truth[None, None])
    valid = valid_QxO[None, None, None]
    errors = [
        (gap**2, counts),
        (gap**2, ordinal),
        ((gap != 0).astype(jnp.float32), counts),
        (per_range, ordinal),
        (metrics.total_variation(p, q), counts),
        (metrics.ordinal_wasserstein(p, q, valid), ordinal),
        (metrics.jensen_shannon_divergence(p, q), counts),
        (metrics.jensen_shannon_distance(p, q), counts),
    ]
    ones = jnp.ones_like(gap)
    squared = jnp.broadcast_to(r**2, gap.shape)
    allowances = [(squared, counts), (squared, ordinal), (ones, counts), (ones, ordinal)]
    return ItemStats(
        *(jnp.stack([jnp.where(c, e, 0.0) for e, c in rows], -2) for rows in (errors, allowances))
    )


def _as_shares(answers_xQ: jax.Array, options: int) -> jax.Array:
    """[..., Q, O]: all weight on the answer, or between the two options beside a fraction."""
    distance = jnp.abs(jnp.nan_to_num(answers_xQ)[..., None] - _ranks(options, answers_xQ.ndim))
    return jnp.maximum(1 - distance, 0.0)


def _ranks(options: int, leading: int) -> jax.Array:
    return jnp.arange(options, dtype=jnp.float32).reshape((1,) * leading + (options,))


@functools.partial(jax.jit, static_argnames=("resamples", "level", "block"))
def compare(
    stats: ItemStats,
    key: jax.Array,
    resamples: int = 100_000,
    level: float = 0.95,
    block: int = 2_000,
) -> Comparison:
    """Compute all metrics of all systems, their paired differences, and the intervals of both.

    A country's value is the mean over its runs. A resample in which a country keeps no item is left
    out of that country's interval.

    Args:
        stats: per-item sums from `item_stats`.
        key: JAX random key.
        resamples: number of resamples. Memory is 4 bytes × resamples × 2·S·(C + 1)·M.
        level: confidence level in (0, 1).
        block: number of resamples evaluated at once; the random numbers depend on it.
    """
    items = stats.errors_SxRxCxMxQ.shape[-1]
    found = bootstrap(
        lambda counts_BxQ: _flatten(_values(stats, counts_BxQ)),
        CountDraws(key, items, resamples, block),
        level,
    )
    # The four results were laid side by side in one row of K numbers: cut it up again.
    shapes = jax.eval_shape(lambda: _values(stats, jnp.ones((1, items), jnp.float32)))
    known_K = ~jnp.isnan(found.mean)
    point, low, high = (
        _split(b, shapes)
        for b in (found.mean, *(jnp.where(known_K, b, jnp.nan) for b in found.bounds))
    )
    return Comparison(*map(Interval, point, low, high))


def _values(stats: ItemStats, counts_BxQ: jax.Array) -> tuple[jax.Array, ...]:
    """Compute the estimates of `Comparison` for each resample: its fields with a leading axis B."""
    values = _scores(stats, counts_BxQ)
    both = _both_answered(stats)
    first = jax.tree.map(lambda x: x[:1], stats)
    others = jax.tree.map(lambda x: x[1:], stats)
    differences = _scores(_only(others, both), counts_BxQ) - _scores(_only(first, both), counts_BxQ)
    return values, _mean(values, 2), differences, _mean(differences, 2)


def _scores(stats: ItemStats, counts_BxQ: jax.Array) -> jax.Array:
    """[B, S, C, M], mean over runs."""
    errors = jnp.einsum("bq,srcmq->bsrcm", counts_BxQ, stats.errors_SxRxCxMxQ)
    allowed = jnp.einsum("bq,srcaq->bsrca", counts_BxQ, stats.allowances_SxRxCxAxQ)
    ratio = errors / jnp.take(allowed, _ALLOWANCE_M, axis=-1)  # 0 / 0 is NaN: nothing counts
    rooted = jnp.broadcast_to(jnp.asarray(_ROOTED_M), ratio.shape)
    return _mean(1 - jnp.where(rooted, jnp.sqrt(ratio), ratio), 2)


def _both_answered(stats: ItemStats) -> jax.Array:
    """bool [S − 1, 1, C, 1, Q]: items that both answered in each run that they have."""
    answered_SxRxCxQ = stats.allowances_SxRxCxAxQ[..., _ONE, :] > 0
    is_run = answered_SxRxCxQ.any(-1, keepdims=True)
    always_SxCxQ = (answered_SxRxCxQ | ~is_run).all(1) & is_run.any(1)
    return (always_SxCxQ[1:] & always_SxCxQ[:1])[:, None, :, None]


def _only(stats: ItemStats, keep: jax.Array) -> ItemStats:
    """The statistics with items outside `keep` counting for nothing."""
    return jax.tree.map(lambda x: jnp.where(keep, x, 0.0), stats)


def _mean(x: jax.Array, axis: int) -> jax.Array:
    return jnp.mean(x, axis=axis, where=~jnp.isnan(x))


def _flatten(parts: tuple[jax.Array, ...]) -> jax.Array:
    """[B, K]: everything that needs an interval, side by side."""
    return jnp.concatenate([part.reshape(part.shape[0], part[0].size) for part in parts], axis=-1)


def _split(flat_K: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Undo `_flatten` for one row; `shapes` are those of its parts, with the leading axis B."""
    ends = np.cumsum([math.prod(x.shape[1:]) for x in shapes])[:-1].tolist()
    parts = jnp.split(flat_K, ends)
    return [p.reshape(x.shape[1:]) for p, x in zip(parts, shapes, strict=True)]
