"""Published scores of countries, or of any other groups, on Hofstede's six dimensions.

Scores come in editions. Those that ship with the package are in `data/hofstede.csv`, which holds
figures only:

    matrix2015                  the official dimension matrix (Hofstede, Hofstede, Minkov) as of
                                2015-08-16; six scores exceed 100
    matrix2015_12               the same as of 2015-12-08, with scores from 0 to 100: it differs in
                                GRC, GTM, MYS, PRT, SVK and URY
    hofstede_insights_2021_23   what the country comparison of Hofstede Insights showed in 2021-23
    culture_factor_2026_05      what its successor, The Culture Factor, showed in May 2026, with
                                replaced IDV and LTO. KWT and TUN alone differ from the edition
                                before it in PDI, MAS and UAI as well; that one marks their scores
                                as estimates. We could not check these figures a second time
    legacy_estimate_pre2021     an older estimate, for Saudi Arabia alone

An edition can also be a CSV file of your own, with the columns `group` (any name), `name` (how a
persona line calls the group; optional) and pdi, idv, mas, uai, lto, ivr (those that you have):

    group,name,pdi,idv,mas,uai,lto,ivr
    night-owls,people who work at night,35,80,40,30,45,70

A blank is a score that was not published. It stays absent and is never filled in.
"""

from __future__ import annotations

import csv
import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import bad, read_table, shown
from jaxalign.surveys.names import countries, name_of_group, suggest

DIMENSIONS = ("pdi", "idv", "mas", "uai", "lto", "ivr")
EDITIONS = (
    "matrix2015",
    "matrix2015_12",
    "hofstede_insights_2021_23",
    "culture_factor_2026_05",
    "legacy_estimate_pre2021",
)
# What the matrix of 2015-12-08 changed in that of 2015-08-16. Which countries differ is known; the
# new figures are those of the Hofstede Insights edition, since the file itself was not available.
_BASE_EDITION = {"matrix2015_12": "matrix2015"}
_CHANGES = {
    "matrix2015_12": {
        "GRC": {"uai": "100"},
        "GTM": {"uai": "98"},
        "MYS": {"pdi": "100"},
        "PRT": {"uai": "99"},
        "SVK": {"pdi": "100", "mas": "100"},
        "URY": {"uai": "98"},
    }
}
DEFAULT_EDITION = "hofstede_insights_2021_23"

Scores = dict[str, float]  # by dimension


def country_scores(country: str, edition: str | Path = DEFAULT_EDITION) -> Scores:
    """Return the published scores of one country or other group.

    Args:
        country: ISO 3166 alpha-3 code, or the name of a group in a file of your own.
        edition: Name of an edition, or the path of a CSV file; see `jaxalign.surveys.hofstede`.

    Returns:
        Scores by dimension ("pdi", "idv", "mas", "uai", "lto", "ivr") on the publisher's scale,
        about 0 to 100 (a few of `matrix2015` exceed 100). A dimension that was not published is
        absent.

    Raises:
        UserError: The country or the edition is unknown, or something is wrong with the file.

    Examples:
        >>> from jaxalign.surveys import country_scores
        >>> country_scores("USA")
        {'pdi': 40.0, 'idv': 91.0, 'mas': 62.0, 'uai': 46.0, 'lto': 26.0, 'ivr': 68.0}
        >>> country_scores("SAU", edition="matrix2015")
        {'lto': 36.0, 'ivr': 52.0}
    """
    scores = edition_scores(edition)
    if country not in scores:
        raise UserError(_unknown(country, edition, scores))
    return scores[country]


def edition_scores(edition: str | Path = DEFAULT_EDITION) -> dict[str, Scores]:
    """Return the published scores of every country or group of an edition.

    Args:
        edition: As for `country_scores`.

    Returns:
        `{group: {dimension: score}}`, as `country_scores` has them.

    Raises:
        UserError: The edition is unknown, or something is wrong with the file.

    Examples:
        >>> from jaxalign.surveys.hofstede import edition_scores
        >>> sorted(edition_scores("legacy_estimate_pre2021"))
        ['SAU']
    """
    if is_score_file(edition):
        return {group: dict(scores) for group, (_, scores) in _read_scores(Path(edition)).items()}
    return {
        row["iso3"]: {d: float(row[d]) for d in DIMENSIONS if row[d]} for row in _edition(edition)
    }


def name_in_edition(
    group: str, edition: str | Path = DEFAULT_EDITION, groups: Collection[str] = ()
) -> str:
    """Return the name of a country or other group in English, such as "Saudi Arabia".

    Args:
        group: ISO 3166 alpha-3 code, or the name of another group.
        edition: As for `country_scores`. A file of your own may give a name for each group; a
            group without one is called by its `group`.
        groups: Groups that a file names, such as the keys of a survey's `distributions`: one that
            is not a known country is called by its own name.

    Raises:
        UserError: Nothing says what the group is called.

    Examples:
        >>> from jaxalign.surveys.hofstede import name_in_edition
        >>> name_in_edition("SAU")
        'Saudi Arabia'
        >>> name_in_edition("night owls", groups=["night owls"])
        'night owls'
    """
    own = _read_scores(Path(edition)) if is_score_file(edition) else {}
    if group in own and own[group][0]:
        return own[group][0]
    if group not in countries() and (group in own or group in groups):
        return group
    return name_of_group(group)


