"""GlobalOpinionQA (Durmus et al. 2023, arXiv 2306.16388), from the user's file.

CSV as published, JSON, JSON lines or parquet. Columns: question; selections, a printed
`defaultdict(<class 'list'>, {'Belgium': [0.21, ...]})` of each country's shares; options, a printed
list; source, GAS or WVS. The printed values are parsed as literals and never evaluated; JSON and
parquet may hold the dictionary and the list themselves.

The options often end in "DK/Refused", and nothing says whether the others have an order, so all
items are nominal and never enter an ordinal metric. "Missing; Unknown" and the like are no answers
and are left out of the options. Shares are rounded in the file; they are scaled here to sum to 1.

A country is named by its ISO 3166 alpha-3 code where the printed name is known, otherwise as
printed. Of the samples of one country, the national one counts as the country, the current before
the old; others keep their printed names, such as "China (Non-national sample)".

A row that cannot be used (without a text, or with shares that do not fit the options) is left out.
The survey's `notes` name these rows, and say which samples were taken.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, shown
from jaxalign.surveys.formats.records import as_text, columns_of, read_records
from jaxalign.surveys.names import find_country
from jaxalign.surveys.survey import Item, Survey

COLUMNS = ("question", "selections", "options", "source")
_PRINTED = re.compile(r"\s*(?:defaultdict\(<class '\w+'>,\s*(\{.*\})\)|(\{.*\}))\s*", re.DOTALL)
_MOST_CHARACTERS = 200_000  # in a cell; 100 countries and 20 options take about 40,000
_LEAST_SUM, _MOST_SUM = 0.5, 1.05  # shares left out (refusals) lower a sum, rounding raises it
# What the file prints for answers that nobody gave.
_NO_ANSWER = re.compile(
    r"(missing\b.*|not asked\b.*|no answer|not applicable.*|not available|unknown|inap.*|n/?a)",
    re.IGNORECASE,
)
_SAMPLE = re.compile(r"(?P<country>.*?)\s*\((?P<sample>[^()]*\bsample)\)", re.IGNORECASE)
# Printed after a country's name, in the order in which they count as the country.
_NATIONAL = ("", "current national sample", "national sample", "old national sample")
_MOST_NAMED = 12  # rows or countries that a note lists
# Names that neither the table of countries nor Unicode's has.
_ALIASES = {
    "Bosnia Herzegovina": "BIH",
    "Britain": "GBR",
    "Burma": "MMR",
    "Czech Rep.": "CZE",
    "Czech Republic": "CZE",
    "Great Britain": "GBR",
    "Hong Kong SAR": "HKG",
    "Ivory Coast": "CIV",
    "Macau SAR": "MAC",
    "Macau": "MAC",
    "Macedonia": "MKD",
    "Palest. ter.": "PSE",
    "Palestinian territories": "PSE",
    "Russian Federation": "RUS",
    "S. Africa": "ZAF",
    "S. Korea": "KOR",
    "Slovak Republic": "SVK",
    "Swaziland": "SWZ",
    "Taiwan ROC": "TWN",
    "Turkey": "TUR",
    "U.K.": "GBR",
    "U.S.": "USA",
    "UK": "GBR",
    "US": "USA",
    "Viet Nam": "VNM",
}


@FORMATS.register("opinion-qa")
class OpinionQA(Format):
    """GlobalOpinionQA's questions with the answers of each country."""

    def recognises(self, start: FileStart) -> bool:
        return set(COLUMNS) <= set(columns_of(start))

    def read(self, path: Path) -> Survey:
        return read_opinion_qa(path)


def read_opinion_qa(path: Path | str) -> Survey:
    """Read the questions and how each country answered them.

    Args:
        path: The file.

    Returns:
        A survey whose items are named "q1", "q2" and so on by their row, without the rows that
        cannot be used, which its `notes` name.

    Raises:
        UserError: The file is no such table, or none of its rows can be used; the message names row
            and column.
    """
    path = Path(path)
    items: list[Item] = []
    distributions: dict[str, dict[str, tuple[float, ...]]] = {}
    first_row: dict[tuple[str, ...], int] = {}
    unusable: list[UserError] = []
    taken: dict[str, Counter[str]] = {}
    rows = read_records(path, COLUMNS)
    for number, (row, values) in enumerate(rows, 1):
        cells = values | {name: as_text(values[name]) for name in ("question", "source")}
        key = tuple(repr(cells[name]) for name in COLUMNS)
        try:
            if key in first_row:
                raise bad(path, f"the same as row {first_row[key]}", row)
            first_row[key] = row
            item, kept = _item(path, row, f"q{number}", cells)
            answers = _answers(path, row, kept, cells["selections"])
        except UserError as error:
            unusable.append(error)
            continue
        items.append(item)
        for country, (name, shares) in answers.items():
            distributions.setdefault(country, {})[item.id] = shares
            taken.setdefault(country, Counter())[name] += 1
    if not items:
        raise unusable[0]
    source = "GlobalOpinionQA (arXiv 2306.16388), the user's own file"
    notes = (*_unusable_rows(path, unusable, len(rows)), *_samples(taken))
    return Survey(
        "GlobalOpinionQA", "1", source, "official", tuple(items), distributions, notes=notes
    )


