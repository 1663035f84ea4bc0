"""World Values Survey wave 7 (versions 5 and 6; .csv, .sav, .dta).

The files may not be redistributed, so none is shipped: download one from the survey's site and
give its path. These columns are read: B_COUNTRY_ALPHA (three letters), W_WEIGHT, the items asked
for and, if there is one, D_INTERVIEW, by which an interview that is there twice is refused.
Negative codes (-1 to -5), empty cells and declared missing values are dropped, and the remaining
weighted shares of a country and item sum to 1. A country has no distribution for an item with
fewer than `min_respondents` answers.

The survey's wording may not be redistributed either. To have it, give a survey as `wording` whose
items are named as the columns are (Q1, Q234A). Then a code that it does not list is refused, and
shares come in its order. Without it, an item's text is its name, and its options are the codes seen
in the file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats import wvs_csv, wvs_stat
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.culturespa import NOMINAL, topic
from jaxalign.surveys.formats.files import FileStart, bad, sha256_of_file
from jaxalign.surveys.formats.wvs_tally import (
    MOST_CODES,
    Block,
    Tally,
    cache_name,
    count,
    default_cache_folder,
    load_tally,
    save_tally,
)
from jaxalign.surveys.survey import Item, Survey

MIN_RESPONDENTS = 50
SUFFIXES = (".csv", ".sav", ".dta")

# The 259 items with a scale: 223 asks for a party, and those after 259 are about the respondent.
ITEMS = (*(f"Q{i}" for i in range(1, 260) if i != 223), "Q234A")


@FORMATS.register("wvs")
class WorldValuesSurvey(Format):
    """The answers of each respondent, counted by country."""

    def recognises(self, start: FileStart) -> bool:
        if start.suffix in (".sav", ".dta"):
            return not start.path.is_dir()
        return start.has_columns("B_COUNTRY_ALPHA")

    def read(self, path: Path, **options: Any) -> Survey:
        return read_wvs(path, **options)


def read_wvs(
    path: Path | str,
    wording: Survey | None = None,
    items: Sequence[str] | None = None,
    countries: Sequence[str] | None = None,
    min_respondents: int = MIN_RESPONDENTS,
    drop_unknown_codes: bool = False,
    cache_folder: Path | None = None,
    use_cache: bool = True,
) -> Survey:
    """Read how each country answered.

    The counts are cached under the hash of the file and of these settings, so that a second
    reading takes no longer than hashing the file.

    Args:
        path: The .csv, .sav or .dta file.
        wording: A survey with the items' wording and codes, named as the file's columns.
        items: Columns to read; default: all items of `wording`, else those of ITEMS that the file
            has.
        countries: Alpha-3 codes of the countries to read; default: all.
        min_respondents: Fewest answers from which a country's distribution is taken.
        drop_unknown_codes: Treat codes that `wording` does not list as missing, not as an error.
        cache_folder: Where counts are cached; default: the user's cache folder.
        use_cache: Whether to read and write the cache at all.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    if min_respondents < 1:
        raise bad(path, f"min_respondents={min_respondents}; at least 1")
    wanted = _wanted(path, wording, items)
    allowed = [
        item.codes if item and not drop_unknown_codes else range(MOST_CODES)
        for item in wanted.values()
    ]
    tally = _tally(path, tuple(wanted), allowed, cache_folder, use_cache)
    kept = _countries(path, tally, countries)
    return _survey(path, tally, wanted, kept, min_respondents, wording)


def _wanted(
    path: Path, wording: Survey | None, items: Sequence[str] | None
) -> dict[str, Item | None]:
    """Return the items to read by column, with their wording if there is any."""
    by_id = {item.id: item for item in wording.items} if wording else {}
    names = tuple(items) if items is not None else tuple(by_id) or _items_in_file(path)
    if wording and (unknown := [name for name in names if name not in by_id]):
        raise bad(path, f"item {unknown[0]!r} is not in survey {wording.name!r}")
    if not names:
        raise bad(path, "no items asked for; leave `items` out to read all")
    for item in by_id.values():
        if item.id in names and not all(0 <= code < MOST_CODES for code in item.codes):
            codes = list(item.codes)
            raise bad(
                path, f"codes {codes} of item {item.id!r} are not within 0...{MOST_CODES - 1}"
            )
    return {name: by_id.get(name) for name in dict.fromkeys(names)}


def _items_in_file(path: Path) -> tuple[str, ...]:
    """Return those of ITEMS that the file has."""
    columns = _columns(path)
    _check_columns(path, columns, ())
    present = tuple(name for name in ITEMS if name in set(columns))
    if not present:
        raise bad(path, f"none of the items Q1 ... Q259 is among the {len(columns)} columns")
    return present


def _columns(path: Path) -> tuple[str, ...]:
    if path.suffix.lower() not in SUFFIXES:
        message = f"file type {path.suffix!r}; the survey comes as {', '.join(SUFFIXES)}"
        raise bad(path, message)
    if path.suffix.lower() == ".csv":
        return wvs_csv.read_header(path).columns
    return wvs_stat.read_columns(path)


def _tally(
    path: Path,
    items: tuple[str, ...],
    allowed: Sequence[Sequence[int]],
    cache_folder: Path | None,
    use_cache: bool,
) -> Tally:
    """Return the file's counts, from the cache if it has them."""
    settings = [[name, list(codes)] for name, codes in zip(items, allowed, strict=True)]
    cached = None
    if use_cache:
        name = cache_name(sha256_of_file(path), path.suffix.lower(), settings)
        cached = (cache_folder or default_cache_folder()) / name
        if (tally := load_tally(cached)) is not None:
            return tally
    version, blocks = _open(path, items)
    tally = count(path, blocks, items, allowed, version)
    if cached is not None:
        save_tally(cached, tally)
    return tally


