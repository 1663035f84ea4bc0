"""Which answers of a country are worth training on: those that naming the country changes.

    crqpc   pairs of question and country whose culture-aware answer differs from the unaware one
            (culture-related question pair collection): by the answer itself, or by how far apart
            the two distributions are
    rds     as many pairs of each country, drawn at random
    cds     as many of those whose answers agree

Answers are positions of options, -1 for none; a pair needs both answers. Draws depend on the seed,
the country and the question alone, not on what else there is nor on its order.

Method: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971); divergences are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.stats.distances import (
    jensen_shannon_divergence,
    ordinal_wasserstein,
    total_variation,
)
from jaxalign.surveys.survey import Item
from jaxalign.training.conversations import held_out_questions

Divergence = Literal["jensen_shannon", "total_variation", "wasserstein"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question and a country's answer to it: the number that a respondent gives."""

    country: str
    item: str  # its id
    answer: int  # an option's code


@dataclasses.dataclass(frozen=True)
class Selection:
    """Pairs to train on, country by country. `missing[country]`: pairs wanted but not there."""

    pairs: tuple[Pair, ...]
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Pairs of each country that has any."""
        return dict(Counter(pair.country for pair in self.pairs))


def changed(unaware_xQ: np.ndarray, aware_xQ: np.ndarray) -> np.ndarray:
    """bool [..., Q]: both answered, and not alike. Leading dimensions broadcast."""
    return (unaware_xQ >= 0) & (aware_xQ >= 0) & (unaware_xQ != aware_xQ)


def divergence(
    unaware_QxO: np.ndarray,
    aware_CxQxO: np.ndarray,
    items: Sequence[Item],
    measure: Divergence = "jensen_shannon",
) -> np.ndarray:
    """How far apart two distributions are, float32 [C, Q] in [0, 1]; NaN where one is missing.

    jensen_shannon: in bits. wasserstein: in steps over the scale's length; total variation for
    nominal items, whose options have no distance. Raises UserError for another measure.
    """
    if measure not in get_args(Divergence):
        raise UserError(f"{measure!r} is no divergence; choose from {get_args(Divergence)}")
    unaware_CxQxO = np.broadcast_to(unaware_QxO[None], aware_CxQxO.shape)
    known_CxQ = ~np.isnan(unaware_CxQxO + aware_CxQxO).any(axis=-1)
    return np.where(known_CxQ, _apart(unaware_CxQxO, aware_CxQxO, items, measure), np.nan)


def _apart(
    p_CxQxO: np.ndarray, q_CxQxO: np.ndarray, items: Sequence[Item], measure: Divergence
) -> np.ndarray:
    if measure == "jensen_shannon":
        return np.asarray(jensen_shannon_divergence(p_CxQxO, q_CxQxO))
    apart_CxQ = np.asarray(total_variation(p_CxQxO, q_CxQxO))
    if measure == "total_variation":
        return apart_CxQ
    options = np.array([len(item.options) for item in items])
    valid_QxO = np.arange(p_CxQxO.shape[-1]) < options[:, None]
    steps_CxQ = np.asarray(ordinal_wasserstein(p_CxQxO, q_CxQxO, valid_QxO[None]))
    ordinal_Q = np.array([item.scale == "ordinal" for item in items])
    return np.where(ordinal_Q, steps_CxQ, apart_CxQ)


def diverged(divergence_CxQ: np.ndarray, threshold: float) -> np.ndarray:
    """bool [C, Q]: past the threshold. Raises UserError for one outside [0, 1)."""
    if not 0 <= threshold < 1:
        raise UserError(f"threshold {threshold} must be at least 0 and less than 1")
    return divergence_CxQ > threshold  # a missing answer is not


def crqpc(
    chosen_CxQ: np.ndarray, aware_CxQ: np.ndarray, countries: Sequence[str], items: Sequence[Item]
) -> Selection:
    """The pairs that `changed` or `diverged` marks, with the culture-aware answer."""
    chosen_CxQ = chosen_CxQ & (aware_CxQ >= 0)
    rows = _by_country(chosen_CxQ, aware_CxQ, countries, items)
    return Selection(tuple(pair for pairs in rows.values() for pair in pairs))


def rds(
    aware_CxQ: np.ndarray,
    countries: Sequence[str],
    items: Sequence[Item],
    sizes: Mapping[str, int],
    seed: int,
) -> Selection:
    """`sizes[country]` pairs of each country, drawn from all that it answered."""
    rows = _by_country(aware_CxQ >= 0, aware_CxQ, countries, items)
    return _sample(rows, sizes, f"rds {seed}")


def cds(
    unaware_xQ: np.ndarray,
    aware_CxQ: np.ndarray,
    countries: Sequence[str],
    items: Sequence[Item],
    sizes: Mapping[str, int],
    seed: int,
) -> Selection:
    """`sizes[country]` pairs of each country, drawn from those whose answer stayed the same."""
    same_CxQ = (aware_CxQ >= 0) & (aware_CxQ == unaware_xQ)
    rows = _by_country(same_CxQ, aware_CxQ, countries, items)
    return _sample(rows, sizes, f"cds {seed}")


def fraction(selection: Selection, share: float, seed: int) -> Selection:
    """`share` of each country's pairs, rounded to whole ones; smaller shares lie inside larger.

    Raises UserError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"fraction {share} must be more than 0 and at most 1")
    rows: dict[str, list[Pair]] = {}
    for pair in selection.pairs:
        rows.setdefault(pair.country, []).append(pair)
    sizes = {country: round(share * len(pairs)) for country, pairs in rows.items()}
    return _sample(rows, sizes, f"fraction {seed}")


def hold_out(selection: Selection, share: float, seed: int) -> tuple[Selection, Selection]:
    """(to train on, held out): `share` of the questions, rounded to whole ones, with all countries'
    answers to them, so that no question is on both sides.

    Raises UserError where a side would be empty.
    """
    apart = held_out_questions((pair.item for pair in selection.pairs), share, seed)
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in selection.pairs:
        sides[pair.item in apart].append(pair)
    return Selection(tuple(sides[0])), Selection(tuple(sides[1]))


def expected_noise(distribution_xO: np.ndarray) -> np.ndarray:
    """Probability that two answers drawn from a distribution differ: 1 - sum p squared, [...]."""
    return 1 - np.sum(np.square(distribution_xO), axis=-1)


def _by_country(
    chosen_CxQ: np.ndarray, aware_CxQ: np.ndarray, countries: Sequence[str], items: Sequence[Item]
) -> dict[str, list[Pair]]:
    """Chosen pairs in the order of the items."""
    return {
        country: [
            Pair(country, items[q].id, items[q].codes[int(aware_CxQ[c, q])])
            for q in np.flatnonzero(chosen_CxQ[c])
        ]
        for c, country in enumerate(countries)
    }


def _sample(rows: Mapping[str, Sequence[Pair]], sizes: Mapping[str, int], luck: str) -> Selection:
    """The luckiest pairs of each country, in the order they had."""
    pairs, missing = [], {}
    for country, all_of_it in rows.items():
        size = sizes.get(country, 0)
        if size > len(all_of_it):
            missing[country] = size - len(all_of_it)
        lucky = set(sorted(all_of_it, key=lambda pair: _luck(luck, pair))[:size])
        pairs += [pair for pair in all_of_it if pair in lucky]
    return Selection(tuple(pairs), missing)


def _luck(luck: str, pair: Pair) -> bytes:
    return hashlib.sha256(f"{luck}\n{pair.country}\n{pair.item}".encode()).digest()
