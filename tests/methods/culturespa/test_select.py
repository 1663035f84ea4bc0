"""Which pairs are trained on: against brute force, nested, and independent of order and company."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.select import (
    Pair,
    Selection,
    cds,
    changed,
    crqpc,
    describe_selection,
    diverged,
    divergence,
    expected_noise,
    fraction,
    hold_out,
    pairs_by_topic,
    rds,
)
from jaxalign.surveys.responses import UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey

COUNTRIES = ("USA", "CHN", "NGA")


def make_items(count: int) -> list[Item]:
    """Items of 2 to 5 options; codes from 0 and from 1; every fourth without an order."""
    items = []
    for q in range(count):
        codes = tuple(range(q % 2, q % 2 + 2 + q % 4))
        labels = tuple(f"option {c}" for c in codes)
        scale = "nominal" if q % 4 == 3 else "ordinal"
        items.append(Item(f"g{q:03d}", f"Question {q}?", labels, codes, scale))
    return items


@st.composite
def answered(draw):
    """Items, unaware [Q] and aware answers [C, Q]: positions, -1 for none."""
    items = make_items(draw(st.integers(1, 30)))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    most = np.array([len(item.options) for item in items])
    shape = 1 + len(COUNTRIES), len(items)
    drawn = np.minimum(random.integers(-1, 3, shape), most - 1)
    return items, drawn[0], drawn[1:]


@given(answered())
def test_crqpc_is_the_pairs_whose_answers_differ(survey):
    items, unaware_Q, aware_CxQ = survey
    found = crqpc(changed(unaware_Q, aware_CxQ), aware_CxQ, COUNTRIES, items)
    expected = [
        Pair(country, item.id, item.codes[aware])
        for country, row in zip(COUNTRIES, aware_CxQ.tolist(), strict=True)
        for item, before, aware in zip(items, unaware_Q.tolist(), row, strict=True)
        if before >= 0 and aware >= 0 and before != aware
    ]
    assert list(found.pairs) == expected
    assert sum(found.sizes.values()) == len(expected)


@settings(max_examples=30, deadline=None)
@given(answered(), st.integers(0, 5))
def test_samples_have_the_size_and_kind_asked_for(survey, seed):
    items, unaware_Q, aware_CxQ = survey
    moved = crqpc(changed(unaware_Q, aware_CxQ), aware_CxQ, COUNTRIES, items)
    some = rds(aware_CxQ, COUNTRIES, items, moved.sizes, seed)
    assert some.sizes == moved.sizes
    assert not some.missing
    same = cds(unaware_Q, aware_CxQ, COUNTRIES, items, moved.sizes, seed)
    assert not set(same.pairs) & set(moved.pairs)
    by_id = {item.id: q for q, item in enumerate(items)}
    for pair in same.pairs:
        assert items[by_id[pair.item]].codes[unaware_Q[by_id[pair.item]]] == pair.answer
    for country, size in moved.sizes.items():
        assert same.sizes.get(country, 0) + same.missing.get(country, 0) == size


def random_survey(count=200):
    items, random = make_items(count), np.random.default_rng(7)
    most = np.array([len(item.options) for item in items])
    drawn = random.integers(0, most, (1 + len(COUNTRIES), count))
    return items, drawn[0], drawn[1:]


def test_draws_depend_neither_on_order_nor_on_other_countries():
    items, unaware_Q, aware_CxQ = random_survey()
    sizes = {"USA": 20, "CHN": 30, "NGA": 25}
    turn = np.random.default_rng(1).permutation(len(items))
    for draw in (
        lambda u, a, c, i: rds(a, c, i, sizes, 3),
        lambda u, a, c, i: cds(u, a, c, i, sizes, 3),
    ):
        every = draw(unaware_Q, aware_CxQ, COUNTRIES, items)
        alone = draw(unaware_Q[turn], aware_CxQ[1:2, turn], ("CHN",), [items[t] for t in turn])
        assert set(alone.pairs) == {pair for pair in every.pairs if pair.group == "CHN"}


def test_seeds_and_methods_draw_differently():
    items, _, aware_CxQ = random_survey()
    sizes = dict.fromkeys(COUNTRIES, 20)
    first, second = (rds(aware_CxQ, COUNTRIES, items, sizes, seed).pairs for seed in (0, 1))
    assert first == rds(aware_CxQ, COUNTRIES, items, sizes, 0).pairs
    assert first != second
    countries = [{p.item for p in first if p.group == c} for c in COUNTRIES]
    assert countries[0] != countries[1]


def test_draws_are_even():
    """Each of 40 questions is drawn about a quarter of the time over seeds."""
    items = make_items(40)
    aware_1xQ = np.zeros((1, 40), int)
    drawn = [rds(aware_1xQ, ["USA"], items, {"USA": 10}, seed).pairs for seed in range(400)]
    counts = np.array([sum(i.id == p.item for some in drawn for p in some) for i in items])
    assert np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_too_few_unchanged_pairs_are_told():
    items = make_items(4)
    found = cds(np.array([0, 0, 0, 1]), np.array([[0, 1, 1, 0]]), ["USA"], items, {"USA": 3}, 0)
    assert found == Selection.of([Pair("USA", "g000", 0)], {"USA": 2})


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 9))
def test_fractions_are_nested(count, seed):
    items = make_items(count)
    pairs = [Pair(c, item.id, item.codes[0]) for c in COUNTRIES[:2] for item in items]
    whole, before = Selection.of(pairs), set()
    for tenths in range(1, 11):
        some = fraction(whole, tenths / 10, seed)
        assert before <= set(some.pairs)
        assert [p for p in pairs if p in set(some.pairs)] == list(some.pairs)
        assert all(n == round(tenths / 10 * count) for n in some.sizes.values())
        before = set(some.pairs)
    assert some == whole


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_impossible_fraction(share):
    with pytest.raises(UserError, match=f"fraction {share}"):
        fraction(Selection.of([]), share, 0)


@given(count=st.integers(2, 30), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_no_question_is_held_out_and_trained_on(count, share, seed):
    items = make_items(count)
    pairs = [Pair(c, item.id, item.codes[0]) for item in items for c in COUNTRIES[:2]]
    whole = Selection.of(pairs)
    if not 0 < round(share * count) < count:
        with pytest.raises(UserError, match="both sides need one"):
            hold_out(whole, share, seed)
        return
    train, apart = hold_out(whole, share, seed)
    assert len({p.item for p in apart.pairs}) == round(share * count)
    assert not {p.item for p in apart.pairs} & {p.item for p in train.pairs}
    assert sorted(map(str, train.pairs + apart.pairs)) == sorted(map(str, pairs))
    assert hold_out(Selection.of(pairs[::-1]), share, seed)[1].pairs == apart.pairs[::-1]


def random_distributions(items, seed):
    random = np.random.default_rng(seed)
    out = np.zeros((len(items), 5), np.float32)
    for q, item in enumerate(items):
        out[q, : len(item.options)] = random.dirichlet(np.ones(len(item.options)))
    return out


def test_divergences_equal_scipys():
    items = make_items(16)
    unaware_QxO = random_distributions(items, 0)
    aware_CxQxO = np.stack([random_distributions(items, c) for c in (1, 2, 3)])
    measures = ("jensen_shannon", "total_variation", "wasserstein")
    found = {m: divergence(unaware_QxO, aware_CxQxO, items, m) for m in measures}
    for c in range(3):
        for q, item in enumerate(items):
            n = len(item.options)
            p, r = unaware_QxO[q, :n], aware_CxQxO[c, q, :n]
            half = np.abs(p - r).sum() / 2
            steps = wasserstein_distance(range(n), range(n), p, r) / (n - 1)
            steps = half if item.scale == "nominal" else steps
            expected = jensenshannon(p, r, base=2) ** 2, half, steps
            np.testing.assert_allclose([f[c, q] for f in found.values()], expected, atol=1e-6)
    with pytest.raises(UserError, match="'kl' is no divergence"):
        divergence(unaware_QxO, aware_CxQxO, items, "kl")


def test_threshold_and_missing_answers():
    items = make_items(3)
    unaware_QxO = random_distributions(items, 0)
    aware_CxQxO = np.stack([unaware_QxO, random_distributions(items, 1)])
    aware_CxQxO[1, 2] = np.nan
    apart = divergence(unaware_QxO, aware_CxQxO, items)
    assert not diverged(apart, 0.0)[0].any()
    marked = diverged(apart, 0.0)[1]
    assert marked.tolist() == [True, True, False]
    assert np.isnan(divergence(unaware_QxO, aware_CxQxO, items, "wasserstein")[1, 2])
    assert not diverged(apart, float(np.nanmax(apart)))[1].any()
    with pytest.raises(UserError, match=r"threshold 1\.0"):
        diverged(apart, 1.0)
    aware_CxQ = np.array([[0, 0, 0], [0, -1, 0]])
    [pair] = crqpc(diverged(apart, 0.0), aware_CxQ, COUNTRIES[:2], items).pairs
    assert pair == Pair("CHN", "g000", 0)


def test_expected_noise_is_how_often_two_draws_differ():
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(expected_noise(p), [1 - 0.04 - 0.25 - 0.09, 0])
    random = np.random.default_rng(0)
    first, second = random.choice(3, p=p[0], size=(2, 40_000))
    assert abs(changed(first, second).mean() - expected_noise(p)[0]) < 0.01


def test_the_share_changed_is_of_the_questions_answered_both_ways():
    """Three questions of four answered unaware, two of these by the persona, one changed."""
    items = [Item(f"q{q}", f"Question {q}?", ("no", "yes"), (1, 2)) for q in range(4)]
    survey = Survey("four questions", "1", "made up", "paraphrase", tuple(items))

    def answered(*answers):
        positions = [[UNREADABLE if a is None else a for a in row] for row in answers]
        labels = [str(row) for row in range(len(answers))]
        return Responses.from_positions(survey, labels, np.array([positions]))

    groups = ("USA", "CHN")
    given = {"unaware": answered((0, 0, 0, None)), "p1": answered((1, 0, None, 0), (None,) * 4)}
    joint = Selection.of([Pair("USA", "q1", 2)])
    found = describe_selection(given, groups, {"joint": joint})
    assert found["questions"] == 4
    assert found["changed_share"] == {"USA": 0.5, "CHN": None}
    assert found["noise"] == 0
    nobody = given | {"unaware": answered((None,) * 4)}
    assert describe_selection(nobody, groups, {"joint": joint})["noise"] is None


def test_pairs_are_counted_by_topic_and_country():
    items = make_items(5)
    topics = ("trust", "trust", "religion", "trust", "work")
    items = [dataclasses.replace(i, topic=t) for i, t in zip(items, topics, strict=True)]
    chosen = [("USA", 0), ("USA", 1), ("CHN", 1), ("NGA", 2)]
    pairs = Selection.of([Pair(country, items[q].id, items[q].codes[0]) for country, q in chosen])
    found = pairs_by_topic(pairs, items)
    assert list(found) == ["trust", "religion", "work"]
    assert found["trust"] == {"questions": 3, "pairs": {"USA": 2, "CHN": 1, "NGA": 0}}
    assert found["religion"]["pairs"]["NGA"] == found["religion"]["questions"] == 1
    assert found["work"] == {"questions": 1, "pairs": {"USA": 0, "CHN": 0, "NGA": 0}}
