"""The validity gate: its numbers by hand; what passes, what fails, and what cannot be told."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.stats.distances import item_similarities
from jaxalign.stats.seeds import resampled_counts
from jaxalign.stats.validity import (
    MIN_COUNTRIES,
    NO_SIGNAL,
    check_validity,
    deviations,
    validity_gate,
)
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import Tables, make_tables

FUZZ = settings(deadline=None, max_examples=25, derandomize=True)


def people(countries: int, items: int, options: int = 4, seed: int = 0) -> Tables:
    """Made-up countries that answered all items of one length."""
    random = np.random.default_rng(seed)
    truth = random.dirichlet(np.ones(options), (countries, items)).astype(np.float32)
    return Tables(
        tuple(f"C{c}" for c in range(countries)),
        truth,
        truth.argmax(axis=-1).astype(np.float32),
        np.full(items, options - 1, np.float32),
        np.ones((items, options), bool),
        np.ones(items, bool),
    )


def noise(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_personas_that_answer_as_their_people_pass():
    tables = people(4, 60)
    personas = 0.5 * tables.truth_CxQxO[None] + 0.5 / 4
    found = validity_gate(personas, tables)
    assert found.passes
    assert found.correlation == pytest.approx((1, 1, 1))
    assert found.over_uniform.low > 0
    assert found.permutation["p_value"] == pytest.approx(1 / 24)
    assert found.persona_spread == pytest.approx(found.human_spread / 2, rel=1e-5)
    assert found.sentence.startswith("The instrument carries signal on this model")
    assert found.record()["presentations"] == ["A"]


def test_random_personas_have_no_signal():
    tables = people(4, 80)
    found = validity_gate(noise((1, 4, 80, 4)), tables)
    assert found.passes is False
    assert found.correlation.low < 0 < found.correlation.high
    assert found.sentence.lower().startswith(NO_SIGNAL)
    assert "do not follow people's differences" in found.sentence


def test_personas_that_follow_but_lose_to_a_uniform_answer_fail():
    # Deviations are the people's, around an answer that nobody gives.
    tables = people(4, 60)
    far = np.zeros((4, 60, 4))
    far[..., 0] = 1
    personas = 0.05 * tables.truth_CxQxO + 0.95 * far
    found = validity_gate(personas[None], tables)
    assert found.correlation.low > 0.9
    assert found.over_uniform.high < 0
    assert found.passes is False
    assert "they are not closer to people than a uniform answer" in found.sentence


def test_personas_that_all_answer_alike_fail_in_words():
    tables = people(3, 20)
    alike = np.broadcast_to(tables.truth_CxQxO.mean(axis=0), (1, 3, 20, 4))
    found = validity_gate(alike, tables)
    assert found.correlation is None
    assert found.passes is False
    assert "persona answers do not differ between countries" in found.sentence


def test_one_country_cannot_be_judged_and_a_failure_stays_one():
    tables = people(1, 30)
    found = validity_gate(tables.truth_CxQxO[None], tables)
    assert found.passes is None
    assert found.permutation is None
    assert found.sentence.startswith("Whether the instrument carries signal")
    worse = np.zeros((1, 1, 30, 4))
    worse[..., 3] = 1
    assert validity_gate(worse, tables).passes is False


@FUZZ
@given(st.integers(2, 5), st.integers(3, 20), st.integers(0, 1000))
def test_the_correlation_is_pearsons_of_deviations(countries, items, seed):
    tables = people(countries, items, seed=seed)
    personas = noise((2, countries, items, 4), seed + 1)
    found = validity_gate(personas, tables, ("A", "B"), resamples=20)
    x = (personas.mean(axis=0) * np.arange(4)).sum(axis=-1) / 3
    y = (tables.truth_CxQxO.astype(float) * np.arange(4)).sum(axis=-1) / 3
    by_hand = np.corrcoef(np.ravel(x - x.mean(axis=0)), np.ravel(y - y.mean(axis=0)))[0, 1]
    assert found.correlation.mean == pytest.approx(by_hand, abs=1e-5)
    assert found.persona_spread == pytest.approx(x.std(axis=0, ddof=1).mean())
    assert (found.permutation is None) == (countries < MIN_COUNTRIES)


def test_the_bootstrap_by_drawing_countries_and_items_one_by_one():
    tables = people(3, 12)
    personas = 0.3 * tables.truth_CxQxO[None] + 0.7 * noise((1, 3, 12, 4))
    found = validity_gate(personas, tables, resamples=300)
    x_FxCxQ, y, _ = deviations(personas, tables)
    x, drawn = x_FxCxQ[0], []
    for countries_B, items_B in resampled_counts((3, 12), 300, 0):
        for c, q in zip(countries_B, items_B, strict=True):
            cells = np.ix_(np.repeat(range(3), c.astype(int)), np.repeat(range(12), q.astype(int)))
            a, b = x[cells], y[cells]
            drawn.append((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.correlation.low, found.correlation.high) == pytest.approx((low, high))


def test_presentations_that_disagree_widen_the_intervals():
    tables = people(4, 60)
    signal = 0.2 * tables.truth_CxQxO + 0.8 / 4
    agreeing = validity_gate(np.stack([signal, signal]), tables, ("A", "B"))
    # The same mean over presentations, of two that deviate in opposite directions.
    shift = 0.1 * (noise((4, 60, 4)) - noise((4, 60, 4), 2))
    differing = validity_gate(np.stack([signal + shift, signal - shift]), tables, ("A", "B"))
    assert agreeing.correlation.mean == pytest.approx(differing.correlation.mean)
    width = [v.correlation.high - v.correlation.low for v in (agreeing, differing)]
    assert width[1] > width[0] + 0.01
    assert differing.presentations == ("A", "B")


def test_a_model_that_answers_the_number_is_without_signal_over_both_numberings():
    tables = people(4, 60)
    # Personas follow people in A; in B the same numbers mean the opposite.
    as_published = 0.5 * tables.truth_CxQxO + 0.5 / 4
    reversed_ = as_published[..., ::-1]
    found = validity_gate(np.stack([as_published, reversed_]), tables, ("A", "B"))
    assert found.passes is False
    assert found.correlation is None, "what is left is rounding"
    assert "answers, averaged over presentations, do not differ between" in found.sentence
    # In three presentations out of four it answers the number.
    most = np.stack([as_published, as_published, as_published, reversed_])
    found = validity_gate(most, tables, tuple("ACEB"))
    assert found.passes is False
    assert found.correlation.mean == pytest.approx(1)
    # 1, 1, 1 and -1: a standard deviation of 1, of which √4 is left.
    assert found.correlation.low == pytest.approx(1 - 1.96 / 2, abs=1e-3)
    assert found.correlation.high == 1


def test_nominal_items_count_only_for_the_similarity_and_unasked_ones_for_nothing():
    items = (
        Item("o", "Ordinal?", ("a", "b", "c"), (1, 2, 3)),
        Item("n", "Nominal?", ("a", "b", "c"), (1, 2, 3), "nominal"),
        Item("t", "Two?", ("yes", "no"), (1, 2), "nominal"),
        Item("u", "Unasked?", ("a", "b", "c"), (1, 2, 3)),
    )
    shares = {
        "X": {"o": (0.5, 0.3, 0.2), "n": (0.1, 0.1, 0.8), "t": (0.9, 0.1), "u": (1.0, 0.0, 0.0)},
        "Y": {"o": (0.2, 0.3, 0.5), "n": (0.8, 0.1, 0.1), "t": (0.2, 0.8)},
    }
    tables = make_tables(Survey("s", "1", "made up", "official", items, shares))
    personas = np.nan_to_num(tables.truth_CxQxO, nan=1 / 3)
    counts_CxQ = deviations(personas[None], tables)[2]
    np.testing.assert_array_equal(counts_CxQ, [[True, False, True, False]] * 2)
    found = validity_gate(personas[None], tables, resamples=50)
    assert found.items == 2
    assert found.similarity == pytest.approx(1.0)
    uniform = item_similarities(
        tables.valid_QxO / tables.valid_QxO.sum(axis=-1, keepdims=True),
        tables.truth_CxQxO,
        tables.ordinal_Q,
        tables.valid_QxO,
    )
    assert found.uniform_similarity == pytest.approx(np.nanmean(uniform))


def test_answers_that_are_missing_are_left_out_and_shapes_are_checked():
    tables = people(3, 10)
    personas = tables.truth_CxQxO[None].astype(float).copy()
    personas[0, 0, 4] = math.nan
    found = validity_gate(personas, tables, resamples=50)
    assert found.items == 10
    assert found.correlation.mean == pytest.approx(1)
    nothing = validity_gate(np.full_like(personas, math.nan), tables, resamples=50)
    assert nothing.passes is None
    assert nothing.over_uniform is None
    with pytest.raises(ValueError, match="personas have shape"):
        validity_gate(personas, dataclasses.replace(tables, truth_CxQxO=tables.truth_CxQxO[:2]))


def test_it_takes_the_answers_that_ask_returns():
    tables = people(3, 20)
    items = tuple(Item(f"q{q}", "Really?", tuple("abcd"), (1, 2, 3, 4)) for q in range(20))
    shares = {
        country: {item.id: tuple(map(float, p)) for item, p in zip(items, truth_QxO, strict=True)}
        for country, truth_QxO in zip(tables.countries, tables.truth_CxQxO, strict=True)
    }
    survey = Survey("s", "1", "made up", "official", items, shares)
    forms = {
        name: Responses(survey, ("x", "y", "z"), np.log(noise((3, 20, 4), seed)).astype(np.float32))
        for seed, name in enumerate("AB")
    }
    found = check_validity(Responses.from_presentations(forms), tables.countries, resamples=50)
    shares_FxCxQxO = np.stack([form.distributions() for form in forms.values()])
    assert found == validity_gate(shares_FxCxQxO, tables, ("A", "B"), resamples=50)
    assert check_validity(forms["A"], tables.countries, resamples=50).presentations == ("A",)
    with pytest.raises(UserError, match="give one for each of the 3 conditions"):
        check_validity(forms["A"], tables.countries[:2])


def test_sampled_replies_are_compared_with_as_many_random_ones():
    """One reply is far from a distribution whoever gives it: a random respondent would fail."""
    tables, random = people(4, 200, options=5, seed=3), np.random.default_rng(0)
    replies = np.stack([random.multinomial(1, p / p.sum()) for p in rows(tables)])
    respondents = replies.reshape(1, *tables.truth_CxQxO.shape).astype(float)
    exact = validity_gate(respondents, tables)
    assert exact.passes is False
    assert exact.over_uniform.high < 0
    sampled = validity_gate(respondents, tables, replies=1)
    assert sampled.passes
    assert sampled.correlation == exact.correlation
    assert "closer to people than one random reply" in sampled.sentence
    # One random reply by hand: the mean over its five options.
    by_option = [
        item_similarities(
            np.broadcast_to(option, (4, 200, 5)),
            tables.truth_CxQxO,
            tables.ordinal_Q,
            tables.valid_QxO,
        )
        for option in np.eye(5)
    ]
    assert sampled.uniform_similarity == pytest.approx(np.mean(by_option), abs=3e-3)
    # Very many replies are the uniform distribution.
    many = validity_gate(respondents, tables, replies=100_000)
    assert many.uniform_similarity == pytest.approx(exact.uniform_similarity, abs=2e-3)
    assert "100000 random replies" in many.sentence


def rows(tables: Tables) -> np.ndarray:
    return tables.truth_CxQxO.reshape(-1, tables.truth_CxQxO.shape[-1]).astype(float)
