"""What the cells of a World Values Survey file mean, however a program spelled them.

The same table looks different after R ("NA"), Stata (".", ".a"), pandas ("nan") or a spreadsheet
(decimal commas, codes as 4.0) has saved it. Readers hand over each column as its distinct values
and which of them each row has, so that every spelling is interpreted once and not once a cell.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import bad, shown

MOST_CODES = 64  # codes 0...63; the longest scale has 11, lists of parties or years have far more
MISSING = -1

COUNTRY, WEIGHT, INTERVIEW, VERSION = "B_COUNTRY_ALPHA", "W_WEIGHT", "D_INTERVIEW", "version"

# Columns that only other files of the same people have.
OTHER_EDITIONS = {
    "S002VS": "the time series of all waves, whose items have other names",
    "S002EVS": "the trend file of the European Values Study, whose items have other names",
    "cntry_AN": "the joint file of EVS and WVS, whose items have other names",
}

# How programs write that there is no value; Stata has 26 more missing values, .a to .z.
_MISSING = frozenset(
    ("", ".", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "#null!", "none", "missing")
)
_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]{1,3})?")

Value = str | float | None
Rows = int | np.ndarray
"""Which rows of the file some cells are in: the first of consecutive ones, or int [R]."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """One column of R consecutive rows: row r has `values[index_R[r]]`."""

    values: Sequence[Value]
    index_R: np.ndarray

    def row_of(self, value: int, rows: Rows) -> int:
        """Return the row of the file in which the value at a position of `values` comes first."""
        first = int(np.argmax(self.index_R == value))
        return rows + first if isinstance(rows, int) else int(rows[first])


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some columns of consecutive rows; `first_row` counts from the header, which is row 1."""

    first_row: int
    columns: Mapping[str, Cells]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).index_R)


class SurveyFile(Protocol):
    """A file whose columns are known and whose respondents can be read.

    Attributes:
        path: The file.
        columns: Names as the file spells them.
        version: The first respondent's `version` cell, "" if there is none.
    """

    path: Path
    columns: tuple[str, ...]
    version: str

    def chunks(self, names: Sequence[str]) -> Iterator[Chunk]:
        """Yield some columns, a few thousand respondents at a time."""
        ...

    def labels(self, column: str) -> Mapping[float, str]:
        """Return what the file calls the codes of a column; empty if it does not say."""
        ...

    def hashes(self, rows: set[int]) -> dict[int, int]:
        """Return a hash of the whole of each of some rows."""
        ...


def is_blank(cells: Cells) -> np.ndarray:
    """Return bool [R]: which rows have no value in a column."""
    blank = [v is None or (isinstance(v, str) and not v.strip()) for v in cells.values]
    return np.array(blank, bool)[cells.index_R]


def number_of(value: Value) -> float:
    """Return a cell's number, NaN for a missing value. Raise ValueError for anything else."""
    if value is None or not isinstance(value, str):
        return math.nan if value is None else float(value)
    text = _trimmed(value)
    if _is_missing(text):
        return math.nan
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text.replace(",", "."))


def _is_missing(text: str) -> bool:
    return text.lower() in _MISSING or (len(text) == 2 and text[0] == "." and text[1].isalpha())


@functools.lru_cache(maxsize=4096)
def code_of(value: Value) -> int:
    """Return a cell as a code, `MISSING` for a negative or missing one.

    Raises:
        ValueError: It is no number, not whole, or `MOST_CODES` or more.
    """
    number = number_of(value)
    if not number >= 0:  # NaN too
        return MISSING
    if number != math.floor(number) or number >= MOST_CODES:
        raise ValueError(value)
    return int(number)


def codes(path: Path, cells: Cells, rows: Rows, column: str) -> np.ndarray:
    """Return int16 [R]. Raise UserError, which names the row, for what is no code."""
    used = _used(cells)
    out = np.full(len(cells.values), MISSING, np.int16)
    for i, value in enumerate(cells.values):
        try:
            out[i] = code_of(value)
        except (ValueError, OverflowError):
            if i in used:
                message = f"{_spelled(value)} is not a code: {_hint(value)}"
                raise bad(path, message, cells.row_of(i, rows), column) from None
    return out[cells.index_R]


def numbers(path: Path, cells: Cells, rows: Rows, column: str) -> np.ndarray:
    """Return float64 [R], NaN where missing. Raise UserError, which names the row, for a text."""
    used = _used(cells)
    out = np.full(len(cells.values), np.nan)
    for i, value in enumerate(cells.values):
        try:
            out[i] = number_of(value)
        except ValueError:
            if i in used:
                message = f"{_spelled(value)} is not a number"
                raise bad(path, message, cells.row_of(i, rows), column) from None
    return out[cells.index_R]