def _open(path: Path, items: Sequence[str]) -> tuple[str, Iterator[Block]]:
    """Check a file's columns; return its version and its respondents."""
    columns = _columns(path)
    _check_columns(path, columns, items)
    if path.suffix.lower() == ".csv":
        header = wvs_csv.read_header(path)
        return _version(path, header.version), wvs_csv.iter_blocks(path, header, items)
    version = wvs_stat.read_version(path, columns)
    return _version(path, version), wvs_stat.iter_blocks(path, columns, items)


def _check_columns(path: Path, columns: Sequence[str], items: Sequence[str]) -> None:
    if inverted := [c for c in columns if re.fullmatch(r"Q\d{1,3}P", c)]:
        raise bad(
            path,
            f"this is the inverted edition ({len(inverted)} recoded columns such as "
            f"{inverted[0]!r} run the other way); download the edition without 'inverted'",
        )
    for name in ("B_COUNTRY_ALPHA", "W_WEIGHT", *items):
        if name not in columns:
            hint = "every respondent needs a weight" if name == "W_WEIGHT" else "leave it out"
            if name == "B_COUNTRY_ALPHA":
                hint = "is this wave 7 of the World Values Survey?"
            raise bad(path, f"the column is absent ({len(columns)} columns); {hint}", column=name)


def _version(path: Path, cell: str) -> str:
    """Return the version, such as "6-0": from the column `version`, else from the file's name."""
    for text, pattern in ((cell, r"(\d+)[-._](\d+)"), (path.stem, r"v(\d+)[-._](\d+)")):
        if match := re.search(pattern, text):
            return f"{match[1]}-{match[2]}"
    return "unknown"


def _countries(path: Path, tally: Tally, wanted: Sequence[str] | None) -> tuple[str, ...]:
    for country in wanted or ():
        if country in tally.countries:
            continue
        if country == "IND" and tally.version.startswith("5"):
            raise bad(path, "version 5 of wave 7 has no respondents in IND; download version 6")
        known = " ".join(tally.countries)
        raise bad(path, f"no respondents in {country!r}; the file has {known}")
    return tally.countries if wanted is None else tuple(dict.fromkeys(wanted))


def _survey(
    path: Path,
    tally: Tally,
    wanted: dict[str, Item | None],
    countries: Sequence[str],
    min_respondents: int,
    wording: Survey | None,
) -> Survey:
    # Without wording, the codes that anybody gave are an item's options.
    seen_QxK = tally.respondents_CxQxK.any(axis=0)
    items = [
        item or _plain_item(name, np.flatnonzero(seen_QxK[q]).tolist())
        for q, (name, item) in enumerate(wanted.items())
    ]
    kept = [(q, item) for q, item in enumerate(items) if item is not None]
    if not kept:
        raise bad(path, "no item has answers with two different codes")
    distributions = {
        country: shares
        for country in countries
        if (shares := _shares(tally, tally.countries.index(country), kept, min_respondents))
    }
    if not distributions:
        few = f"no country has {min_respondents} answers to any item"
        raise bad(path, f"{few}; give a file with more respondents, or lower `min_respondents`")
    kept_items = tuple(item for _, item in kept)
    if wording is not None:
        return dataclasses.replace(
            wording,
            items=kept_items,
            distributions=distributions,
            majorities={},
            simulated=False,
        )
    return Survey(
        "World Values Survey 7",
        tally.version,
        "World Values Survey wave 7, the user's own file; items without their wording",
        "paraphrase",
        kept_items,
        distributions,
    )


def _plain_item(name: str, codes: list[int]) -> Item | None:
    """Return an item without wording; None if fewer than two different codes were given."""
    if len(codes) < 2:
        return None
    number = re.fullmatch(r"Q(\d+)", name)
    scale = "nominal" if number and int(number[1]) in NOMINAL else "ordinal"
    return Item(name, name, tuple(map(str, codes)), tuple(codes), scale, topic(name))


def _shares(
    tally: Tally, c: int, items: Sequence[tuple[int, Item]], min_respondents: int
) -> dict[str, tuple[float, ...]]:
    """Return the weighted shares of one country by item, in the order of the item's options."""
    # Codes that an item does not have (and those dropped as unknown) do not count.
    asked_QxK = np.zeros(tally.weight_CxQxK.shape[1:], bool)
    for q, item in items:
        asked_QxK[q, list(item.codes)] = True
    weight_QxK = np.where(asked_QxK, tally.weight_CxQxK[c], 0)
    # Shares are of those who gave a valid code; an item that too few answered has none.
    total_Qx1 = weight_QxK.sum(axis=1, keepdims=True)
    answers_Q = np.where(asked_QxK, tally.respondents_CxQxK[c], 0).sum(axis=1)
    enough_Q = ((answers_Q >= min_respondents) & (total_Qx1[:, 0] > 0)).tolist()
    shares_QxK = (weight_QxK / np.where(total_Qx1 > 0, total_Qx1, 1)).tolist()
    return {
        item.id: tuple([shares_QxK[q][code] for code in item.codes])
        for q, item in items
        if enough_Q[q]
    }
