"""Intervals over seeds, presentations and items at once.

A result is computed for several seeds, presentations and items. All of them are samples: other
seeds, other ways of showing the options and other questions would have given another number. The
bootstrap here draws each of them anew, independently of the others, and every combination counts as
often as its seed, its presentation and its item were drawn (a crossed design: each seed is asked
the same items). Pass differences, `after - before`, for a paired comparison.

Few seeds or presentations vary too little when they are drawn with replacement: the variance of a
resampled mean of n values is (n - 1) / n of the right one, half of it for two. So values are first
moved away from their mean over such an axis, by the root of n / (n - 1). With three seeds the
interval is still narrower than Student's (`jaxalign.stats.intervals.seed_interval`), which stands
beside it in `SeedSummary`.

Four countries or more also allow a test that assumes nothing about their distribution:
`jaxalign.stats.held_out.permutation_test`.

Sources: Efron 1979 (bootstrap); Owen 2007, The pigeonhole bootstrap (crossed factors); Davison and
Hinkley 1997 (small samples).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.stats.bootstrap import mean_interval
from jaxalign.stats.intervals import Interval, seed_interval, tails

BLOCK = 500
"""Resamples that are evaluated at a time; they bound the memory and change no number."""


def crossed_interval(
    values_xQ: np.ndarray, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval | None:
    """Compute a mean and its bootstrap interval over all axes of `values_xQ`.

    Where all axes but the last have one element, this is `jaxalign.stats.bootstrap.mean_interval`
    with the same random numbers.

    Args:
        values_xQ: float [..., Q]; leading axes are crossed factors such as seeds, presentations or
            countries, the last one is items. NaN where there is no value.
        seed: seed of the resamples.
        resamples: number of resamples.
        level: confidence level in (0, 1).

    Returns:
        The mean of all known values and its bounds as floats; None if no value is known.
    """
    values_xQ = np.asarray(values_xQ)
    if np.isnan(values_xQ).all():
        return None
    if values_xQ.size == values_xQ.shape[-1]:
        one_axis = mean_interval(values_xQ.reshape(-1), jax.random.key(seed), resamples, level)
        return Interval(*map(float, one_axis))
    # Only resamples see the stretched values; the estimate is that of the values as they are.
    stretched_xQ = stretch(values_xQ.astype(np.float64))
    known_xQ = ~np.isnan(stretched_xQ)
    # [K, Q]: all leading axes in one, so that a resample of items is a matrix product.
    known_KxQ = known_xQ.reshape(-1, values_xQ.shape[-1]).astype(np.float64)
    values_KxQ = np.nan_to_num(stretched_xQ).reshape(known_KxQ.shape)
    complete = bool(known_xQ.all())
    means = []
    for *leading, counts_BxQ in resampled_counts(values_xQ.shape, resamples, seed):
        # How often a combination of seed, presentation, ... is drawn: the product of its parts.
        weight_BxK = np.ones((len(counts_BxQ), 1))
        for counts_BxN in leading:
            weight_BxK = weight_BxK[:, :, None] * counts_BxN[:, None, :]
            weight_BxK = weight_BxK.reshape(len(weight_BxK), -1)
        # A resample's mean: its weighted sum over the number of known values that it holds.
        total_B = ((counts_BxQ @ values_KxQ.T) * weight_BxK).sum(axis=1)
        if complete:  # then every resample holds as many values as there are
            count_B = np.full_like(total_B, values_KxQ.size)
        else:
            count_B = ((counts_BxQ @ known_KxQ.T) * weight_BxK).sum(axis=1)
        means.append(
            np.divide(total_B, count_B, out=np.full_like(total_B, np.nan), where=count_B > 0)
        )
    low, high = np.nanquantile(np.concatenate(means), tails(level))
    return Interval(float(np.nanmean(values_xQ.astype(np.float64))), float(low), float(high))


def stretch(values_xQ: np.ndarray) -> np.ndarray:
    """Move values away from their mean over each leading axis by the root of n / (n - 1).

    After it the mean of n values drawn with replacement has the variance s² / n, where s² divides
    by n - 1. The mean over an axis stays. NaN stays NaN; an axis of one element is left alone.
    """
    for axis in range(values_xQ.ndim - 1):
        n = values_xQ.shape[axis]
        if n > 1:
            known = ~np.isnan(values_xQ)
            count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
            mean = np.where(known, values_xQ, 0.0).sum(axis=axis, keepdims=True) / count
            # The mean stays, and deviations grow: the sum of squares times n / (n - 1).
            values_xQ = mean + math.sqrt(n / (n - 1)) * (values_xQ - mean)
    return values_xQ


def resampled_counts(
    sizes: Sequence[int], resamples: int, seed: int, block: int = BLOCK
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield resamples block by block: how often each element of each axis is drawn.

    Args:
        sizes: the length of each axis; a resample draws as many of it.
        resamples: number of resamples.
        seed: seed of numpy's default generator; the draws of an axis depend on it, on the axis'
            place and on its length alone.
        block: resamples at a time.

    Yields:
        For each axis float64 [B, size], whose rows sum to the size.
    """
    # An own generator for each axis, so that one axis' length leaves the others' draws alone.
    generators = [np.random.default_rng([seed, axis]) for axis in range(len(sizes))]
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield tuple(
            _counts(generator, size, rows)
            for generator, size in zip(generators, sizes, strict=True)
        )


def _counts(generator: np.random.Generator, size: int, rows: int) -> np.ndarray:
    """Return float64 [rows, size]: how often each element occurs in `size` draws."""
    picks = generator.integers(0, size, (rows, size))
    # Counting positions in one flat array is faster than drawing multinomial counts.
    picks += np.arange(rows)[:, None] * size
    return np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A mean over seeds and how certain it is.

    Attributes:
        interval: over seeds × items (and presentations, where they were given).
        student: Student's t interval over seeds, all else kept; None with one seed, or where seeds
            agree exactly.
        by_seed: the mean of each seed; NaN for one without a value.
    """

    interval: Interval
    student: Interval | None
    by_seed: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """Return `mean`, `low`, `high`, `student` (`mean`, `low`, `high`, or None), `by_seed`."""
        student = self.student.record() if self.student else None
        return {**self.interval.record(), "student": student, "by_seed": list(self.by_seed)}


def over_seeds(
    values_SxxQ: np.ndarray, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> SeedSummary | None:
    """Summarise values whose first axis is the seed; for the arguments see `crossed_interval`."""
    values_SxxQ = np.asarray(values_SxxQ)
    interval = crossed_interval(values_SxxQ, seed, resamples, level)
    if interval is None:
        return None
    # One row for each seed, whatever axes lie between the seed and the items.
    rows = values_SxxQ.reshape(len(values_SxxQ), -1).astype(np.float64)
    by_seed = tuple(
        float(np.mean(r[~np.isnan(r)])) if (~np.isnan(r)).any() else math.nan for r in rows
    )
    known = [value for value in by_seed if not math.isnan(value)]
    # Seeds that agree exactly cannot differ, as when nothing random happened: no interval then.
    student = seed_interval(np.array(known), level) if len(set(known)) > 1 else None
    return SeedSummary(interval, student, by_seed)
