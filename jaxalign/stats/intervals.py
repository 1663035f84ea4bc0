"""The one type for an interval around an estimate, and the functions that compute its bounds.

Three kinds of interval are in use. They answer different questions, so a report names the kind:

- over items (`jaxalign.stats.bootstrap`): would other questions like these give the same result?
- over seeds or runs (`seed_interval`): would another run of the same program give the same result?
- over resampled scores of several methods (`jaxalign.stats.paired_scores`): a paired version of the
  first for many methods.

`jaxalign.stats.seeds` resamples seeds and items together, and `widened` adds to any interval what
the presentation of the options leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri, stdtrit  # SciPy is a dependency of JAX

# The bits of a float32 NaN in the order of `_ordered_bits`: greater than every number.
_AFTER_EVERY_NUMBER = np.uint32(0xFFFFFFFF)


class Interval(NamedTuple):
    """An estimate and the bounds of its interval, all in the unit of the estimate.

    The fields are three floats, or three arrays of one shape that hold one interval per element.
    An interval is a pytree and may be returned by a jitted function.

    Example:
        >>> from jaxalign.stats.intervals import Interval
        >>> change = Interval(0.04, 0.01, 0.07)
        >>> print(change)
        0.04 [0.01, 0.07]
        >>> change.record()
        {'mean': 0.04, 'low': 0.01, 'high': 0.07}
        >>> print(change.negated())
        -0.04 [-0.07, -0.01]
    """

    mean: jax.Array | np.ndarray | float
    low: jax.Array | np.ndarray | float
    high: jax.Array | np.ndarray | float

    @property
    def bounds(self) -> tuple:
        """The lower and the upper bound, without the estimate."""
        return self.low, self.high

    def negated(self) -> Interval:
        """Return the interval of the estimate with its sign turned; the bounds swap places."""
        return Interval(-self.mean, -self.high, -self.low)

    def record(self) -> dict[str, float]:
        """Return `mean`, `low` and `high` as plain floats, as `result.json` holds them."""
        return {name: float(value) for name, value in self._asdict().items()}

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def seed_interval(values_R: np.ndarray, level: float = 0.95) -> Interval | None:
    """Compute Student's t interval of a mean over runs.

    Args:
        values_R: one value per run, [R]; NaN where a run has none.
        level: confidence level in (0, 1).

    Returns:
        The interval in the unit of the values, computed in float64; None with fewer than two known
        values, which say nothing about other runs.

    Example:
        >>> from jaxalign.stats.intervals import seed_interval
        >>> print(seed_interval([70.0, 72.0, 74.0]))
        72 [67.03, 76.97]
    """
    values = np.asarray(values_R, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    mean = float(values.mean())
    # Half-width: the quantile of Student's t with R - 1 degrees of freedom times the standard error
    # of the mean.
    quantile = float(stdtrit(len(values) - 1.0, (1 + level) / 2))
    half = quantile * float(values.std(ddof=1)) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def tails(level: float) -> tuple[float, float]:
    """Return the two quantile levels that enclose the middle `level` of a distribution."""
    return (1 - level) / 2, (1 + level) / 2


def normal_quantile(level: float) -> float:
    """Return how many standard deviations around the mean hold `level` of a normal distribution."""
    return float(ndtri(tails(level)[1]))


def widened(
    interval: Interval, values_F: Sequence[float] | np.ndarray, level: float = 0.95
) -> Interval:
    """Add the spread of a result over presentations to its interval over other things.

    A score of answers averaged over F presentations would be another one with other presentations.
    Its variance from that is s² / F, where s is the standard deviation of the scores of each
    presentation alone. Each bound moves away from the estimate by the root of the sum of squares of
    its distance and of z·s / √F, z the normal quantile of `level`.

    Args:
        interval: the interval of the score, presentations kept as they are: of floats, or of
            arrays.
        values_F: the same score under each presentation alone, [F] or [F, ...] with the shape of
            the interval; NaN where there is none.
        level: confidence level of `interval`.

    Returns:
        A wider interval of the same estimate; `interval` itself with one presentation.
    """
    values = np.asarray(values_F, np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    if (count < 2).all():
        return interval
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    # s² / F with s² over F - 1; 0 where fewer than two presentations have a score.
    variance = np.where(count > 1, squares / np.maximum(count - 1, 1) / np.maximum(count, 1), 0.0)
    half = normal_quantile(level) * np.sqrt(variance)
    centre, low, high = (np.asarray(bound, np.float64) for bound in interval)
    low, high = centre - np.hypot(centre - low, half), centre + np.hypot(high - centre, half)
    if low.ndim:
        return Interval(interval.mean, low, high)
    return Interval(interval.mean, float(low), float(high))


def quantiles(values_NxK: jax.Array, levels: tuple[float, ...]) -> tuple[jax.Array, ...]:
    """Compute quantiles of many columns inside a jitted program, without sorting them.

    Each quantile is found by bisection on the bits of the floats: 32 passes over a column that
    stays in the cache. Sorting 100,000 values per column would take longer than the resampling.

    Args:
        values_NxK: float32 [N, K]; NaN values are left out.
        levels: quantile levels in [0, 1].

    Returns:
        One float32 [K] per level, interpolated linearly between order statistics like numpy's
        `nanquantile`; NaN for a column that holds only NaN.
    """
    quantiles_KxL = jax.lax.map(lambda column: _column_quantiles(column, levels), values_NxK.T)
    return tuple(quantiles_KxL.T)


def _column_quantiles(values_N: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """Compute the quantiles [L] of one column."""
    keys = _ordered_bits(values_N)
    known = jnp.sum(~jnp.isnan(values_N))
    # A quantile lies at a fractional position among the sorted known values: between the value of
    # rank floor(position) and the next one.
    position_L = jnp.asarray(levels, jnp.float32) * jnp.maximum(known - 1, 0).astype(jnp.float32)
    rank_L = jnp.floor(position_L).astype(jnp.int32)
    lower_L = _order_statistics(keys, rank_L)
    bounds = []
    for position, rank, lower in zip(position_L, rank_L, lower_L, strict=True):
        # The next order statistic is the same value if enough equal ones follow, else the least
        # value above it.
        above = jnp.min(jnp.where(keys > lower, keys, _AFTER_EVERY_NUMBER))
        upper = jnp.where(jnp.sum(keys <= lower) > rank + 1, lower, above)
        low, high = _from_ordered_bits(lower), _from_ordered_bits(upper)
        fraction = position - rank.astype(jnp.float32)
        bounds.append(jnp.where(fraction > 0, low + fraction * (high - low), low))
    return jnp.where(known > 0, jnp.stack(bounds), jnp.nan)


def _order_statistics(keys_N: jax.Array, rank_L: jax.Array) -> jax.Array:
    """Return uint32 [L]: the keys with `rank` keys before them in sorted order.

    The result is built one bit at a time from the highest: a bit stays set while no more than
    `rank` keys are smaller than the number so far.
    """

    def add_bit(i: jax.Array, key_L: jax.Array) -> jax.Array:
        candidate_L = key_L | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        smaller_L = jnp.stack([jnp.sum((keys_N < c).astype(jnp.int32)) for c in candidate_L])
        return jnp.where(smaller_L <= rank_L, candidate_L, key_L)

    return jax.lax.fori_loop(0, 32, add_bit, jnp.zeros(rank_L.shape, jnp.uint32))


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Map float32 to uint32 that sort like the floats, with NaN last."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = bits >> 31
    # The bits of positive floats sort like the floats; those of negative ones sort backwards.
    ordered = jnp.where(sign == 1, ~bits, bits | jnp.uint32(0x80000000))
    return jnp.where(jnp.isnan(x), _AFTER_EVERY_NUMBER, ordered)


def _from_ordered_bits(keys: jax.Array) -> jax.Array:
    """Invert `_ordered_bits`."""
    bits = jnp.where(keys >> 31 == 1, keys & jnp.uint32(0x7FFFFFFF), ~keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
