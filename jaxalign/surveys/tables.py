"""A survey as arrays, for everything that compares point answers with countries.

An answer is the position of the option chosen, 0 ... options − 1, as float32; NaN is "no answer".
Positions instead of codes make one rule of every coding: an item coded 0, 1, 2 and one coded
1, 2, 3 have the same distances, and differences of consecutive codes are differences of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Survey

LONG_SCALE = 10  # options from which an item counts as a ten-point one


@dataclasses.dataclass(frozen=True)
class Tables:
    """What countries C answered to items Q with at most O options; numpy arrays."""

    countries: tuple[str, ...]
    truth_CxQxO: np.ndarray  # float32 shares, 0 past an item's options, NaN where not asked
    gold_CxQ: np.ndarray  # float32 position of the most chosen option, NaN where not asked
    range_Q: np.ndarray  # float32, options − 1
    valid_QxO: np.ndarray  # bool, false past an item's options
    ordinal_Q: np.ndarray  # bool, the options have an order

    @property
    def long_Q(self) -> np.ndarray:
        """bool [Q]: items with ten options or more."""
        return self.range_Q >= LONG_SCALE - 1

    @property
    def asked_CxQ(self) -> np.ndarray:
        """bool [C, Q]: the country has an answer."""
        return ~np.isnan(self.gold_CxQ)

    def row(self, country: str) -> int:
        """Where `country` stands in C. Raises UserError if it does not."""
        if country not in self.countries:
            raise UserError(
                f"country {country!r} is not in the survey; it has {' '.join(self.countries)}"
            )
        return self.countries.index(country)


def option_table(instrument: Survey) -> tuple[np.ndarray, np.ndarray]:
    """`valid_QxO` bool and `codes_QxO` float32 (0 past an item's options), items in file order."""
    shape = len(instrument.items), max(len(item.options) for item in instrument.items)
    valid, codes = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for q, item in enumerate(instrument.items):
        if huge := [code for code in item.codes if abs(code) > 2**24]:
            raise UserError(
                f"instrument {instrument.name!r}: item {item.id} has code {str(huge[0])[:20]}...; "
                f"codes must lie within {2**24:,}, up to where float32 is exact"
            )
        valid[q, : len(item.codes)] = True
        codes[q, : len(item.codes)] = item.codes
    return valid, codes


def ordinal_items(instrument: Survey) -> np.ndarray:
    """bool [Q]: the items whose options have an order."""
    return np.array([item.scale == "ordinal" for item in instrument.items])


def make_tables(instrument: Survey, countries: Sequence[str] | None = None) -> Tables:
    """Arrays of `countries`, by default all that the instrument has, in its order.

    Raises UserError for an unknown country, and for a survey without any.
    """
    known = instrument.distributions
    chosen = tuple(known if countries is None else countries)
    if not chosen:
        raise UserError(f"instrument {instrument.name!r} says of no country how it answered")
    if unknown := [c for c in chosen if c not in known]:
        raise UserError(f"country {unknown[0]!r} is not in the survey; it has {' '.join(known)}")
    valid_QxO, _ = option_table(instrument)
    majorities = [instrument.majority(c) for c in chosen]
    gold = [[m.get(item.id, np.nan) for item in instrument.items] for m in majorities]
    return Tables(
        countries=chosen,
        truth_CxQxO=np.stack([instrument.truth_QxO(c) for c in chosen]),
        gold_CxQ=np.array(gold, np.float32),
        range_Q=(valid_QxO.sum(axis=-1) - 1).astype(np.float32),
        valid_QxO=valid_QxO,
        ordinal_Q=ordinal_items(instrument),
    )
