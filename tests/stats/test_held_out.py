"""Held-out scores: pairing, intervals, and the permutation test against every assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxalign.stats.held_out import (
    held_out_record,
    item_interval,
    permutation_test,
    similarity_by_item,
)
from jaxalign.surveys.survey import Item, Survey


def survey() -> Survey:
    items = (
        Item("a", "First?", ("no", "so", "yes"), (1, 2, 3), topic="x"),
        Item("b", "Second?", ("no", "yes"), (0, 1), scale="nominal", topic="x"),
        Item("c", "Third?", ("no", "yes"), (1, 2), topic="y"),
    )
    answers = {
        "USA": {"a": (1.0, 0.0, 0.0), "b": (0.25, 0.75), "c": (0.4, 0.6)},
        "CHN": {"a": (0.0, 0.0, 1.0), "b": (0.75, 0.25)},
    }
    return Survey("test", "1", "ours", "paraphrase", items, answers)


def test_similarity_by_hand():
    with np.errstate(divide="ignore"):
        log_probs = np.log([[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.5, 0]]]).astype(np.float32)
    found = similarity_by_item(survey(), ("USA", "CHN"), log_probs)
    np.testing.assert_allclose(found[0, 0], [1, 1, 0.9], atol=1e-6)  # the USA's own, c off by 0.1
    np.testing.assert_allclose(found[0, 1], [0, 0.5, np.nan], atol=1e-6)  # CHN was not asked c


def test_permutation_test_counts_every_assignment():
    matrix = np.array([[0.9, 0.5, 0.4], [0.5, 0.8, 0.6], [0.3, 0.7, 0.6]])
    found = permutation_test(matrix, seed=0)
    means = [np.mean([matrix[i, p[i]] for i in range(3)]) for p in itertools.permutations(range(3))]
    assert found["own"] == pytest.approx(means[0])
    assert found["p_value"] == pytest.approx(np.mean(np.array(means) >= means[0] - 1e-9))
    assert found["assignments"] == 6
    assert found["others"] == pytest.approx((0.5 + 0.4 + 0.5 + 0.6 + 0.3 + 0.7) / 6)


def test_permutation_test_of_equal_scores_shows_nothing():
    assert permutation_test(np.full((4, 4), 0.7), seed=0)["p_value"] == 1.0


def test_permutation_test_of_many_countries_is_sampled():
    found = permutation_test(np.eye(12), seed=0)
    assert found["assignments"] == 10_000
    assert not found["exhaustive"]
    assert found["p_value"] == pytest.approx(1e-4), "only the true assignment reaches the diagonal"


def test_record_pairs_items_and_averages_the_others():
    random = np.random.default_rng(0)
    similarity = {
        n: random.random((3, 3, 40)) for n in ("naive", "persona", "icl", "start", "tuned")
    }
    record = held_out_record(similarity, ("A", "B", "C"), "B", seed=0)
    others = (similarity["tuned"][0, 1] + similarity["tuned"][2, 1]) / 2
    assert record["permuted"]["mean"] == pytest.approx(others.mean(), abs=1e-6)
    gain = similarity["tuned"][1, 1] - similarity["naive"][1, 1]
    assert record["after_minus_before"]["mean"] == pytest.approx(gain.mean(), abs=1e-6)
    assert record["after_minus_before"]["low"] < gain.mean() < record["after_minus_before"]["high"]


def test_a_country_alone_has_nobody_to_be_permuted_with():
    similarity = {n: np.full((1, 1, 5), 0.5) for n in ("naive", "persona", "icl", "start", "tuned")}
    assert held_out_record(similarity, ("A",), "A", seed=0)["permuted"] is None
    assert item_interval(np.full(3, np.nan), 0) is None
    assert permutation_test(np.ones((1, 1)), 0)["others"] is None
