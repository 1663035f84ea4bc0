"""Intervals over seeds, presentations and items: exact moments, and a slow bootstrap by hand."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats.bootstrap import mean_interval
from jaxalign.stats.seeds import BLOCK, crossed_interval, over_seeds, resampled_counts, stretch

FUZZ = settings(deadline=None, max_examples=40, derandomize=True)


def test_one_axis_has_the_bits_of_the_bootstrap_over_items():
    values = np.random.default_rng(0).random(30).astype(np.float32)
    values[3] = np.nan
    plain = mean_interval(values, jax.random.key(5))
    for shape in ((30,), (1, 30), (1, 1, 30)):
        assert crossed_interval(values.reshape(shape), 5) == tuple(map(float, plain))


def test_the_mean_of_a_few_drawn_values_varies_as_it_should():
    # All 3³ resamples of three seeds are equally likely, so the variance is exact.
    values = np.array([2.0, 3.5, 8.0])
    moved = stretch(values[:, None])[:, 0]
    means = [np.mean(drawn) for drawn in itertools.product(moved, repeat=3)]
    assert np.mean(means) == pytest.approx(values.mean())
    assert np.var(means) == pytest.approx(values.var(ddof=1) / 3), "not 2/3 of it"


@FUZZ
@given(arrays(np.float64, (3, 2, 4), elements=st.floats(-5, 5) | st.just(math.nan)))
def test_stretching_keeps_means_over_leading_axes_of_what_is_known(values):
    moved = stretch(values)
    np.testing.assert_array_equal(np.isnan(moved), np.isnan(values))
    full = np.nan_to_num(values)
    np.testing.assert_allclose(stretch(full).mean(axis=(0, 1)), full.mean(axis=(0, 1)), atol=1e-12)


def test_blocks_change_no_draw_and_every_row_holds_as_many_as_there_are():
    whole = list(resampled_counts((3, 7), 23, seed=4, block=100))
    parts = list(resampled_counts((3, 7), 23, seed=4, block=5))
    for axis, size in enumerate((3, 7)):
        joined = np.concatenate([p[axis] for p in parts])
        np.testing.assert_array_equal(joined, whole[0][axis])
        np.testing.assert_array_equal(joined.sum(axis=1), size)


def test_seeds_and_items_against_drawing_cells_one_by_one():
    random = np.random.default_rng(1)
    values = random.normal(size=(4, 1)) + random.normal(size=(4, 25))
    values[1, 3] = np.nan
    found = crossed_interval(values, seed=2, resamples=BLOCK + 37)
    moved = stretch(values)
    means = []
    # The same draws, expanded into lists of seeds and items.
    for seeds_B, items_B in resampled_counts(values.shape, BLOCK + 37, 2):
        for seed_counts, item_counts in zip(seeds_B, items_B, strict=True):
            rows = np.repeat(np.arange(4), seed_counts.astype(int))
            columns = np.repeat(np.arange(25), item_counts.astype(int))
            means.append(np.nanmean(moved[np.ix_(rows, columns)]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found == pytest.approx((np.nanmean(values), low, high))


def test_seeds_that_differ_widen_an_interval_and_seeds_that_agree_do_not():
    items = np.random.default_rng(3).normal(size=40)
    alone = crossed_interval(items)
    agreeing = crossed_interval(np.stack([items] * 3))
    differing = crossed_interval(items + np.array([[-2.0], [0.0], [2.0]]))
    width = alone.high - alone.low
    assert agreeing.high - agreeing.low == pytest.approx(width, rel=0.1)
    assert differing.high - differing.low > 3 * width


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random, hits = np.random.default_rng(4), 0
    for trial in range(60):
        values = random.normal(size=(8, 1)) + random.normal(size=(1, 30))
        values += random.normal(size=(8, 30))
        interval = crossed_interval(values, seed=trial, resamples=400)
        hits += interval.low <= 0 <= interval.high
    assert 50 <= hits <= 60


def test_summary_over_seeds_has_students_interval_beside_it():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, math.nan]])
    summary = over_seeds(values)
    assert summary.by_seed == (1.5, 3.5, 5.0)
    # Student with 2 degrees of freedom: 4.3027 standard errors.
    half = 4.30265 * np.std([1.5, 3.5, 5.0], ddof=1) / math.sqrt(3)
    assert summary.student.high - summary.student.mean == pytest.approx(half, rel=1e-4)
    assert set(summary.record()) == {"mean", "low", "high", "student", "by_seed"}
    assert over_seeds(np.array([[1.0, 3.0]])).student is None
    assert over_seeds(np.ones((3, 4))).student is None, "equal seeds have no interval"


def test_nothing_known_has_no_interval():
    assert crossed_interval(np.full((2, 3), math.nan)) is None
    assert over_seeds(np.full((2, 3), math.nan)) is None
