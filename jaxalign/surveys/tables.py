"""A survey as arrays, for comparing answers with those of countries or other groups.

An answer is the position of the chosen option, 0 ... options − 1, as float32; NaN means no answer.
Positions, unlike codes, do not depend on how a survey numbers its options: an item coded 0, 1, 2
and one coded 1, 2, 3 have the same distances between options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Survey

LONG_SCALE = 10  # number of options from which an item counts as a ten-point one


@dataclasses.dataclass(frozen=True)
class Tables:
    """How C countries, or other groups, answered Q items with at most O options.

    Attributes:
        countries: Codes of the countries, or names of the groups.
        truth_CxQxO: float32 shares of respondents, 0 past an item's options, NaN where a country
            was not asked.
        gold_CxQ: float32 position of the most chosen option, NaN where a country was not asked.
        range_Q: float32, the number of options less one.
        valid_QxO: bool, false past an item's options.
        ordinal_Q: bool, whether the options have an order.
    """

    countries: tuple[str, ...]
    truth_CxQxO: np.ndarray
    gold_CxQ: np.ndarray
    range_Q: np.ndarray
    valid_QxO: np.ndarray
    ordinal_Q: np.ndarray

    @property
    def long_Q(self) -> np.ndarray:
        """bool [Q]: whether an item has ten options or more."""
        return self.range_Q >= LONG_SCALE - 1

    @property
    def asked_CxQ(self) -> np.ndarray:
        """bool [C, Q]: whether the country answered the item."""
        return ~np.isnan(self.gold_CxQ)

    def row(self, country: str) -> int:
        """Return the position of `country` in C. Raise UserError if it is not there."""
        if country not in self.countries:
            raise UserError(
                f"country {country!r} is not in the survey; it has {' '.join(self.countries)}"
            )
        return self.countries.index(country)


def option_table(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Return which options each item has and what their codes are.

    Returns:
        `valid_QxO`, bool, and `codes_QxO`, float32, 0 past an item's options; items in the survey's
        order.

    Raises:
        UserError: A code is too large to be exact in float32.
    """
    shape = len(survey.items), max(len(item.options) for item in survey.items)
    valid, codes = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for q, item in enumerate(survey.items):
        if huge := [code for code in item.codes if abs(code) > 2**24]:
            raise UserError(
                f"survey {survey.name!r}: item {item.id} has code {str(huge[0])[:20]}...; "
                f"codes must lie between -{2**24:,} and {2**24:,}, where float32 is exact"
            )
        # Items are padded to the longest one; `valid` says which entries are real options.
        valid[q, : len(item.codes)] = True
        codes[q, : len(item.codes)] = item.codes
    return valid, codes


def ordinal_items(survey: Survey) -> np.ndarray:
    """Return bool [Q]: whether an item's options have an order."""
    return np.array([item.scale == "ordinal" for item in survey.items])


def make_tables(survey: Survey, countries: Sequence[str] | None = None) -> Tables:
    """Return the survey as arrays.

    Args:
        survey: A survey that says how groups answered.
        countries: The groups to include; default: all, in the survey's order.

    Raises:
        UserError: A country is not in the survey, or the survey has none at all.

    Examples:
        >>> from jaxalign.surveys import Item, Survey
        >>> from jaxalign.surveys.tables import make_tables
        >>> item = Item("q1", "Is tea better than coffee?", ("yes", "no"), (1, 2), "nominal")
        >>> shares = {"night owls": {"q1": (0.25, 0.75)}}
        >>> make_tables(Survey("drinks", "1", "made up", "official", (item,), shares)).gold_CxQ
        array([[1.]], dtype=float32)
    """
    known = survey.distributions
    chosen = tuple(known if countries is None else countries)
    if not chosen:
        raise UserError(f"survey {survey.name!r} does not say how any country answered")
    if unknown := [c for c in chosen if c not in known]:
        raise UserError(survey.why_absent(unknown[0]))
    valid_QxO, _ = option_table(survey)
    # A country's gold answer to an item is its majority answer; NaN where it was not asked.
    majorities = [survey.majority(c) for c in chosen]
    gold = [[m.get(item.id, np.nan) for item in survey.items] for m in majorities]
    return Tables(
        countries=chosen,
        truth_CxQxO=np.stack([survey.truth_QxO(c) for c in chosen]),
        gold_CxQ=np.array(gold, np.float32),
        # The distance between the ends of an item's scale, in options.
        range_Q=(valid_QxO.sum(axis=-1) - 1).astype(np.float32),
        valid_QxO=valid_QxO,
        ordinal_Q=ordinal_items(survey),
    )
