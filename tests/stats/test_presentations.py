"""What a result owes to the presentation of options: correlations, gains, constant answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.stats.intervals import Interval, normal_quantile, widened
from jaxalign.stats.presentations import (
    constant_answers,
    form_correlation,
    gain_over_forms,
    item_positions,
    spread_over_forms,
)

FUZZ = settings(deadline=None, max_examples=40, derandomize=True)
UNIT = st.floats(0, 1)


@FUZZ
@given(arrays(np.float64, (2, 12), elements=UNIT), arrays(np.float64, (2, 12), elements=UNIT))
def test_correlation_of_forms_is_pearsons(first, second):
    found = form_correlation(first, second, resamples=20)
    varying = [min(np.var(a), np.var(b)) > 1e-6 for a, b in zip(first, second, strict=True)]
    if all(varying):
        by_hand = [scipy.stats.pearsonr(a, b)[0] for a, b in zip(first, second, strict=True)]
        assert found.mean == pytest.approx(np.mean(by_hand), abs=1e-6)
        assert found.low <= found.high


def test_a_model_that_answers_the_number_has_correlation_minus_one():
    number_A = np.random.default_rng(0).random((3, 50))  # mean position of the number said
    found = form_correlation(number_A, 1 - number_A)
    assert found == pytest.approx((-1, -1, -1))
    assert form_correlation(number_A, number_A) == pytest.approx((1, 1, 1))


def test_correlation_leaves_out_missing_items_and_may_be_undefined():
    x = np.array([0.1, 0.4, 0.5, math.nan, 0.9])
    y = np.array([0.2, 0.1, 0.6, 0.3, math.nan])
    assert form_correlation(x, y).mean == pytest.approx(np.corrcoef(x[:3], y[:3])[0, 1])
    assert form_correlation(x[:2], y[:2]) is None
    assert form_correlation(np.full(9, 0.5), np.arange(9) / 9) is None, "a constant answer"


def test_correlation_interval_against_scipys_bootstrap():
    random = np.random.default_rng(1)
    x = random.normal(size=80)
    y = 0.5 * x + random.normal(size=80)
    found = form_correlation(x, y)
    reference = scipy.stats.bootstrap(
        (x, y), lambda a, b: scipy.stats.pearsonr(a, b)[0], paired=True, vectorized=False,
        n_resamples=2000, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.03)


def test_positions_lie_between_the_ends_of_an_items_own_scale():
    shares = np.array([[[0, 0, 1.0], [0.5, 0.5, 0]], [[1, 0, 0], [0, 1, 0]]])
    np.testing.assert_allclose(item_positions(shares, np.array([2, 1])), [[1, 0.5], [0, 1]])


# -- spread ---------------------------------------------------------------------------------------


def test_spread_over_presentations():
    losses = np.array([[40.0, 44.0], [60.0, 64.0]])  # presentations × seeds
    found = spread_over_forms(losses[..., None], ("A", "B"))
    assert found.by_form == {"A": 42.0, "B": 62.0}
    assert found.mean == 52
    assert found.spread == pytest.approx(np.std([42, 62], ddof=1))
    assert found.interval.low < 45
    assert found.interval.high > 59
    alone = spread_over_forms(np.array([40.0]), ("A",))
    assert alone.spread is None
    assert alone.interval is None


def test_widening_adds_variances_and_leaves_one_presentation_alone():
    interval = Interval(1.0, 0.8, 1.3)
    assert widened(interval, [1.0]) is interval
    assert widened(interval, [1.0, math.nan]) is interval
    wide = widened(interval, [0.5, 1.5, 1.0])
    half = normal_quantile(0.95) * 0.5 / math.sqrt(3)
    assert wide.low == pytest.approx(1 - math.hypot(0.2, half))
    assert wide.high == pytest.approx(1 + math.hypot(0.3, half))
    assert widened(interval, [1.0, 1.0]) == pytest.approx(interval)


@FUZZ
@given(st.lists(UNIT, min_size=2, max_size=5), UNIT, UNIT)
def test_widening_never_narrows(values, below, above):
    interval = Interval(0.5, 0.5 - below, 0.5 + above)
    wide = widened(interval, values)
    assert wide.low <= interval.low + 1e-12
    assert wide.high >= interval.high - 1e-12


# -- gains ----------------------------------------------------------------------------------------


def test_the_numbers_of_the_real_model_are_a_gain_that_vanishes():
    # 151 -> 47 as tuned; 93 -> 182 with the labels reversed.
    gain = gain_over_forms({"A": 151.0, "B": 93.0}, {"A": 47.0, "B": 182.0}, ("A",))
    assert gain.verdict == "vanishes"
    assert gain.vanishes
    assert gain.tuned.mean == 104
    assert gain.untuned.mean == -89
    assert (gain.loss_tuned, gain.loss_untuned) == (47, 182)
    assert gain.kept == pytest.approx(-89 / 104)
    assert "fell by 104.0 points" in gain.sentence
    assert "it rose by 89.0" in gain.sentence
    assert "the gain vanishes on presentations that were not tuned on" in gain.sentence


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ({"A": 50.0, "B": 50.0, "C": 55.0}, "kept"),
        ({"A": 50.0, "B": 50.0, "C": 75.0}, "partly kept"),
        ({"A": 50.0, "B": 50.0, "C": 91.0}, "vanishes"),
        ({"A": 101.0, "B": 101.0, "C": 20.0}, "no gain"),
        ({"A": 50.0, "B": 50.0}, "not tested"),
    ],
)
def test_verdicts_on_gains(after, verdict):
    gain = gain_over_forms(dict.fromkeys("ABC", 100.0), after, ("A", "B"))
    assert gain.verdict == verdict
    assert gain.sentence.endswith(".")
    assert gain.record()["verdict"] == verdict


def test_a_gain_that_some_seeds_lack_is_kept_in_part():
    before = {"A": np.full(3, 100.0), "C": np.full(3, 100.0)}
    after = {"A": np.array([50.0, 52, 51]), "C": np.array([10.0, 40.0, 130.0])}
    gain = gain_over_forms(before, after, ("A",))
    assert gain.kept > 0.8
    assert gain.untuned.low < 0
    assert gain.verdict == "partly kept"
    with pytest.raises(ValueError, match="none of the presentations"):
        gain_over_forms(before, after, ("B",))


# -- constant answers -----------------------------------------------------------------------------


def test_a_model_that_says_1_throughout_says_it_under_every_presentation():
    published, reversed_ = [["1", "2", "3"]] * 4, [["3", "2", "1"]] * 4
    assert constant_answers(np.zeros(4, int), published).sentence == "answers 1 throughout"
    assert constant_answers(np.full(4, 2), reversed_).sentence == "answers 1 throughout"
    assert constant_answers(np.zeros(4, int), reversed_).mark == "3"


def test_constant_answers_in_words():
    marks = [["1", "2"]] * 10
    nearly = constant_answers(np.array([0] * 19 + [1]).reshape(2, 10), marks)
    assert nearly.sentence == "answers 1 nearly throughout (95 % of the items)"
    some = constant_answers(np.array([0] * 6 + [1] * 4), marks)
    assert some.sentence == "answers 1 to 60 % of the items"
    assert (some.share, some.answers) == (0.6, 10)
    mixed = constant_answers(np.array([0, 1, -1, -1, -1, 0, 1, -1, 1, 0]), marks)
    assert mixed.sentence == "no constant answer"
    assert mixed.answers == 6
    assert constant_answers(np.full(10, -1), marks) is None
