"""Scores on resampled questions: against the metric itself, brute force and the other bootstrap."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.pocket.society import held_out_survey
from jaxalign.stats.alignment import alignment
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.comparison import compare, item_stats
from jaxalign.stats.paired_scores import drawn_scores, spread
from jaxalign.surveys.tables import make_tables

TABLES = make_tables(held_out_survey(), ("USA", "CHN", "IND"))
Q = len(TABLES.range_Q)


def answers(runs: int, seed: int = 0, missing: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(seed)
    drawn = random.integers(0, TABLES.range_Q.astype(int) + 1, size=(runs, 3, Q))
    return np.where(random.random(drawn.shape) < missing, np.nan, drawn).astype(np.float32)


def test_first_draw_is_the_published_score():
    given_RxCxQ = answers(4)
    found = drawn_scores(given_RxCxQ, TABLES, count_draws(Q, 3, 0))[0]
    wanted = 100 * alignment(given_RxCxQ, TABLES.gold_CxQ[None], TABLES)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_draw_is_the_score_of_the_drawn_items(seed):
    given_RxCxQ, draws = answers(2, seed), count_draws(Q, 2, seed)
    found = drawn_scores(given_RxCxQ, TABLES, draws)
    assert (draws.sum(axis=1) == Q).all()
    for n, row in enumerate(draws):
        items = np.repeat(np.arange(Q), row.astype(int))
        for r in range(2):
            for c in range(3):
                a, g = given_RxCxQ[r, c, items], TABLES.gold_CxQ[c, items]
                known = ~np.isnan(a)
                error = np.linalg.norm((a - g)[known])
                wanted = 100 * (1 - error / np.linalg.norm(TABLES.range_Q[items][known]))
                assert found[n, r, c] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.long
def test_intervals_are_those_of_the_survey_bootstrap():
    first, second = answers(3, 1, 0.0), answers(3, 2, 0.0)
    draws = count_draws(Q, 20_000, 5)
    a, b = (drawn_scores(x, TABLES, draws) for x in (first, second))
    stats = item_stats(TABLES, np.stack([first, second]))
    other = jax.tree.map(np.asarray, compare(stats, jax.random.key(1), 20_000))
    mine = spread(a.mean(axis=2))
    assert mine.value == pytest.approx(100 * other.country_mean.mean[0, 0], abs=1e-3)
    bounds = [100 * x[0, 0] for x in other.country_mean.bounds]
    assert mine.questions.bounds == pytest.approx(bounds, abs=0.15)  # two samples of 20,000
    difference = spread((b - a).mean(axis=2))
    bounds = [100 * x[0, 0] for x in other.mean_difference.bounds]
    assert difference.questions.bounds == pytest.approx(bounds, abs=0.2)


def test_seeds_that_cannot_differ_have_no_interval():
    one = np.repeat(answers(1), 5, axis=0)
    assert spread(drawn_scores(one, TABLES, count_draws(Q, 10, 0))[:, :, 0]).seeds is None
    assert spread(drawn_scores(one[:1], TABLES, count_draws(Q, 10, 0))[:, :, 0]).seeds is None
    found = spread(drawn_scores(answers(5), TABLES, count_draws(Q, 10, 0))[:, :, 0])
    assert found.seeds.low < found.value < found.seeds.high
    assert len(found.by_seed) == 5


def test_a_country_without_answers_is_nan():
    none = np.full((1, 3, Q), np.nan, np.float32)
    assert np.isnan(drawn_scores(none, TABLES, count_draws(Q, 2, 0))).all()
