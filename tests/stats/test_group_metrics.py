"""All-four rule and rank correlations over countries, by hand and against scipy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats.distances import kendall_tau, spearman_rho
from jaxalign.stats.group_metrics import all_right, group_accuracy, group_index, over_countries

FUZZ = settings(deadline=None, max_examples=40, derandomize=True)
GROUPS = group_index(["q1"] * 4 + ["q2"] * 4)


def test_a_question_is_right_only_when_all_four_rows_are() -> None:
    constant_false = jnp.array([1, 1, 1, 0, 0, 1, 1, 1], bool)
    assert float(group_accuracy(constant_false, GROUPS)) == 0.0
    assert float(constant_false.mean()) == 0.75
    one = jnp.array([1, 1, 1, 1, 0, 1, 1, 1], bool)
    assert all_right(one, GROUPS).tolist() == [True, False]
    assert float(group_accuracy(one, GROUPS)) == 0.5


def test_groups_are_numbered_as_they_appear() -> None:
    assert group_index(["b", "a", "b"]).tolist() == [0, 1, 0]


@FUZZ
@given(arrays(bool, (3, 8)), st.permutations(range(8)))
def test_accuracy_is_in_range_and_blind_to_row_order(correct, order) -> None:
    found = group_accuracy(jnp.asarray(correct), GROUPS)
    assert ((found >= 0) & (found <= correct.mean(-1) + 1e-6)).all()
    again = group_accuracy(jnp.asarray(correct[:, order]), GROUPS[order])
    np.testing.assert_allclose(found, again)
    alone = group_accuracy(jnp.asarray(correct), np.arange(8))
    np.testing.assert_allclose(alone, correct.mean(-1), rtol=1e-6)


def test_correlations_over_countries_agree_with_scipy() -> None:
    random = np.random.default_rng(0)
    x_CxQ, y_CxQ = (random.integers(0, 5, (7, 3)).astype(np.float32) for _ in range(2))
    counts_CxQ = np.ones((7, 3), bool)
    counts_CxQ[0, 1] = False
    x, y, counts = (jnp.asarray(v) for v in (x_CxQ, y_CxQ, counts_CxQ))
    pairs = [(kendall_tau, scipy.stats.kendalltau), (spearman_rho, scipy.stats.spearmanr)]
    for ours, theirs in pairs:
        found = over_countries(ours, x, y, counts)
        for q in range(3):
            kept = counts_CxQ[:, q]
            expected = theirs(x_CxQ[kept, q], y_CxQ[kept, q]).statistic
            np.testing.assert_allclose(found[q], expected, atol=1e-6)
