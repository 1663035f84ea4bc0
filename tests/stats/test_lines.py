"""Lines that need no model, by hand and by drawing."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.stats.lines import (
    LINE_NAMES,
    line_shares,
    loss_lines,
    respondent_draws,
    shares_at,
    similarity_lines,
    uninformed_lines,
)
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import make_tables


def survey() -> Survey:
    items = (
        Item("a", "First?", ("no", "so", "yes"), (1, 2, 3)),
        Item("b", "Second?", ("no", "yes"), (0, 1), scale="nominal"),
    )
    answers = {
        "X": {"a": (0.5, 0.3, 0.2), "b": (0.25, 0.75)},
        "Y": {"a": (0.1, 0.1, 0.8), "b": (0.75, 0.25)},
        "Z": {"a": (0.3, 0.3, 0.4)},
    }
    return Survey("test", "1", "ours", "paraphrase", items, answers)


def test_the_shares_of_each_line_by_hand():
    lines = line_shares(make_tables(survey()))
    np.testing.assert_allclose(lines["uniform"][0], [[1 / 3] * 3, [0.5, 0.5, 0]])
    np.testing.assert_allclose(lines["midpoint"][0], [[0, 1, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(
        lines["mean_of_others"][0], [[0.2, 0.2, 0.6], [0.75, 0.25, 0]], atol=1e-7
    )
    np.testing.assert_allclose(lines["own_mean"][0, 0], [0.3, 0.7, 0], atol=1e-6)
    assert np.isnan(lines["own_mean"][2, 1]).all(), "Z was not asked b"
    alone = line_shares(make_tables(survey(), ["X"]))
    assert np.isnan(alone["mean_of_others"]).all()


def test_similarities_by_hand_and_a_respondent_by_drawing():
    tables = make_tables(survey())
    found = similarity_lines(tables)
    assert set(found) == set(LINE_NAMES)
    # X's item a against uniform: cumulated shares differ by 0.5 - 1/3 and 0.8 - 2/3, of 2 steps.
    assert found["uniform"][0, 0] == pytest.approx(1 - (1 / 6 + 2 / 15) / 2)
    assert found["uniform"][0, 1] == pytest.approx(0.75), "total variation, as it has no order"
    assert np.isnan(found["uniform"][2, 1])
    drawn = respondent_draws(tables, 20_000)
    assert (drawn[:, 2, 1] == -1).all()
    for q, options in ((0, 3), (1, 2)):
        shares = np.bincount(drawn[:, 0, q], minlength=options) / len(drawn)
        np.testing.assert_allclose(shares, tables.truth_CxQxO[0, q, :options], atol=0.02)
    # Similarity of one person to X, averaged over many.
    truth = np.cumsum([0.5, 0.3, 0.2])[:2]
    each = [1 - np.abs((np.arange(2) >= p) - truth).sum() / 2 for p in drawn[:, 0, 0]]
    assert found["random_respondent"][0, 0] == pytest.approx(np.mean(each), abs=0.01)


def test_losses_of_the_lines():
    tables = make_tables(survey(), ["X", "Y"])

    def loss(log_probs_BxQxO: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Return how far the mean of item a is from the group's."""
        mean_B = (np.exp(log_probs_BxQxO)[:, 0] * np.arange(3)).sum(axis=-1)
        return np.abs(mean_B - np.array([0.7, 1.7])[group_B])

    found = loss_lines(loss, tables, ["Y", "X"][::-1], draws=5_000)
    np.testing.assert_allclose(found["uniform"], [0.3, 0.7], atol=1e-6)
    np.testing.assert_allclose(found["mean_of_others"], [1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(found["own_mean"], 0, atol=1e-6)
    expected = 0.5 * 0.7 + 0.3 * 0.3 + 0.2 * 1.3
    assert found["random_respondent"][0] == pytest.approx(expected, abs=0.02)
    plain = uninformed_lines(loss, survey(), 2)
    np.testing.assert_allclose(plain["midpoint"], [0.3, 0.7], atol=1e-6)
    assert set(plain) == {"uniform", "midpoint"}


def test_a_position_between_two_options_is_shared():
    np.testing.assert_allclose(shares_at(np.array([0.25, 2.0]), 3), [[0.75, 0.25, 0], [0, 0, 1]])
    assert np.isnan(shares_at(np.array([np.nan]), 3)).all()
