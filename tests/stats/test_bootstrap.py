"""The bootstrap: its draws, and its intervals against SciPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxalign.core.errors import UserError
from jaxalign.stats.bootstrap import (
    CountDraws,
    ScoreDraws,
    bootstrap,
    count_draws,
    jax_count_draws,
    mean_interval,
)


def test_bootstrap_agrees_with_scipy_and_drops_missing_items() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.2, 40).astype(np.float32)
    holed = np.insert(values, [0, 7, 40], np.nan)
    mean, low, high = jax.jit(mean_interval)(jnp.asarray(holed), jax.random.key(0))
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-6)
    np.testing.assert_allclose([low, high], reference, atol=3e-3)


def test_a_paired_difference_is_narrower_than_its_sides() -> None:
    before = jax.random.uniform(jax.random.key(1), (60,))
    after = before + 0.05 + 0.01 * jax.random.normal(jax.random.key(2), (60,))
    side = mean_interval(after, jax.random.key(3))
    paired = mean_interval(after - before, jax.random.key(3))
    assert paired.low > 0.04
    assert paired.high - paired.low < 0.1 * (side.high - side.low)


def test_bootstrap_edges() -> None:
    interval = functools.partial(jax.jit(mean_interval), key=jax.random.key(0))
    assert interval(jnp.full(4, 0.5)) == (0.5, 0.5, 0.5)
    assert interval(jnp.array([jnp.nan, 0.25, jnp.nan, jnp.nan])) == (0.25, 0.25, 0.25)
    assert np.isnan(interval(jnp.full(4, jnp.nan))).all()
    wide = interval(jnp.arange(4.0))
    narrow = mean_interval(jnp.arange(4.0), jax.random.key(0), level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_each_resample_draws_as_many_items_as_there_are() -> None:
    counts = jax_count_draws(jax.random.key(0), 50, 17)
    np.testing.assert_array_equal(counts.sum(-1), 17)
    assert counts.shape == (50, 17)


def test_draws_of_every_kind_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.2, 40).astype(np.float32)
    whole = mean_interval(jnp.asarray(values), jax.random.key(0), 20_000)
    counts = CountDraws(jax.random.key(1), 40, 20_000, 500)
    product = bootstrap(lambda counts_BxQ: (counts_BxQ @ values / 40)[:, None], counts)
    drawn = count_draws(40, 20_000, 2)
    scores = bootstrap(lambda x: np.mean(x, axis=-1), ScoreDraws((drawn @ values / 40)[:, None]))
    for other in (product, scores):
        np.testing.assert_allclose(np.ravel(other), np.ravel(whole), atol=3e-3)


def test_numpy_draws_hold_every_item_once_first_and_no_resamples_are_refused() -> None:
    drawn = count_draws(7, 3, 0)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn[0], 1)
    np.testing.assert_array_equal(drawn.sum(axis=1), 7)
    with pytest.raises(UserError, match="`resamples` 0"):
        count_draws(7, 0, 0)
