"""The bootstrap: how much would a result change with other questions like these?

`bootstrap` computes a statistic on many resamples of the items, drawn with replacement, and returns
the percentile interval (Efron 1979). Callers differ in what a resample is, so the draws are an
argument. There are three kinds, and all three stay because each draws other random numbers and
interpolates quantiles in another precision: a result is only reproduced, bit by bit, by the kind
that produced it.

- `ValueDraws`: the values of one vector with gaps. Draws are made among the known values only.
- `CountDraws`: how often each item was drawn. For statistics that are sums over items this turns
  hundreds of thousands of resamples into one matrix product, inside one compiled program.
- `ScoreDraws`: scores that were already computed on the resamples of `count_draws`, in numpy. The
  scores are kept, so that the difference of any two methods is paired without computing it again.

The intervals speak for other questions, not for other runs of the model; see
`jaxalign.stats.intervals.seed_interval` for those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.stats.intervals import Interval, quantiles, tails


class Draws(Protocol):
    """Resamples of a set of items, and how quantiles over them are computed."""

    def point(self, statistic: Callable[..., Any]) -> Any:
        """Compute the statistic on the original sample, where every item occurs once."""

    def values(self, statistic: Callable[..., Any]) -> Any:
        """Compute the statistic on every resample; the first axis is the resample."""

    def quantiles(self, values: Any, levels: tuple[float, float]) -> Sequence[Any]:
        """Compute quantiles over the resamples, one result per level."""


def bootstrap(statistic: Callable[..., Any], draws: Draws, level: float = 0.95) -> Interval:
    """Compute a statistic and its percentile interval over resampled items.

    Args:
        statistic: the function to compute on a batch of resamples, [N, ...] -> [N] or [N, K]. Its
            arguments depend on the kind of draws and are documented there.
        draws: the resamples, one of the classes of this module.
        level: confidence level in (0, 1).

    Returns:
        The statistic of the original sample and the bounds, each of the statistic's shape for one
        resample.
    """
    values = draws.values(statistic)
    low, high = draws.quantiles(values, tails(level))
    return Interval(draws.point(statistic), low, high)


_last_picks: dict[Any, jax.Array] = {}  # at most one entry, see ValueDraws._picks


@dataclasses.dataclass(frozen=True)
class ValueDraws:
    """Resamples of the known values of one vector. The statistic is called as
    `statistic(values_NxQ, where=drawn_NxQ)`: a resample holds as many values as are known.

    Attributes:
        values_Q: float32 [Q]; NaN for an item to leave out.
        key: JAX random key.
        resamples: number of resamples N. Memory is about 8 bytes × N × Q.
    """

    values_Q: jax.Array
    key: jax.Array
    resamples: int

    def point(self, statistic: Callable[..., jax.Array]) -> jax.Array:
        return statistic(self.values_Q, where=~jnp.isnan(self.values_Q))

    def values(self, statistic: Callable[..., jax.Array]) -> jax.Array:
        known = ~jnp.isnan(self.values_Q)
        count = jnp.sum(known)
        # The count of known values is not static under jit. So the shape is that of all items:
        # known values are moved to the front, drawn from there, and the surplus draws masked.
        known_first = self.values_Q[jnp.argsort(~known)]
        shape = (self.resamples, self.values_Q.shape[0])
        drawn = jnp.broadcast_to(jnp.arange(shape[1]) < count, shape)
        return statistic(known_first[self._picks(count)], where=drawn)

    def _picks(self, count: jax.Array) -> jax.Array:
        """Return which known value each draw takes, int32 [N, Q].

        Drawing takes most of an interval's time, and the intervals of a report mostly share the
        seed and the number of known values, so the last draws are kept (10 MB for 260 items).
        """
        shape = (self.resamples, self.values_Q.shape[0])
        if isinstance(count, jax.core.Tracer) or isinstance(self.key, jax.core.Tracer):
            return jax.random.randint(self.key, shape, 0, jnp.maximum(count, 1))
        wanted = (np.asarray(jax.random.key_data(self.key)).tobytes(), shape, int(count))
        if wanted not in _last_picks:
            _last_picks.clear()
            _last_picks[wanted] = jax.random.randint(self.key, shape, 0, jnp.maximum(count, 1))
        return _last_picks[wanted]

    def quantiles(self, values: jax.Array, levels: tuple[float, float]) -> jax.Array:
        # A single column, so sorting is cheap.
        return jnp.quantile(values, jnp.array(levels))


@dataclasses.dataclass(frozen=True)
class CountDraws:
    """Resamples described by how often each item was drawn. The statistic is called as
    `statistic(counts_BxQ)`, block by block, and returns [B, K]; it must be traceable by JAX.

    Attributes:
        key: JAX random key.
        items: number of items Q; a resample draws as many.
        resamples: number of resamples N.
        block: number of resamples drawn and evaluated at once; it bounds the memory, and the
            random numbers depend on it.
    """

    key: jax.Array
    items: int
    resamples: int
    block: int

    def point(self, statistic: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return statistic(jnp.ones((1, self.items), jnp.float32))[0]

    def values(self, statistic: Callable[[jax.Array], jax.Array]) -> jax.Array:
        # Whole blocks are drawn, at least as many resamples as asked for; the surplus is cut off.
        blocks = -(-self.resamples // self.block)

        def one_block(key: jax.Array) -> jax.Array:
            return statistic(jax_count_draws(key, self.block, self.items))

        values = jax.lax.map(one_block, jax.random.split(self.key, blocks))
        return values.reshape(blocks * self.block, -1)[: self.resamples]

    def quantiles(self, values: jax.Array, levels: tuple[float, float]) -> tuple[jax.Array, ...]:
        return quantiles(values, levels)


def jax_count_draws(key: jax.Array, resamples: int, items: int) -> jax.Array:
    """Return float32 [resamples, Q]: how often each item was drawn in `items` draws."""
    # Draw positions, then count how often each occurs by adding 1 at every drawn position.
    picks = jax.random.randint(key, (resamples, items), 0, items)
    rows = jnp.broadcast_to(jnp.arange(resamples)[:, None], picks.shape)
    return jnp.zeros((resamples, items), jnp.float32).at[rows, picks].add(1.0)


@dataclasses.dataclass(frozen=True)
class ScoreDraws:
    """Scores already computed on the resamples of `count_draws`. The statistic is called as
    `statistic(scores)` and reduces the last axis; the first row is the original sample.

    Attributes:
        scores_NxR: float [1 + N, R]; NaN where a resample has no score.
    """

    scores_NxR: np.ndarray

    def point(self, statistic: Callable[[np.ndarray], Any]) -> float:
        return float(statistic(self.scores_NxR[0]))

    def values(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return statistic(self.scores_NxR[1:])

    def quantiles(self, values: np.ndarray, levels: tuple[float, float]) -> tuple[float, ...]:
        # In float64, and a resample without any item that counts is left out.
        return tuple(map(float, np.nanquantile(values, list(levels))))


def count_draws(items: int, resamples: int, seed: int) -> np.ndarray:
    """Draw resamples of the items in numpy, described by how often each item was drawn.

    Args:
        items: number of items Q; a resample draws as many.
        resamples: number of resamples N.
        seed: seed of numpy's default generator.

    Returns:
        float32 [1 + N, Q]. The first row holds every item once: it gives the value itself.

    Raises:
        UserError: `resamples` is less than 1.
    """
    if resamples < 1:
        raise UserError(f"`resamples` {resamples}: give at least 1")
    random = np.random.default_rng(seed)
    # Counts of `items` draws from `items` equally likely items are multinomial.
    drawn = random.multinomial(items, np.full(items, 1 / items), size=resamples)
    return np.concatenate([np.ones((1, items)), drawn]).astype(np.float32)


def mean_interval(
    values_Q: jax.Array, key: jax.Array, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Compute the mean over items and its bootstrap interval.

    For a paired comparison pass the differences item by item, `after_Q - before_Q`: an item missing
    in either drops out of both.

    Args:
        values_Q: float [Q]; NaN for an item to leave out.
        key: JAX random key.
        resamples: number of resamples; static under jit.
        level: confidence level in (0, 1); static under jit.

    Returns:
        The interval as float32 scalars; all NaN if no value is known.
    """
    return bootstrap(_mean, ValueDraws(values_Q, key, resamples), level)


def _mean(values_xQ: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.mean(values_xQ, axis=-1, where=where)
