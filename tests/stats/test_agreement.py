"""Agreement of repeated questionnaires against published figures, and dispersion of personas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats.agreement import persona_dispersion, replicate_agreement

FUZZ = settings(deadline=None, max_examples=40, derandomize=True)

# Six targets rated by four judges: the example of Shrout and Fleiss (1979), whose ICC(1,1) is .17
# and ICC(1,4) .44.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)


def test_the_example_of_shrout_and_fleiss():
    found = replicate_agreement(SHROUT_FLEISS.T, np.full(6, 10))
    assert round(found.icc.mean, 2) == 0.17
    assert round(found.icc_mean, 2) == 0.44
    # The interval that statistical packages print for it.
    assert (found.icc.low, found.icc.high) == pytest.approx((-0.1329, 0.7226), abs=1e-3)
    assert (found.repetitions, found.items) == (4, 6)


def test_missing_replies_against_the_analysis_of_variance_by_hand():
    answers = np.array([[0, 1, 2, 3], [0, 1, 1, 3], [1, -1, 2, -1], [-1, -1, 2, -2]])
    found = replicate_agreement(answers, np.full(4, 3))
    groups = [[0, 0, 1], [1, 1], [2, 1, 2, 2], [3, 3]]
    total = [x / 3 for group in groups for x in group]
    n, sizes = len(total), [len(g) for g in groups]
    means = [np.mean(g) / 3 for g in groups]
    between = sum(s * (m - np.mean(total)) ** 2 for s, m in zip(sizes, means, strict=True)) / 3
    within = sum((x / 3 - m) ** 2 for g, m in zip(groups, means, strict=True) for x in g) / (n - 4)
    k = (n - sum(s**2 for s in sizes) / n) / 3
    assert found.icc.mean == pytest.approx((between - within) / (between + (k - 1) * within))
    assert found.flips == 0.5
    pairs = [np.mean([a != b for a, b in itertools.combinations(g, 2)]) for g in groups]
    assert found.disagreement == pytest.approx(np.mean(pairs))


def test_equal_repetitions_agree_wholly_and_one_answer_throughout_has_no_agreement():
    questionnaire = np.array([0, 1, 2, 1])
    found = replicate_agreement(np.stack([questionnaire] * 3), np.full(4, 2))
    assert found.icc == (1, 1, 1)
    assert found.icc_mean == 1
    assert found.flips == 0
    constant = replicate_agreement(np.zeros((3, 4)), np.full(4, 2))
    assert constant.icc is None
    assert constant.flips == 0
    assert constant.disagreement == 0
    assert constant.record()["icc"] is None
    assert replicate_agreement(np.array([[0, -1], [-1, 1]]), np.full(2, 2)) is None


@FUZZ
@given(arrays(np.int64, (4, 9), elements=st.integers(0, 4)), st.integers(1, 4))
def test_agreement_knows_neither_the_order_of_repetitions_nor_the_scales_length(answers, factor):
    one = replicate_agreement(answers, np.full(9, 4))
    other = replicate_agreement(answers[::-1] * factor, np.full(9, 4 * factor))
    assert one.flips == other.flips
    assert one.disagreement == pytest.approx(other.disagreement)
    assert (one.icc is None) == (other.icc is None)
    if one.icc is not None:
        assert one.icc.mean == pytest.approx(other.icc.mean)
        assert one.icc.low <= one.icc.mean + 1e-12
        assert one.icc.mean <= one.icc.high + 1e-12
        assert one.icc.mean <= 1


# -- dispersion -----------------------------------------------------------------------------------


def test_personas_that_differ_a_tenth_as_much_as_people():
    people = np.random.default_rng(0).random((5, 40))
    personas = 0.5 + (people - people.mean(axis=0)) / 10
    found = persona_dispersion(personas, people)
    assert found.ratio == pytest.approx((0.1, 0.1, 0.1))
    assert found.people == pytest.approx(people.std(axis=0, ddof=1).mean())
    assert (found.countries, found.items) == (5, 40)


def test_dispersion_where_little_is_known():
    people = np.array([[0.1, 0.2, math.nan], [0.3, 0.2, 0.5]])
    found = persona_dispersion(np.array([[0.5, math.nan, 0.2], [0.4, 0.1, 0.3]]), people)
    assert found.items == 1
    assert found.ratio.mean == pytest.approx(0.5)
    assert persona_dispersion(people[:1], people[:1]) is None
    equal = np.full((3, 4), 0.5)
    assert persona_dispersion(equal, equal).ratio is None
    assert persona_dispersion(equal, equal).record()["ratio"] is None
