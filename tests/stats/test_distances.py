"""Survey metrics against scipy, hand-worked examples, and the properties they are chosen for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats import distances as m

FUZZ = settings(deadline=None, max_examples=60, derandomize=True)
VALID5 = jnp.ones(5, bool)

counts = arrays(np.int32, 5, elements=st.integers(0, 20)).filter(lambda c: c.sum() > 0)
shares = counts.map(lambda c: (c / c.sum()).astype(np.float32))
codes = arrays(np.int32, 12, elements=st.integers(1, 5)).map(lambda a: a.astype(np.float32))
asked = arrays(bool, 12)
PAIRWISE = [
    m.total_variation,
    lambda p, q: m.ordinal_wasserstein(p, q, VALID5),
    m.jensen_shannon_divergence,
    m.jensen_shannon_distance,
]


# -- distances between distributions --------------------------------------------------------------


@FUZZ
@given(p=shares, q=shares)
def test_distances_are_symmetric_in_range_and_zero_at_identity(p, q) -> None:
    for distance in PAIRWISE:
        assert -1e-6 <= distance(p, q) <= 1 + 1e-6
        np.testing.assert_allclose(distance(p, q), distance(q, p), atol=1e-6)
        np.testing.assert_allclose(distance(p, p), 0.0, atol=1e-6)


@FUZZ
@given(p=shares, q=shares)
def test_distances_agree_with_scipy(p, q) -> None:
    steps = scipy.stats.wasserstein_distance(range(5), range(5), p, q) / 4
    np.testing.assert_allclose(m.ordinal_wasserstein(p, q, VALID5), steps, atol=2e-6)
    jensen = scipy.spatial.distance.jensenshannon(p.astype(float), q.astype(float), base=2)
    np.testing.assert_allclose(m.jensen_shannon_divergence(p, q), jensen**2, atol=2e-6)
    np.testing.assert_allclose(m.total_variation(p, q), np.abs(p - q).sum() / 2, atol=1e-6)


@FUZZ
@given(p=shares, q=shares, order=st.permutations(range(5)))
def test_only_the_ordinal_distance_depends_on_option_order(p, q, order) -> None:
    order = np.array(order)
    for distance in (m.total_variation, m.jensen_shannon_divergence):
        np.testing.assert_allclose(distance(p[order], q[order]), distance(p, q), atol=1e-6)
    flipped = m.ordinal_wasserstein(p[::-1], q[::-1], VALID5)
    np.testing.assert_allclose(flipped, m.ordinal_wasserstein(p, q, VALID5), atol=1e-6)


def test_distances_by_hand() -> None:
    low, next_, high = jnp.eye(5)[0], jnp.eye(5)[1], jnp.eye(5)[4]
    assert m.ordinal_wasserstein(low, high, VALID5) == 1.0
    assert m.ordinal_wasserstein(low, next_, VALID5) == 0.25
    assert m.total_variation(low, next_) == m.total_variation(low, high) == 1.0
    np.testing.assert_allclose(m.jensen_shannon_divergence(low, high), 1.0, rtol=1e-6)
    half = jnp.array([0.5, 0.5, 0, 0, 0])
    expected = 1.5 - 0.75 * np.log2(3)  # (log2(4/3) + 1/2 log2(2/3) + 1/2 log2(2)) / 2
    np.testing.assert_allclose(m.jensen_shannon_divergence(low, half), expected, rtol=1e-5)


def test_a_short_item_is_normalised_by_its_own_options() -> None:
    p, q = jnp.array([1.0, 0, 0, 0, 0]), jnp.array([0.0, 0, 1, 0, 0])
    valid = jnp.array([True, True, True, False, False])
    assert m.ordinal_wasserstein(p, q, valid) == 1.0


# -- answers --------------------------------------------------------------------------------------


def test_alignment_score_by_hand() -> None:
    a, g, r = jnp.array([1.0, 4, 2]), jnp.array([4.0, 4, 9]), jnp.array([3, 3, 9])
    counts_Q = jnp.array([True, True, False])
    expected = 1 - 3 / np.sqrt(18)  # error (3, 0), ranges (3, 3); the third was not answered
    np.testing.assert_allclose(m.cultural_alignment(a, g, r, counts_Q), expected, rtol=1e-6)


def test_alignment_score_is_zero_at_opposite_ends_and_weighs_long_scales_by_their_square() -> None:
    low, high, r = jnp.ones(2), jnp.array([4.0, 10]), jnp.array([3, 9])
    np.testing.assert_allclose(
        m.cultural_alignment(low, high, r, jnp.ones(2, bool)), 0.0, atol=1e-6
    )
    only_long = m.cultural_alignment(low, jnp.array([1.0, 10]), r, jnp.ones(2, bool))
    np.testing.assert_allclose(only_long, 1 - np.sqrt(81 / 90), rtol=1e-5)


@FUZZ
@given(a=codes, g=codes, counts_Q=asked, order=st.permutations(range(12)))
def test_alignment_range_symmetry_identity_and_item_order(a, g, counts_Q, order) -> None:
    order, ranges = np.array(order), np.full(12, 4.0, np.float32)
    value = m.cultural_alignment(a, g, ranges, counts_Q)
    if not counts_Q.any():
        assert np.isnan(value), "no items is no score"
        return
    assert -1e-6 <= value <= 1 + 1e-6
    assert m.cultural_alignment(a, a, ranges, counts_Q) == 1
    np.testing.assert_allclose(value, m.cultural_alignment(g, a, ranges, counts_Q), atol=1e-6)
    shuffled = m.cultural_alignment(a[order], g[order], ranges, counts_Q[order])
    np.testing.assert_allclose(value, shuffled, atol=1e-6)


# -- the held-out score ---------------------------------------------------------------------------

VALID = jnp.array([[True, True, True, True], [True, True, True, False], [True] * 4])
ORDINAL = jnp.array([True, False, True])
TRUTH = jnp.array([[0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [np.nan] * 4])


def test_survey_similarity_by_hand() -> None:
    p = jnp.array([[0, 0.5, 0.5, 0], [0.5, 0.3, 0.2, 0], [0.25] * 4])
    # ordinal: one step of three, 2/3; nominal: total variation 0.3; the third was not asked.
    np.testing.assert_allclose(
        m.item_similarities(p, TRUTH, ORDINAL, VALID), [2 / 3, 0.7, np.nan], rtol=1e-6
    )
    expected = (2 / 3 + 0.7) / 2
    np.testing.assert_allclose(m.survey_similarity(p, TRUTH, ORDINAL, VALID), expected, rtol=1e-6)


def test_identity_scores_one_and_opposite_ends_zero() -> None:
    known = jnp.nan_to_num(TRUTH, nan=0.25)
    np.testing.assert_allclose(m.survey_similarity(known, TRUTH, ORDINAL, VALID), 1.0, rtol=1e-6)
    low = jnp.tile(jnp.eye(4)[0], (3, 1))
    high = jnp.stack([jnp.eye(4)[3], jnp.eye(4)[2], jnp.eye(4)[3]])
    np.testing.assert_allclose(m.survey_similarity(low, high, ORDINAL, VALID), 0.0, atol=1e-6)


def test_an_unasked_item_drops_out_and_a_broken_answer_does_not() -> None:
    p = jnp.full((3, 4), 0.25).at[1].set(jnp.array([0.3, 0.3, 0.4, 0]))
    clean = m.survey_similarity(p, TRUTH, ORDINAL, VALID)
    assert m.survey_similarity(p.at[2].set(jnp.nan), TRUTH, ORDINAL, VALID) == clean
    assert np.isnan(m.survey_similarity(p.at[0].set(jnp.nan), TRUTH, ORDINAL, VALID))
    gradient = jax.grad(m.survey_similarity)(p, TRUTH, ORDINAL, VALID)
    assert np.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    assert np.isnan(m.survey_similarity(p, jnp.full((3, 4), jnp.nan), ORDINAL, VALID))


@pytest.mark.long
def test_members_and_countries_broadcast_as_one_by_one() -> None:
    p_ExCxQxO = jax.random.dirichlet(jax.random.key(0), jnp.ones(4), (5, 2, 3))
    truth_CxQxO = jax.random.dirichlet(jax.random.key(1), jnp.ones(4), (2, 3))
    batched = jax.jit(m.survey_similarity)(p_ExCxQxO, truth_CxQxO, ORDINAL, VALID)
    single = [
        [m.survey_similarity(p, t, ORDINAL, VALID) for p, t in zip(row, truth_CxQxO, strict=True)]
        for row in p_ExCxQxO
    ]
    np.testing.assert_allclose(batched, single, rtol=1e-5)