def _unusable_rows(path: Path, errors: Sequence[UserError], rows: int) -> list[str]:
    if not errors:
        return []
    named = [str(error).removeprefix(f"{path}, ") for error in errors[:_MOST_NAMED]]
    more = len(errors) - len(named)
    if more:
        named.append(f"and {more} more")
    return [f"left out {len(errors)} of {rows} rows: {'; '.join(named)}"]


def _samples(taken: Mapping[str, Counter[str]]) -> list[str]:
    """Return a note on the countries for which a sample stands, with its number of questions."""
    named = []
    for country, names in taken.items():
        samples = {name: n for name, n in names.items() if _SAMPLE.fullmatch(name)}
        if samples and country not in names:
            counts = [f"{name}: {n}" for name, n in names.items()]
            named.append(f"{country} ({', '.join(counts)})")
    return (
        [f"samples that stand for their country, by questions: {', '.join(named)}"] if named else []
    )


def _item(path: Path, row: int, id: str, cells: dict[str, Any]) -> tuple[Item, list[bool]]:
    """Return the item, and which of the printed options are its options."""
    options = cells["options"]
    if not isinstance(options, list):
        options = _literal(path, row, "options", as_text(options))
    if not isinstance(options, list | tuple):
        raise bad(path, f"{shown(options)} is not a list", row, "options")
    labels = [_label(option) for option in options]
    kept = [not _NO_ANSWER.fullmatch(label) for label in labels]
    labels = [label for label, keep in zip(labels, kept, strict=True) if keep]
    if len(set(labels)) != len(labels):
        raise bad(path, f"options repeat: {shown(labels)}", row, "options")
    if not cells["question"].strip():
        raise bad(path, "the cell is empty", row, "question")
    try:
        codes = tuple(range(1, len(labels) + 1))
        cells["question"].encode()
        "".join(labels).encode()  # a literal also spells lone surrogates
        question, topic = cells["question"], cells["source"]
        return Item(id, question, tuple(labels), codes, "nominal", topic), kept
    except (UserError, UnicodeEncodeError) as error:
        raise bad(path, str(error), row) from None


def _label(option: Any) -> str:
    """Return an option as people read it: 1.0 is 1."""
    whole = isinstance(option, float) and option.is_integer()
    return str(int(option) if whole else option).strip()


def _answers(
    path: Path, row: int, kept: Sequence[bool], selections: Any
) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Return, by country, the printed name and the shares of the options that are kept.

    A country whose shares are all zero was not asked.
    """
    if not isinstance(selections, dict):
        selections = _printed_dictionary(path, row, as_text(selections))
    # Parquet has a null for every country that another row names.
    selections = {name: shares for name, shares in selections.items() if shares is not None}
    found: dict[str, tuple[float, ...]] = {}
    for country, shares in selections.items():
        if (normal := _shares(path, row, kept, country, shares)) is not None:
            found[country] = normal
    answers: dict[str, tuple[str, tuple[float, ...]]] = {}
    for name in sorted(found, key=_preference):
        code = _country(name)
        answers[name if code in answers else code] = (name, found[name])
    return answers


def _printed_dictionary(path: Path, row: int, text: str) -> dict[Any, Any]:
    """Return the dictionary in a cell as Python prints it."""
    printed = _PRINTED.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if printed is None:
        message = f"{shown(text)} is not a printed dictionary of country: shares"
        raise bad(path, message, row, "selections")
    selections = _literal(path, row, "selections", printed[1] or printed[2])
    if not isinstance(selections, dict):
        raise bad(path, f"{shown(selections)} is not a dictionary", row, "selections")
    return selections


def _preference(name: str) -> int:
    """Return how early a printed name may take its country's code: a plain name first."""
    match = _SAMPLE.fullmatch(name)
    sample = match["sample"].lower() if match else ""
    return _NATIONAL.index(sample) if sample in _NATIONAL else len(_NATIONAL)


@functools.lru_cache(maxsize=1024)
def _country(name: str) -> str:
    """Return the alpha-3 code of a country, or of the country of a national sample; or `name`."""
    match = _SAMPLE.fullmatch(name)
    if match and match["sample"].lower() not in _NATIONAL:
        return name
    plain = match["country"].strip() if match else name.strip()
    return _ALIASES.get(plain) or find_country(plain) or name


def _shares(
    path: Path, row: int, kept: Sequence[bool], country: Any, shares: Any
) -> tuple[float, ...] | None:
    """Return shares of the options that are kept; None if nobody chose any of them."""
    where = (row, "selections")
    if not isinstance(country, str) or not country.isprintable() or not country.strip():
        raise bad(path, f"{shown(country)} is not the name of a country", *where)
    if not isinstance(shares, list | tuple) or len(shares) != len(kept):
        many = len(shares) if isinstance(shares, list | tuple) else shown(shares)
        raise bad(path, f"{many} shares of {country} for {len(kept)} options", *where)
    if not all(type(s) in (int, float) and 0 <= s <= 1e6 for s in shares):
        raise bad(path, f"shares of {country} are not numbers from 0: {shown(shares)}", *where)
    total = math.fsum(shares)
    if total == 0:
        return None
    if not (_LEAST_SUM <= total <= _MOST_SUM or 100 * _LEAST_SUM <= total <= 100 * _MOST_SUM):
        raise bad(path, f"shares of {country} sum to {total:g}, neither about 1 nor 100", *where)
    answered = [share for share, keep in zip(shares, kept, strict=True) if keep]
    total = math.fsum(answered)
    return tuple(share / total for share in answered) if total else None


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
