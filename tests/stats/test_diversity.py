"""Diversity of answers, against numpy's own correlations and cases that are known."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.stats.diversity import diversity


def some_shares(seed: int, countries: int = 5, items: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    options = random.integers(2, 5, items)
    shares = np.zeros((countries, items, 4))
    for q, count in enumerate(options):
        shares[:, q, :count] = random.dirichlet(np.ones(count), countries)
    return shares, options - 1


def test_numbers_are_those_of_numpy():
    shares, range_Q = some_shares(0)
    people, _ = some_shares(1)
    people[:, :, :] = np.where(shares > 0, people + 0.1, 0)
    people /= people.sum(axis=-1, keepdims=True)
    found = diversity(shares, range_Q, people)
    means, theirs = ((x * np.arange(4)).sum(-1) / range_Q for x in (shares, people))
    assert found.spread == pytest.approx(means.std(axis=0, ddof=1).mean())
    upper = np.triu_indices(6, k=1)
    own, human = (np.corrcoef(x.T)[upper] for x in (means, theirs))
    assert found.coupling == pytest.approx(np.abs(own).mean())
    assert found.structure == pytest.approx(np.corrcoef(own, human)[0, 1])
    assert found.majority == pytest.approx(shares.max(-1).mean())
    assert diversity(shares, range_Q, shares).structure == pytest.approx(1)


def test_hard_answers_use_one_option_and_personas_of_one_kind_move_together():
    shares, range_Q = some_shares(2)
    hard = (shares == shares.max(-1, keepdims=True)).astype(float)
    found = diversity(hard, range_Q)
    assert (found.options, found.majority) == (1, 1)
    # Two kinds of people in a mixture that differs by country: one dimension.
    weights = np.linspace(0, 1, 5)[:, None, None]
    mixed = diversity(weights * shares[:1] + (1 - weights) * shares[1:2], range_Q)
    assert mixed.coupling == pytest.approx(1)
    # What one country did not answer has no correlation, and spreads over the others.
    shares[0, 0] = np.nan
    assert diversity(shares, range_Q).spread > 0
    nothing = diversity(np.full((3, 2, 2), np.nan), np.ones(2))
    assert nothing.options is nothing.coupling is None
