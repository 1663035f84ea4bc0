"""Every metric for every system and country, with bootstrap intervals, in one compiled program.

A system is anything that answers a survey: a model as a persona, a model asked plainly, another
country's majority answers. Every metric is 1 − f(sum of errors / sum of largest errors) over items
(`jaxalign.stats.metrics`). A resample draws as many items as there are, with replacement, and is
described by how often it drew each. So all metrics of all resamples come out of one product of
counts [resamples, Q] and per-item statistics [Q, statistics]. Rank correlations over items are no
such sums and are not offered.

All systems see the same draws, and a difference is taken over the items that both systems answered.
So it is paired, and a system gains nothing by leaving out hard items. It need not equal the
difference of the two scores, each of which is over the system's own items. The intervals speak for
other questions like these, not for other runs of the model (`jaxalign.stats.intervals`).
Source: Efron 1979; percentile intervals.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats.bootstrap import CountDraws, bootstrap
from jaxalign.stats.intervals import Interval, widened
from jaxalign.stats.metrics import DEFAULT_METRICS, ItemFunction, ItemPairs, Metric, select
from jaxalign.surveys.tables import Tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemStats:
    """What each item adds to each metric, for S systems in R runs against C countries.

    All entries are 0 where an item does not count. Metrics that allow the same largest errors share
    an entry of `largest_errors`. A pytree; the metrics are static under jit.
    """

    errors_SxRxCxMxQ: jax.Array  # float32
    largest_errors_SxRxCxAxQ: jax.Array  # float32, A different ones
    answered_SxRxCxQ: jax.Array  # bool, both the system and the country answered
    metrics: tuple[Metric, ...] = dataclasses.field(metadata={"static": True})


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


def item_stats(
    tables: Tables, answers_SxRxCxQ: np.ndarray, metrics: Sequence[str] = DEFAULT_METRICS
) -> ItemStats:
    """Compute what each item adds to each metric.

    Args:
        tables: how the countries answered.
        answers_SxRxCxQ: positions of options, NaN for no answer. A fractional answer, such as a
            mean, is shared between its two neighbours where a metric compares distributions.
        metrics: names of metrics; the headline metric is added in front if it is not named.

    Raises:
        UserError: a metric is unknown.
    """
    return _item_stats(
        jnp.asarray(answers_SxRxCxQ, jnp.float32),
        tables.gold_CxQ,
        tables.range_Q,
        tables.ordinal_Q,
        tables.truth_CxQxO,
        tables.valid_QxO,
        metrics=select(metrics),
    )


@functools.partial(jax.jit, static_argnames="metrics")
def _item_stats(
    answers_SxRxCxQ: jax.Array,
    gold_CxQ: jax.Array,
    range_Q: jax.Array,
    ordinal_Q: jax.Array,
    truth_CxQxO: jax.Array,
    valid_QxO: jax.Array,
    metrics: tuple[Metric, ...],
) -> ItemStats:
    answered = ~jnp.isnan(answers_SxRxCxQ) & ~jnp.isnan(gold_CxQ)[None, None]
    ordinal = answered & ordinal_Q[None, None, None]
    truth = jnp.nan_to_num(truth_CxQxO)
    shares = _as_shares(answers_SxRxCxQ, truth.shape[-1])
    pairs = ItemPairs(
        jnp.where(answered, jnp.abs(answers_SxRxCxQ - gold_CxQ[None, None]), 0.0),
        range_Q[None, None, None],
        *jnp.broadcast_arrays(shares, truth[None, None]),
        valid_QxO[None, None, None],
    )

    def stack(functions: Sequence[tuple[ItemFunction, bool]]) -> jax.Array:
        """Evaluate functions of the items side by side, 0 for items that do not count."""
        return jnp.stack(
            [
                jnp.where(ordinal if needs_order else answered, function(pairs), 0.0)
                for function, needs_order in functions
            ],
            -2,
        )

    errors = stack([(m.error, m.needs_order) for m in metrics])
    return ItemStats(errors, stack(_largest_errors(metrics)), answered, metrics)


def _largest_errors(metrics: Sequence[Metric]) -> list[tuple[ItemFunction, bool]]:
    """Return each different denominator once, in the order in which the metrics need them."""
    return list(dict.fromkeys((m.largest_error, m.needs_order) for m in metrics))


def _as_shares(answers_xQ: jax.Array, options: int) -> jax.Array:
    """Turn positions into shares [..., Q, O]: all weight on the answer, or split between the two
    options beside a fraction in proportion to their nearness."""
    position = jnp.arange(options, dtype=jnp.float32).reshape((1,) * answers_xQ.ndim + (options,))
    distance = jnp.abs(jnp.nan_to_num(answers_xQ)[..., None] - position)
    return jnp.maximum(1 - distance, 0.0)


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
    items = stats.answered_SxRxCxQ.shape[-1]
    flat = bootstrap(
        lambda counts_BxQ: _flatten(_estimates(stats, counts_BxQ)),
        CountDraws(key, items, resamples, block),
        level,
    )
    # The four results were laid side by side in one row of K numbers: cut it up again.
    shapes = jax.eval_shape(lambda: _estimates(stats, jnp.ones((1, items), jnp.float32)))
    known_K = ~jnp.isnan(flat.mean)
    mean, low, high = (
        _split(row_K, shapes)
        for row_K in (flat.mean, *(jnp.where(known_K, bound, jnp.nan) for bound in flat.bounds))
    )
    return Comparison(*map(Interval, mean, low, high))


def widened_comparison(
    comparison: Comparison, alone: Sequence[ItemStats], level: float = 0.95
) -> Comparison:
    """Add the spread over presentations to every interval.

    Args:
        comparison: the comparison of answers that are averaged over presentations.
        alone: the statistics of the answers under each presentation alone.
        level: level of the intervals.

    Returns:
        The same estimates with wider intervals (`jaxalign.stats.intervals.widened`); the comparison
        itself with one presentation.
    """
    if len(alone) < 2:
        return comparison
    points = [_point_estimates(stats) for stats in alone]
    return Comparison(
        *(
            widened(interval, np.stack(values_F), level)
            for interval, *values_F in zip(comparison, *points, strict=True)
        )
    )


@jax.jit
def _point_estimates(stats: ItemStats) -> tuple[jax.Array, ...]:
    """Compute the estimates in the order of the fields of `Comparison`, without resamples."""
    items = stats.answered_SxRxCxQ.shape[-1]
    return tuple(x[0] for x in _estimates(stats, jnp.ones((1, items), jnp.float32)))


def _estimates(stats: ItemStats, counts_BxQ: jax.Array) -> tuple[jax.Array, ...]:
    """Compute the fields of `Comparison` for each of B resamples, which are the leading axis."""
    scores = _scores(stats, counts_BxQ)
    both = _both_answered(stats)
    first, others = _systems(stats, slice(0, 1), both), _systems(stats, slice(1, None), both)
    differences = _scores(others, counts_BxQ) - _scores(first, counts_BxQ)
    return scores, _known_mean(scores, 2), differences, _known_mean(differences, 2)


def _scores(stats: ItemStats, counts_BxQ: jax.Array) -> jax.Array:
    """Compute the scores [B, S, C, M], means over runs."""
    errors = jnp.einsum("bq,srcmq->bsrcm", counts_BxQ, stats.errors_SxRxCxMxQ)
    largest = jnp.einsum("bq,srcaq->bsrca", counts_BxQ, stats.largest_errors_SxRxCxAxQ)
    different = _largest_errors(stats.metrics)
    index_M = np.array([different.index((m.largest_error, m.needs_order)) for m in stats.metrics])
    ratio = errors / jnp.take(largest, index_M, axis=-1)  # 0 / 0 is NaN: no item counts
    rooted_M = jnp.asarray(np.array([m.rooted for m in stats.metrics]))
    rooted = jnp.broadcast_to(rooted_M, ratio.shape)
    return _known_mean(1 - jnp.where(rooted, jnp.sqrt(ratio), ratio), 2)


def _both_answered(stats: ItemStats) -> jax.Array:
    """Return bool [S − 1, 1, C, 1, Q]: the items that both the first system and another answered
    in each run that they have."""
    answered = stats.answered_SxRxCxQ
    is_run = answered.any(-1, keepdims=True)  # a run without any answer does not exist
    always_SxCxQ = (answered | ~is_run).all(1) & is_run.any(1)
    return (always_SxCxQ[1:] & always_SxCxQ[:1])[:, None, :, None]


def _systems(stats: ItemStats, which: slice, counting: jax.Array) -> ItemStats:
    """Return the statistics of some systems, with 0 for items outside `counting`."""
    return dataclasses.replace(
        stats,
        errors_SxRxCxMxQ=jnp.where(counting, stats.errors_SxRxCxMxQ[which], 0.0),
        largest_errors_SxRxCxAxQ=jnp.where(counting, stats.largest_errors_SxRxCxAxQ[which], 0.0),
    )


def _known_mean(x: jax.Array, axis: int) -> jax.Array:
    """Compute the mean of the values that are not NaN."""
    return jnp.mean(x, axis=axis, where=~jnp.isnan(x))


def _flatten(parts: tuple[jax.Array, ...]) -> jax.Array:
    """Lay all estimates that need an interval side by side: [B, K]."""
    return jnp.concatenate([x.reshape(x.shape[0], x[0].size) for x in parts], axis=-1)


def _split(flat_K: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Undo `_flatten` for one row; `shapes` are those of its parts, with the leading axis B."""
    ends = np.cumsum([math.prod(x.shape[1:]) for x in shapes])[:-1].tolist()
    parts = jnp.split(flat_K, ends)
    return [p.reshape(x.shape[1:]) for p, x in zip(parts, shapes, strict=True)]
