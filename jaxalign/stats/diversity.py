"""How varied answers are: within a country, between countries, and from item to item.

A model that is trained on its own most likely answers can lose variety in each of these ways while
its score, which looks at most likely answers alone, stays the same. Four numbers, of a model as of
people:

    spread       standard deviation of item means over countries, mean over items, in units of the
                 scale's length: do personas differ at all?
    options      options in use: exp(entropy) of an answer's distribution, mean over countries and
                 items. 1 where one option has everything, the number of options where all have the
                 same
    majority     share of the most likely option, mean over countries and items
    coupling     mean of |r| over pairs of items, r the correlation of their means over countries:
                 1 where countries differ in one way alone, however many items there are

`structure` compares a model's correlations of items with people's, pair by pair (Pearson). With few
countries every r is rough, and |r| is far above 0 by chance: with 6 countries about 0.37.

Letters: C country, Q item, O option.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxalign.stats.presentations import item_positions

_CONSTANT = 1e-9  # a standard deviation below which an item's means do not vary


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How varied answers are; None where it is not defined. See the module's text."""

    spread: float | None
    options: float | None
    majority: float | None
    coupling: float | None
    structure: float | None


def diversity(
    shares_CxQxO: np.ndarray, range_Q: np.ndarray, people_CxQxO: np.ndarray | None = None
) -> Diversity:
    """Measure how varied answers are.

    Args:
        shares_CxQxO: Distributions over options, 0 past an item's options, NaN for no answer.
        range_Q: The number of options less one.
        people_CxQxO: Those of the countries' people, for `structure`; default: there is none.

    Example:
        >>> both_agree = np.float32([[[0.5, 0.5]], [[0.5, 0.5]]])
        >>> found = diversity(both_agree, np.ones(1))
        >>> round(found.options, 6), found.majority, found.spread, found.coupling
        (2.0, 0.5, 0.0, None)
    """
    shares = np.asarray(shares_CxQxO, np.float64)
    known_CxQ = ~np.isnan(shares).any(axis=-1)
    if not known_CxQ.any():
        return Diversity(None, None, None, None, None)
    answered = shares[known_CxQ]
    logs = np.log(answered, out=np.zeros_like(answered), where=answered > 0)
    means_CxQ = item_positions(shares, range_Q)
    several_Q = known_CxQ.sum(axis=0) > 1
    spreads = np.array([values[~np.isnan(values)].std(ddof=1) for values in means_CxQ.T[several_Q]])
    own = _correlations(means_CxQ)
    pairs = own[np.triu_indices(len(own), k=1)]
    pairs = pairs[~np.isnan(pairs)]
    return Diversity(
        spread=float(spreads.mean()) if len(spreads) else None,
        options=float(np.exp(-(answered * logs).sum(axis=-1)).mean()),
        majority=float(answered.max(axis=-1).mean()),
        coupling=float(np.abs(pairs).mean()) if len(pairs) else None,
        structure=None if people_CxQxO is None else _structure(own, people_CxQxO, range_Q),
    )


def _correlations(means_CxQ: np.ndarray) -> np.ndarray:
    """Return the correlation of each two items over countries [Q, Q]; NaN of items that do not
    vary, or that not every country has an answer to."""
    deviations = means_CxQ - means_CxQ.mean(axis=0)
    lengths_Q = np.sqrt((deviations**2).sum(axis=0))
    varies_Q = lengths_Q > _CONSTANT  # false for NaN
    units = np.divide(
        deviations, lengths_Q, out=np.full(means_CxQ.shape, np.nan), where=varies_Q[None]
    )
    if len(means_CxQ) < 3:  # two points always lie on a line
        units[:] = np.nan
    return units.T @ units


def _structure(own_QxQ: np.ndarray, people_CxQxO: np.ndarray, range_Q: np.ndarray) -> float | None:
    """Return how alike the correlations of items are to people's."""
    theirs = _correlations(item_positions(people_CxQxO, range_Q))
    upper = np.triu_indices(len(own_QxQ), k=1)
    a, b = own_QxQ[upper], theirs[upper]
    both = ~np.isnan(a) & ~np.isnan(b)
    if both.sum() < 3 or min(a[both].std(), b[both].std()) < _CONSTANT:
        return None
    return float(np.corrcoef(a[both], b[both])[0, 1])