def targets(
    countries: Sequence[str],
    edition: str | Path = DEFAULT_EDITION,
    dimensions: Sequence[str] = DIMENSIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores that each country's six scores should become.

    Args:
        countries: Countries or other groups that the edition has.
        edition: As for `country_scores`.
        dimensions: The dimensions that count.

    Returns:
        `target_Cx6`, float32 in the order of `DIMENSIONS`, NaN where the edition has no score
        (only in dimensions that do not count); and `used_6`, bool: the dimensions that count.

    Raises:
        UserError: A country, the edition or a dimension is unknown, or a country lacks one of
            `dimensions`.

    Examples:
        >>> from jaxalign.surveys.hofstede import targets
        >>> target_Cx6, used_6 = targets(["USA", "CHN"], dimensions=["pdi", "idv"])
        >>> target_Cx6[:, used_6]
        array([[40., 91.],
               [80., 20.]], dtype=float32)
    """
    used_6 = _used(dimensions)
    # Refuse what is unknown or missing before any array is made.
    scores = edition_scores(edition)
    for country in countries:
        if country not in scores:
            raise UserError(_unknown(country, edition, scores))
    lacking = {c: [d for d in dimensions if d not in scores[c]] for c in countries}
    if any(lacking.values()):
        raise UserError(_incomplete(lacking, edition, dimensions))
    # Every dimension has a column, also those that do not count, so that scores line up with them.
    rows = [[scores[c].get(d, np.nan) for d in DIMENSIONS] for c in countries]
    return np.array(rows, np.float32).reshape(len(rows), len(DIMENSIONS)), used_6


def is_score_file(edition: str | Path) -> bool:
    """Return whether `edition` is a file of the user's own, not the name of an edition."""
    if isinstance(edition, Path):
        return True
    looks_like_path = edition.lower().endswith(".csv") or os.sep in edition
    return edition not in EDITIONS and (looks_like_path or os.path.isfile(edition))


def _used(dimensions: Sequence[str]) -> np.ndarray:
    """Return bool [6]: which of DIMENSIONS are in `dimensions`."""
    if unknown := [d for d in dimensions if d not in DIMENSIONS]:
        raise UserError(f"dimension {unknown[0]!r} is unknown; choose from {', '.join(DIMENSIONS)}")
    if not dimensions:
        raise UserError(f"no dimensions left; choose from {', '.join(DIMENSIONS)}")
    return np.array([d in dimensions for d in DIMENSIONS])


# -- messages -------------------------------------------------------------------------------------


def _unknown(country: str, edition: str | Path, scores: Mapping[str, object]) -> str:
    """Return why `country` has no scores: another edition has it, or it is misspelt."""
    if is_score_file(edition):
        return f"country {country!r} is not in {edition}; it has {', '.join(scores)}"
    if others := [e for e in EDITIONS if country in edition_scores(e)]:
        return f"country {country!r} is not in edition {edition!r}; it is in {', '.join(others)}"
    return f"country {country!r} is unknown; {_suggestion(country, scores)}"


def _suggestion(wanted: str, known: Collection[str]) -> str:
    """Return the codes nearest to `wanted`, by code or by name; all codes if none is near."""
    if near := suggest(wanted, known):
        return f"did you mean {near}?"
    return (
        "use a three-letter code, or give other groups' scores in a CSV as `edition`: "
        + " ".join(sorted(known))
    )


def _incomplete(
    lacking: dict[str, list[str]], edition: str | Path, dimensions: Sequence[str]
) -> str:
    """Return which scores are missing, and what else could be asked for."""
    lacking = {country: missing for country, missing in lacking.items() if missing}
    absent = {d for missing in lacking.values() for d in missing}
    ways = []
    if kept := [d for d in dimensions if d not in absent]:
        ways.append(f"leave them out with `dimensions` {' '.join(kept)}")
    # Only editions that have all missing scores of all these countries help.
    if complete := [
        e
        for e in EDITIONS
        if all(set(ms) <= edition_scores(e).get(c, {}).keys() for c, ms in lacking.items())
    ]:
        ways.append(f"take them from edition {' or '.join(complete)}")
    named = "; ".join(f"{c} lacks {', '.join(missing)}" for c, missing in lacking.items())
    return f"edition {str(edition)!r}: {named}; {', or '.join(ways) or 'leave the country out'}"


# -- files ----------------------------------------------------------------------------------------


def _edition(edition: str | Path) -> list[dict[str, str]]:
    """Return the rows of an edition that are about one country; regions have no code."""
    if edition not in EDITIONS:
        raise UserError(
            f"edition {str(edition)!r} is unknown; choose from {', '.join(EDITIONS)}, or give a "
            "CSV file with the columns group, name and the dimensions"
        )
    base, changes = _BASE_EDITION.get(edition, edition), _CHANGES.get(edition, {})
    rows = [row for row in _rows() if row["edition"] == base and row["iso3"]]
    return [row | changes.get(row["iso3"], {}) for row in rows]


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    path = resources.files("jaxalign.surveys").joinpath("data/hofstede.csv")
    return tuple(csv.DictReader(path.read_text("utf-8").splitlines()))


def _read_scores(path: Path) -> dict[str, tuple[str, Scores]]:
    """Return the name ("" if there is none) and the scores of each group in the user's file."""
    groups: dict[str, tuple[str, Scores]] = {}
    row_of: dict[str, int] = {}
    for row, cells in read_table(path, ["group"], others=["name", *DIMENSIONS]).rows:
        group = cells["group"].strip()
        if not group:
            raise bad(path, "the cell is empty", row, "group")
        if group in row_of:
            message = f"{shown(group)} is in row {row_of[group]} already"
            raise bad(path, message, row, "group")
        row_of[group] = row
        scores = {}
        for dimension in DIMENSIONS:
            if text := (cells.get(dimension) or "").strip():
                scores[dimension] = _number(text)
                if not math.isfinite(scores[dimension]):
                    raise bad(path, f"{shown(text)} is not a number", row, dimension)
        groups[group] = (cells.get("name") or "").strip(), scores
    return groups


def _number(text: str) -> float:
    """Return the number that `text` spells, NaN if it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
