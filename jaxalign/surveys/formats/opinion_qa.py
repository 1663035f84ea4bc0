"""GlobalOpinionQA (Durmus et al. 2023, arXiv 2306.16388), from the user's CSV.

Columns: question; selections, a printed `defaultdict(<class 'list'>, {'Belgium': [0.21, ...]})` of
each country's shares; options, a printed list; source, GAS or WVS. The printed values are parsed as
literals and never evaluated.

The options often end in "DK/Refused", and nothing says whether the others have an order, so all
items are nominal and never enter an ordinal metric. Shares are rounded in the file; they are scaled
here to sum to 1. A country is named by its ISO 3166 alpha-3 code where the printed name is known,
otherwise as printed (such as "China (Non-national sample)").
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, read_table, shown
from jaxalign.surveys.hofstede import EDITIONS, edition_scores
from jaxalign.surveys.names import country_name
from jaxalign.surveys.survey import Item, Survey

COLUMNS = ("question", "selections", "options", "source")
_PRINTED = re.compile(r"\s*(?:defaultdict\(<class '\w+'>,\s*(\{.*\})\)|(\{.*\}))\s*", re.DOTALL)
_MOST_CHARACTERS = 200_000  # in a cell; 100 countries and 20 options take about 40,000
_LEAST_SUM, _MOST_SUM = 0.5, 1.05  # shares left out (refusals) lower a sum, rounding raises it
# Names that the file prints and no edition of the published scores uses.
_ALIASES = {
    "Britain": "GBR",
    "Czech Rep.": "CZE",
    "Czechia": "CZE",
    "Great Britain": "GBR",
    "Hong Kong SAR": "HKG",
    "Iran": "IRN",
    "Macau SAR": "MAC",
    "Palest. ter.": "PSE",
    "Puerto Rico": "PRI",
    "Russia": "RUS",
    "S. Africa": "ZAF",
    "S. Korea": "KOR",
    "Slovakia": "SVK",
    "South Africa": "ZAF",
    "South Korea": "KOR",
    "Taiwan ROC": "TWN",
    "Turkey": "TUR",
    "United Kingdom": "GBR",
    "United States": "USA",
    "Venezuela": "VEN",
    "Vietnam": "VNM",
}


@FORMATS.register("opinion-qa")
class OpinionQA(Format):
    """GlobalOpinionQA's questions with the answers of each country."""

    def recognises(self, start: FileStart) -> bool:
        return start.has_columns(*COLUMNS)

    def read(self, path: Path, skip_disagreeing: bool = False) -> Survey:
        return read_opinion_qa(path, skip_disagreeing)


def read_opinion_qa(path: Path | str, skip_disagreeing: bool = False) -> Survey:
    """Read the questions and how each country answered them.

    Args:
        path: The CSV file.
        skip_disagreeing: Leave out questions whose options and selections disagree.

    Returns:
        A survey whose items are named "q1", "q2" and so on by their row.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    codes = _codes_by_name()
    items: list[Item] = []
    distributions: dict[str, dict[str, tuple[float, ...]]] = {}
    first_row: dict[tuple[str, ...], int] = {}
    for number, (row, cells) in enumerate(read_table(path, COLUMNS).rows, 1):
        key = tuple(cells[name] for name in COLUMNS)
        if key in first_row:
            raise bad(path, f"the same as row {first_row[key]}; is the file joined to itself?", row)
        first_row[key] = row
        try:
            item = _item(path, row, f"q{number}", cells)
            answers = _answers(path, row, item, cells["selections"], codes)
        except UserError:
            if not skip_disagreeing:
                raise
            continue
        items.append(item)
        for country, shares in answers.items():
            distributions.setdefault(country, {})[item.id] = shares
    if not items:
        raise bad(path, "no question has options and selections that agree")
    source = "GlobalOpinionQA (arXiv 2306.16388), the user's own file"
    return Survey("GlobalOpinionQA", "1", source, "official", tuple(items), distributions)


def _item(path: Path, row: int, id: str, cells: dict[str, str]) -> Item:
    options = _literal(path, row, "options", cells["options"])
    if not isinstance(options, list | tuple):
        raise bad(path, f"{shown(options)} is not a list", row, "options")
    labels = tuple(str(option).strip() for option in options)
    if len(set(labels)) != len(labels):
        raise bad(path, f"options repeat: {shown(labels)}", row, "options")
    try:
        codes = tuple(range(1, len(labels) + 1))
        cells["question"].encode()
        "".join(labels).encode()  # a literal also spells lone surrogates
        return Item(id, cells["question"], labels, codes, "nominal", cells["source"])
    except (UserError, UnicodeEncodeError) as error:
        raise bad(path, str(error), row) from None


def _answers(
    path: Path, row: int, item: Item, text: str, codes: dict[str, str]
) -> dict[str, tuple[float, ...]]:
    """Return shares by country. A country whose shares are all zero was not asked."""
    printed = _PRINTED.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if printed is None:
        message = f"{shown(text)} is not a printed dictionary of country: shares"
        raise bad(path, message, row, "selections")
    selections = _literal(path, row, "selections", printed[1] or printed[2])
    if not isinstance(selections, dict):
        raise bad(path, f"{shown(selections)} is not a dictionary", row, "selections")
    answers: dict[str, tuple[float, ...]] = {}
    for country, shares in selections.items():
        if (normal := _shares(path, row, item, country, shares)) is not None:
            code = codes.get(country, country)
            answers[country if code in answers else code] = normal
    return answers


def _shares(
    path: Path, row: int, item: Item, country: Any, shares: Any
) -> tuple[float, ...] | None:
    where = (row, "selections")
    if not isinstance(country, str) or not country.isprintable() or not country.strip():
        raise bad(path, f"{shown(country)} is not the name of a country", *where)
    if not isinstance(shares, list | tuple) or len(shares) != len(item.options):
        many = len(shares) if isinstance(shares, list | tuple) else shown(shares)
        message = f"{many} shares of {country} for {len(item.options)} options; correct the row, "
        raise bad(path, message + "delete it or set `skip_disagreeing`", *where)
    if not all(type(s) in (int, float) and 0 <= s <= 1e6 for s in shares):
        raise bad(path, f"shares of {country} are not numbers from 0: {shown(shares)}", *where)
    total = math.fsum(shares)
    if total == 0:
        return None
    if not (_LEAST_SUM <= total <= _MOST_SUM or 100 * _LEAST_SUM <= total <= 100 * _MOST_SUM):
        raise bad(path, f"shares of {country} sum to {total:g}, neither about 1 nor 100", *where)
    return tuple(share / total for share in shares)


def _literal(path: Path, row: int, column: str, text: str) -> Any:
    """Return the value that `text` prints: numbers, text, lists and dictionaries only."""
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"{len(text)} characters")
        with warnings.catch_warnings():  # the parser warns about odd escapes in a text
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise bad(path, f"{shown(text)} is not a printed list or dictionary", row, column) from None


def _codes_by_name() -> dict[str, str]:
    """Return the alpha-3 code of each country whose printed name is known."""
    codes = sorted({code for edition in EDITIONS for code in edition_scores(edition)})
    return {country_name(code): code for code in codes} | _ALIASES
