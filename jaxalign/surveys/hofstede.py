"""Published country scores on the six dimensions, by edition.

`data/hofstede.csv` holds figures only. Editions: `matrix2015` is the official dimension matrix of
2015 (Hofstede, Hofstede and Minkov); `hofstede_insights_2021_23` is what the country comparison of
Hofstede Insights showed in 2021-23; `culture_factor_2026_05` is what its successor, The Culture
Factor, showed in May 2026, with replaced IDV and LTO; `legacy_estimate_pre2021` is an older
estimate for Saudi Arabia alone. A blank is a score that was not published: it stays absent, and
nothing here fills it in.
"""

from __future__ import annotations

import csv
import difflib
import functools
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

from jaxalign.core.errors import UserError

DIMENSIONS = ("pdi", "idv", "mas", "uai", "lto", "ivr")
EDITIONS = (
    "matrix2015",
    "hofstede_insights_2021_23",
    "culture_factor_2026_05",
    "legacy_estimate_pre2021",
)
DEFAULT_EDITION = "hofstede_insights_2021_23"

# A name that the matrix abbreviates and no later edition spells out; and places of the World Values
# Survey's wave 7 that no edition has.
_SPELLED_OUT = {
    "KGZ": "Kyrgyzstan", "MAC": "Macao", "MDV": "Maldives", "MMR": "Myanmar", "NIC": "Nicaragua",
    "NIR": "Northern Ireland", "PSE": "Palestine", "TJK": "Tajikistan", "UZB": "Uzbekistan",
}  # fmt: skip


def country_scores(edition: str = DEFAULT_EDITION) -> dict[str, dict[str, float]]:
    """Published scores of every country of an edition: `{iso3: {dimension: score}}`.

    Scores are on the publisher's scale, about 0 to 100 (a few of `matrix2015` pass 100). A
    dimension that was not published is absent. Raises UserError for an unknown edition.
    """
    return {
        row["iso3"]: {d: float(row[d]) for d in DIMENSIONS if row[d]} for row in _edition(edition)
    }


def country_name(iso3: str) -> str:
    """The country's name in plain English, such as 'Saudi Arabia'. Raises UserError if unknown."""
    names = _names()
    if iso3 not in names:
        raise UserError(f"country {iso3!r} is unknown; {_suggestion(iso3, tuple(names))}")
    return names[iso3]


def targets(
    countries: Sequence[str],
    edition: str = DEFAULT_EDITION,
    dimensions: Sequence[str] = DIMENSIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """What the six scores of each country should become.

    Returns `target_Cx6`, float32 in the order of DIMENSIONS (NaN where the edition has no score,
    which only happens in a dimension left out), and `used_6`, bool: the dimensions asked for.
    Raises UserError for an unknown country, edition or dimension, and for a country that lacks one
    of `dimensions`.
    """
    used_6 = _used(dimensions)
    scores = country_scores(edition)
    for country in countries:
        if country not in scores:
            raise UserError(_unknown(country, edition, scores))
    lacking = {c: [d for d in dimensions if d not in scores[c]] for c in countries}
    if any(lacking.values()):
        raise UserError(_incomplete(lacking, edition, dimensions))
    rows = [[scores[c].get(d, np.nan) for d in DIMENSIONS] for c in countries]
    return np.array(rows, np.float32).reshape(len(rows), len(DIMENSIONS)), used_6


def _used(dimensions: Sequence[str]) -> np.ndarray:
    """bool [6]: which of DIMENSIONS are in `dimensions`."""
    if unknown := [d for d in dimensions if d not in DIMENSIONS]:
        raise UserError(f"dimension {unknown[0]!r} is unknown; choose from {', '.join(DIMENSIONS)}")
    if not dimensions:
        raise UserError(f"no dimensions left; choose from {', '.join(DIMENSIONS)}")
    return np.array([d in dimensions for d in DIMENSIONS])


def _unknown(country: str, edition: str, scores: Mapping[str, object]) -> str:
    """Why `country` has no target: another edition has it, or it is a slip or a name."""
    if elsewhere := [e for e in EDITIONS if country in country_scores(e)]:
        return f"country {country!r} is not in edition {edition!r}; it is in {', '.join(elsewhere)}"
    return f"country {country!r} is unknown; {_suggestion(country, tuple(scores))}"


def _suggestion(wanted: str, known: tuple[str, ...]) -> str:
    """The codes nearest to what was written, by code or by name; all codes where none is near."""
    spelled = {**{_names()[c].lower(): c for c in known}, **{c.lower(): c for c in known}}
    near = difflib.get_close_matches(wanted.lower(), spelled, n=3, cutoff=0.6)
    if near:
        found = dict.fromkeys(spelled[n] for n in near)
        return "did you mean " + " or ".join(f"{c} ({_names()[c]})" for c in found) + "?"
    return "use a three-letter code: " + " ".join(sorted(known))


def _incomplete(lacking: dict[str, list[str]], edition: str, dimensions: Sequence[str]) -> str:
    """Which scores are not published, and what else could be asked for."""
    lacking = {country: missing for country, missing in lacking.items() if missing}
    absent = {d for missing in lacking.values() for d in missing}
    ways = []
    if kept := [d for d in dimensions if d not in absent]:
        ways.append(f"leave them out with --dimensions {' '.join(kept)}")
    if complete := [
        e
        for e in EDITIONS
        if all(set(ms) <= country_scores(e).get(c, {}).keys() for c, ms in lacking.items())
    ]:
        ways.append(f"take them from edition {' or '.join(complete)}")
    named = "; ".join(f"{c} lacks {', '.join(missing)}" for c, missing in lacking.items())
    return f"edition {edition!r}: {named}; {', or '.join(ways) or 'leave the country out'}"


def _edition(edition: str) -> list[dict[str, str]]:
    """The edition's rows that stand for one country. Regions and language groups have no code."""
    if edition not in EDITIONS:
        raise UserError(f"edition {edition!r} is unknown; choose from {', '.join(EDITIONS)}")
    return [row for row in _rows() if row["edition"] == edition and row["iso3"]]


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    path = resources.files("jaxalign.surveys").joinpath("data/hofstede.csv")
    return tuple(csv.DictReader(path.read_text("utf-8").splitlines()))


@functools.cache
def _names() -> dict[str, str]:
    """Names by code. A later edition spells out what the matrix abbreviates ('U.S.A.')."""
    return {row["iso3"]: row["name"] for e in EDITIONS for row in _edition(e)} | _SPELLED_OUT
