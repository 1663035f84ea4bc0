"""Interval bounds against numpy and SciPy, and how an interval is written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats.intervals import Interval, quantiles, seed_interval

FUZZ = settings(deadline=None, max_examples=40, derandomize=True)
LEVELS = (0.0, 0.025, 0.4, 0.5, 0.975, 1.0)
QUANTILES = jax.jit(lambda values: quantiles(values, LEVELS))
numbers = st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1.0, float("nan")])


@FUZZ
@given(arrays(np.float32, (9, 2), elements=numbers), st.sampled_from(LEVELS))
def test_quantiles_agree_with_numpy(values, level) -> None:
    found = QUANTILES(jnp.asarray(values))[LEVELS.index(level)]
    for k, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        expected = np.quantile(known, level) if len(known) else np.nan
        np.testing.assert_allclose(found[k], expected, atol=1e-5)


def test_seed_interval_agrees_with_scipy() -> None:
    values = np.array([0.61, 0.66, np.nan, 0.64])
    known = values[~np.isnan(values)]
    expected = scipy.stats.t.interval(0.95, 2, known.mean(), scipy.stats.sem(known))
    mean, low, high = seed_interval(values)
    np.testing.assert_allclose((mean, low, high), (known.mean(), *expected))
    assert seed_interval(np.array([0.6])) is None


def test_an_interval_is_recorded_negated_and_traced() -> None:
    interval = jax.jit(lambda x: Interval(x, x - 1, x + 2))(jnp.float32(0.5))
    assert interval.record() == {"mean": 0.5, "low": -0.5, "high": 2.5}
    assert interval.negated() == (-0.5, -2.5, 0.5)
    assert interval.bounds == (-0.5, 2.5)
    assert str(interval) == "0.5 [-0.5, 2.5]"