def countries_of(path: Path, cells: Cells, rows: Rows) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the distinct countries, and int [R]: each row's position among them.

    Raises:
        UserError: A cell is no country code; the message names the row.
    """
    used = _used(cells)
    index: dict[str, int] = {}
    position = np.zeros(len(cells.values), np.int64)
    for i, value in enumerate(cells.values):
        if i in used:
            name = "" if value is None else _trimmed(str(value))
            check_country(path, name, cells.row_of(i, rows))
            position[i] = index.setdefault(name, len(index))
    return tuple(index), position[cells.index_R]


def interviews(cells: Cells) -> np.ndarray:
    """Return int64 [R]: a hash of each interview's number, which some files write as text."""
    return np.array([hash(v) for v in cells.values], np.int64)[cells.index_R]


def take(cells: Cells, rows: np.ndarray) -> Cells:
    """Return some of the rows of a column."""
    return Cells(cells.values, cells.index_R[rows])


def _used(cells: Cells) -> set[int]:
    """Return the positions of the values that any row has: a column's dictionary may hold more."""
    return set(np.unique(cells.index_R).tolist())


def _trimmed(text: str) -> str:
    return text.strip(" \"'\t\r\n\xa0")


def _hint(value: Value) -> str:
    whole = f"codes are whole numbers below {MOST_CODES}"
    letters = isinstance(value, str) and any(c.isalpha() for c in value)
    return f"{whole}; save the file with codes, not with their labels" if letters else whole


def _spelled(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(_trimmed(str(value)))


def check_country(path: Path, country: str, row: int) -> None:
    """Raise UserError for what is not an alpha-3 code, such as a second header in joined files.

    The survey's own files always have such codes; other surveys may name groups as they like.
    """
    if country.upper() == COUNTRY:
        message = "the header is repeated; were files joined? Give one file"
        raise bad(path, message, row, COUNTRY)
    if not (len(country) == 3 and country.isascii() and country.isalpha() and country.isupper()):
        message = f"{shown(country)} is not a country code of three capital letters"
        raise bad(path, message, row, COUNTRY)


def columns_in_file(columns: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return how the file spells each of the columns wanted that it has.

    A column in another case counts (Stata and databases write all names in lower case) unless the
    exact name is there as well.
    """
    exact = {name.strip(): name for name in reversed(columns)}
    folded = {name.strip().lower(): name for name in reversed(columns)}
    found = {name: exact.get(name) or folded.get(name.lower()) for name in wanted}
    return {name: column for name, column in found.items() if column is not None}


def check_columns(path: Path, columns: Sequence[str], items: Sequence[str]) -> None:
    """Raise UserError for an edition that cannot be used, and for a column that is absent."""
    if any(re.match(rf"{COUNTRY}\s*:", c, re.IGNORECASE) for c in columns):
        raise excel_edition(path)
    names = {name.strip().lower() for name in columns}
    for mark, edition in OTHER_EDITIONS.items():
        if mark.lower() in names:
            raise bad(path, f"this is {edition}; download wave 7 of the World Values Survey itself")
    if inverted := [c for c in columns if re.fullmatch(r"Q\d{1,3}P", c, re.IGNORECASE)]:
        raise bad(
            path,
            f"this is the inverted edition ({len(inverted)} recoded columns such as "
            f"{inverted[0]!r} run the other way); download the edition without 'inverted'",
        )
    found = columns_in_file(columns, (COUNTRY, WEIGHT, *items))
    if WEIGHT not in found and (old := [c for c in columns if re.fullmatch(r"[Vv]\d{1,3}", c)]):
        message = f"columns such as {old[0]!r} are those of an earlier wave; download wave 7"
        raise bad(path, message)
    for name in (COUNTRY, WEIGHT, *items):
        if name not in found:
            hint = "every respondent needs a weight" if name == WEIGHT else "leave it out"
            if name == COUNTRY:
                hint = "is this wave 7 of the World Values Survey?"
            raise bad(path, f"the column is absent ({len(columns)} columns); {hint}", column=name)


def excel_edition(path: Path) -> UserError:
    """Return the error to raise for the survey's Excel edition, as a workbook or saved as CSV."""
    return bad(
        path,
        "this is the survey's Excel edition, whose cells hold labels and not codes; download the "
        "CSV, SPSS or Stata edition of the same version",
    )
