"""The folder that CultureSPA was released with: questions and shares.

    FOLDER/wvs_questions.json                  [{"Q_id": "Q1", "question": "", "option_lst": []}]
          /proportions_group_by_country.json   {"USA": {"Q1": {"1": 0.89, ...}, ...}, ...}
          /country_similarity.json             {"USA": {"CAN": 71.3, ...}, ...}; not read
          /result/wvs_result_culture_*.json    replies, which `jaxalign.surveys.reply_files` reads

Method and data: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971), from World
Values Survey wave 7. The files come without a license and are never part of this repository.

A country's shares leave out those who gave no answer, so they sum to less than one. They are
renormalised here, which changes no majority answer. An item that a country was not asked has no
shares.

Where options tie, the majority answer is the one that the tables list first, as in the published
scores and similarities. In the released tables, that is not the first option of the scale for five
pairs of country and item.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, read_json, shown
from jaxalign.surveys.survey import Item, Survey

QUESTIONS = "wvs_questions.json"
SHARES = "proportions_group_by_country.json"

# The countries that the paper scores; the tables hold one more.
COUNTRIES = (
    "USA",
    "CAN",
    "BOL",
    "BRA",
    "GBR",
    "NLD",
    "DEU",
    "UKR",
    "CHN",
    "RUS",
    "IND",
    "THA",
    "KEN",
    "NGA",
    "ETH",
    "ZWE",
    "AUS",
    "NZL",
)

# First and last question of each topic. 234A replaces 223, which differs between countries.
TOPICS = (
    ("social values", 1, 45),
    ("well-being", 46, 56),
    ("trust and membership", 57, 105),
    ("economic values", 106, 111),
    ("corruption", 112, 120),
    ("migration", 121, 130),
    ("security", 131, 151),
    ("postmaterialism", 152, 157),
    ("science and technology", 158, 163),
    ("religious values", 164, 175),
    ("ethical values", 176, 198),
    ("political participation", 199, 234),
    ("political regimes", 235, 259),
)

# The options of these questions have no order. Questions with two options (7-17 and others) count
# as ordinal whatever they ask: there is only one step between two options.
NOMINAL = frozenset((111, 119, 130, *range(149, 158)))

# Questions whose codes are 0 ... options - 1; the codes of all others are 1 ... options.
FROM_ZERO = frozenset((*range(94, 106), 119, *range(122, 130), *range(241, 250)))

_HUGE = 1e6  # larger than any share or similarity
_ID = re.compile(r"Q([1-9][0-9]{0,2})(A?)")


@FORMATS.register("culturespa")
class CultureSPA(Format):
    """The World Values Survey as CultureSPA scores it."""

    def recognises(self, start: FileStart) -> bool:
        return (start.path / QUESTIONS).is_file() and (start.path / SHARES).is_file()

    def read(self, path: Path, countries: Sequence[str] = COUNTRIES) -> Survey:
        return read(path, countries)


def read(folder: Path, countries: Sequence[str] = COUNTRIES) -> Survey:
    """Read the scored items, in file order, and how `countries` answered them.

    The released folder has 259 scored items; the default is the paper's 18 countries.

    Raises:
        UserError: Something is wrong in one of the files, or the tables lack a country.
    """
    tables = _mapping(read_json(folder / SHARES), folder / SHARES, "countries")
    if lacking := [c for c in countries if c not in tables]:
        known = " ".join(map(str, tables))
        raise bad(folder / SHARES, f"no country {lacking[0]}; it has {known}")
    shares = {c: _mapping(tables[c], folder / SHARES, f"country {c}") for c in countries}
    asked = {i for answers in shares.values() for i in answers}
    items = _items(read_json(folder / QUESTIONS), folder / QUESTIONS, asked)
    by_id = {item.id: item for item in items}
    if unknown := sorted(asked - by_id.keys()):
        raise bad(folder / SHARES, f"item {unknown[0]} is not in {QUESTIONS}")
    distributions = {c: _country(folder / SHARES, c, shares[c], by_id) for c in countries}
    return Survey(
        name="World Values Survey 7, as CultureSPA scores it",
        version="wave 7",
        source="CultureSPA (Xu et al. 2025, arXiv 2410.12971), released data folder",
        wording="official",
        items=items,
        distributions=distributions,
        majorities=_majorities(distributions, shares, by_id),
    )


def topic(item_id: str) -> str:
    """Return the topic of an item, such as "migration" for "Q124"; "" outside all topics."""
    number = _number_of(item_id)
    return next((name for name, first, last in TOPICS if first <= number <= last), "")


def _number_of(item_id: str) -> int:
    """Return the number in an id: 124 for "Q124", 234 for "Q234A", 0 for anything else."""
    match = _ID.fullmatch(item_id)
    return int(match[1]) if match else 0


def _items(rows: Any, path: Path, asked: set[str]) -> tuple[Item, ...]:
    """Return the items in `asked`. The file also holds questions about the respondent, which are
    not scored."""
    if not isinstance(rows, list) or not rows:
        raise bad(path, "expected a list of questions")
    items = [_item(row, f"{path}: entry {n}") for n, row in enumerate(rows, start=1)]
    ids = [item.id for item in items if item is not None]
    if repeated := [i for i, count in Counter(ids).items() if count > 1]:
        raise bad(path, f"question {repeated[0]} appears twice")
    kept = tuple(item for item in items if item is not None and item.id in asked)
    if not kept:
        raise bad(path, f"none of its questions is in {SHARES}")
    return kept


def _item(row: Any, where: str) -> Item | None:
    """Return one question; None if it has fewer than two options and so cannot be scored."""
    if not isinstance(row, dict) or not isinstance(row.get("Q_id"), str):
        raise bad(where, "expected an object with a Q_id")
    where = f"{where} ({row['Q_id']})"
    options, text = row.get("option_lst"), row.get("question")
    if not isinstance(text, str) or not isinstance(options, list):
        raise bad(where, "expected a text 'question' and a list 'option_lst'")
    if not all(isinstance(option, str) for option in options):
        raise bad(where, "every option must be text")
    if len(options) < 2:
        return None
    number = _number_of(row["Q_id"])
    first = 0 if number in FROM_ZERO else 1
    try:
        return Item(
            id=row["Q_id"],
            text=text,
            options=tuple(options),
            codes=tuple(range(first, first + len(options))),
            scale="nominal" if number in NOMINAL else "ordinal",
            topic=topic(row["Q_id"]),
        )
    except UserError as error:
        raise bad(where, str(error)) from None


def _country(
    path: Path, country: str, answers: Mapping[str, Any], by_id: Mapping[str, Item]
) -> dict[str, tuple[float, ...]]:
    """Return shares in option order that sum to one; items without shares are left out."""
    out = {}
    for item_id, shares in answers.items():
        where = f"country {country}, item {item_id}"
        by_code = _mapping(shares, path, where, may_be_empty=True)
        if by_code:
            out[item_id] = _shares(by_code, by_id[item_id], path, where)
    if not out:
        raise bad(path, f"country {country} answered no item")
    return out


def _majorities(
    distributions: Mapping[str, Mapping[str, tuple[float, ...]]],
    tables: Mapping[str, Any],
    by_id: Mapping[str, Item],
) -> dict[str, dict[str, int]]:
    """Return the majority answers where the most chosen option that the table lists first is not
    the first one of the scale."""
    majorities: dict[str, dict[str, int]] = {}
    for country, answers in distributions.items():
        for item_id, shares in answers.items():
            by_code = tables[country][item_id]
            position = by_id[item_id].codes.index(int(max(by_code, key=by_code.get)))
            if position != shares.index(max(shares)):
                majorities.setdefault(country, {})[item_id] = position
    return majorities


def _shares(by_code: Mapping[str, Any], item: Item, path: Path, where: str) -> tuple[float, ...]:
    codes = [str(code) for code in item.codes]
    if unknown := [code for code in by_code if code not in codes]:
        raise bad(
            path, f"{where}: unknown code {shown(unknown[0])}; it has {codes[0]} to {codes[-1]}"
        )
    shares = [_number(by_code.get(code, 0.0), path, f"{where}, code {code}") for code in codes]
    total = sum(shares)
    if min(shares) < 0 or not 0 < total <= 1 + 1e-6:
        raise bad(path, f"{where}: shares sum to {total:g}, not to more than 0 and up to 1")
    return tuple(share / total for share in shares)


def _mapping(value: Any, path: Path, where: str, may_be_empty: bool = False) -> Mapping[str, Any]:
    if not isinstance(value, dict) or (not value and not may_be_empty):
        raise bad(path, f"{where}: expected an object with at least one entry")
    return value


def _number(value: Any, path: Path, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _HUGE:
        raise bad(path, f"{where}: expected a number, not {shown(value)}")
    return float(value)
