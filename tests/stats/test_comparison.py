"""All metrics of several systems in one program, against plain loops over metrics and items."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.bootstrap import Config, bench, synthetic_stats
from jaxalign.core.errors import UserError
from jaxalign.stats import distances as m
from jaxalign.stats.comparison import Comparison, compare, item_stats
from jaxalign.stats.metrics import DEFAULT_METRICS
from jaxalign.surveys.tables import Tables

NAMES = DEFAULT_METRICS
KEY = jax.random.key(0)
C, Q = 3, 40


@pytest.fixture(scope="module")
def tables() -> Tables:
    random = np.random.default_rng(1)
    options_Q = random.integers(2, 12, Q)
    valid = np.arange(11) < options_Q[:, None]
    truth = np.where(valid, random.random((C, Q, 11)), 0).astype(np.float32)
    truth /= truth.sum(-1, keepdims=True)
    truth[1, :5] = np.nan
    gold = np.where(np.isnan(truth[..., 0]), np.nan, np.nan_to_num(truth).argmax(-1))
    return Tables(
        tuple("ABC"),
        truth,
        gold.astype(np.float32),
        (options_Q - 1).astype(np.float32),
        valid,
        np.arange(Q) % 4 != 0,
    )


@pytest.fixture(scope="module")
def answers(tables: Tables) -> np.ndarray:
    """[2 systems, 2 runs, C, Q] with gaps; the second run of the first system is missing."""
    random = np.random.default_rng(2)
    out = np.floor(random.random((2, 2, C, Q)) * (tables.range_Q + 1)).astype(np.float32)
    out[random.random(out.shape) < 0.1] = np.nan
    out[0, 1] = np.nan
    return out


@pytest.fixture(scope="module")
def found(tables: Tables, answers: np.ndarray) -> Comparison:
    stats = item_stats(tables, answers)
    return jax.tree.map(np.asarray, compare(stats, KEY, resamples=4000, block=500))


def one_by_one(tables: Tables, answers_Q: np.ndarray, c: int) -> dict[str, float]:
    """Every metric of one run from the functions in `distances`."""
    counts = ~np.isnan(answers_Q) & tables.asked_CxQ[c]
    ordinal = counts & tables.ordinal_Q
    a, g = np.nan_to_num(answers_Q), np.nan_to_num(tables.gold_CxQ[c])
    r, valid = tables.range_Q, jnp.asarray(tables.valid_QxO)
    p, q = np.eye(11, dtype=np.float32)[a.astype(int)], np.nan_to_num(tables.truth_CxQxO[c])
    return {
        "alignment": m.cultural_alignment(a, g, r, counts),
        "alignment_ordinal": m.cultural_alignment(a, g, r, ordinal),
        "exact_match": (a == g)[counts].mean(),
        "closeness": 1 - np.abs((a - g) / r)[ordinal].mean(),
        "total_variation": 1 - m.total_variation(p, q)[counts].mean(),
        "wasserstein": 1 - m.ordinal_wasserstein(p, q, valid)[ordinal].mean(),
        "js_divergence": 1 - m.jensen_shannon_divergence(p, q)[counts].mean(),
        "js_distance": 1 - m.jensen_shannon_distance(p, q)[counts].mean(),
    }


@pytest.mark.long
def test_point_values_are_the_metrics_themselves(tables, answers, found) -> None:
    assert len(NAMES) == 8
    for c in range(C):
        runs = [one_by_one(tables, answers[1, r, c], c) for r in range(2)]
        for i, name in enumerate(NAMES):
            expected = np.mean([run[name] for run in runs])
            np.testing.assert_allclose(found.countries.mean[1, c, i], expected, atol=2e-6)
        alone = one_by_one(tables, answers[0, 0, c], c)  # its other run does not exist
        np.testing.assert_allclose(found.countries.mean[0, c, 0], alone["alignment"], atol=2e-6)


def test_means_and_differences_hang_together(found: Comparison) -> None:
    values = found.countries.mean
    np.testing.assert_allclose(found.country_mean.mean, values.mean(1), atol=1e-6)
    np.testing.assert_allclose(
        found.mean_difference.mean, found.differences.mean.mean(1), atol=1e-6
    )
    for part in found:
        assert (part.low <= part.mean + 1e-6).all()
        assert (part.mean <= part.high + 1e-6).all()


def test_a_difference_is_over_the_items_that_both_answered(tables, answers, found) -> None:
    """Else a system is the better for leaving out what is hard."""
    runs = [answers[0, 0], answers[1, 0], answers[1, 1]]  # the first system has one run
    for c in range(C):
        both = ~np.isnan([run[c] for run in runs]).any(0)
        scores = [one_by_one(tables, np.where(both, run[c], np.nan), c) for run in runs]
        for i, name in enumerate(NAMES):
            expected = (scores[1][name] + scores[2][name]) / 2 - scores[0][name]
            np.testing.assert_allclose(found.differences.mean[0, c, i], expected, atol=4e-6)


def test_leaving_out_what_is_wrong_makes_no_difference(tables, answers) -> None:
    whole = np.nan_to_num(answers[1])
    some = np.where(whole == tables.gold_CxQ, whole, np.nan)
    found = compare(item_stats(tables, np.stack([some, whole])), KEY, 200, block=100)
    np.testing.assert_array_equal(found.countries.mean[0, :, 0], 1.0)
    np.testing.assert_array_equal(found.differences.mean[0, :, 0], 0.0)


def test_intervals_agree_with_a_plain_bootstrap(tables, answers, found) -> None:
    random = np.random.default_rng(3)
    counts = ~np.isnan(answers[0, 0, 0])
    errors = np.nan_to_num(answers[0, 0, 0] - tables.gold_CxQ[0]) ** 2 * counts
    squares = tables.range_Q**2 * counts
    picks = random.integers(0, Q, (20_000, Q))
    drawn = 1 - np.sqrt(errors[picks].sum(1) / squares[picks].sum(1))
    bounds = [found.countries.low[0, 0, 0], found.countries.high[0, 0, 0]]
    np.testing.assert_allclose(bounds, np.quantile(drawn, [0.025, 0.975]), atol=0.006)


def test_the_same_key_gives_the_same_bits(tables, answers, found) -> None:
    stats = item_stats(tables, answers)
    again = compare(stats, KEY, resamples=4000, block=500)
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, again))


def test_a_system_does_not_differ_from_itself(tables, answers) -> None:
    twice = np.stack([answers[1], answers[1]])
    found = compare(item_stats(tables, twice), KEY, resamples=200, block=100)
    for part in (found.differences, found.mean_difference):
        for bound in part:
            np.testing.assert_array_equal(bound, 0.0)


def test_nothing_answered_is_nan_and_leaves_the_others_alone(tables, answers) -> None:
    empty = answers.copy()
    empty[:, :, 2] = np.nan
    found = compare(item_stats(tables, empty), KEY, resamples=200, block=100)
    assert np.isnan(found.countries.mean[:, 2]).all()
    assert np.isnan(found.countries.low[:, 2]).all()
    np.testing.assert_allclose(
        found.country_mean.mean, found.countries.mean[:, :2].mean(1), atol=1e-6
    )
    assert np.isfinite(found.country_mean.low).all()


def test_the_order_of_items_does_not_matter(tables, answers, found) -> None:
    order = np.random.default_rng(4).permutation(Q)
    shuffled = dataclasses.replace(
        tables,
        truth_CxQxO=tables.truth_CxQxO[:, order],
        gold_CxQ=tables.gold_CxQ[:, order],
        range_Q=tables.range_Q[order],
        valid_QxO=tables.valid_QxO[order],
        ordinal_Q=tables.ordinal_Q[order],
    )
    stats = item_stats(shuffled, answers[..., order])
    again = compare(stats, KEY, resamples=4000, block=500)
    np.testing.assert_allclose(again.countries.mean, found.countries.mean, atol=2e-6)
    np.testing.assert_allclose(again.countries.low, found.countries.low, atol=0.02)


def test_bench_prints_its_times(capsys: pytest.CaptureFixture[str]) -> None:
    small = Config(countries=2, items=5, resamples=100, sets=(1,))
    bench(small)
    assert "2 countries × 5 items × 8 metrics, 100 resamples" in " ".join(
        capsys.readouterr().out.split()
    )
    assert synthetic_stats(small, 2).errors_SxRxCxMxQ.shape == (2, 1, 2, 8, 5)
    with pytest.raises(UserError, match="at least 1"):
        bench(Config(items=0))
