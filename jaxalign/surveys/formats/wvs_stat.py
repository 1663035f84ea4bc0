"""World Values Survey 7 as .sav (SPSS) or .dta (Stata), read a few thousand respondents at a time.

The usual .sav is read with numpy (`sav_file`). Other .sav files and .dta need pyreadstat, which the
extra `survey` installs. pandas is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats import sav_file
from jaxalign.surveys.formats.files import bad, read_bytes, shown
from jaxalign.surveys.formats.wvs_csv import check_country
from jaxalign.surveys.formats.wvs_tally import MISSING, MOST_CODES, Block

# pyreadstat starts each chunk at the beginning of the file and skips, so more chunks cost time. It
# holds a chunk as Python objects of 32 bytes a cell, so larger chunks cost memory.
CHUNK_ROWS = 8192
Cells = dict[str, Any]  # by column: the cells of some consecutive rows


def read_columns(path: Path) -> tuple[str, ...]:
    """Return the names of the file's columns."""
    if (dictionary := _sav_dictionary(path)) is not None:
        return tuple(dictionary.variables)
    # A damaged .dta may have columns without a name.
    return tuple(str(name) for name in _read(path, metadataonly=True)[1].column_names)


def read_version(path: Path, columns: Sequence[str]) -> str:
    """Return the first respondent's `version` cell; "" if there is none."""
    if "version" not in columns:
        return ""
    chunks, _ = _chunks(path, ["version"], chunk_rows=1)
    cell = next(iter(next(chunks, {}).get("version", [])), "")
    return _text(cell)


def iter_blocks(
    path: Path, columns: Sequence[str], items: Sequence[str], chunk_rows: int = CHUNK_ROWS
) -> Iterator[Block]:
    """Yield the respondents of the file. Rows are numbered from 2, as if the header were row 1."""
    extra = ["D_INTERVIEW"] if "D_INTERVIEW" in columns else []
    chunks, announced = _chunks(path, ["B_COUNTRY_ALPHA", "W_WEIGHT", *extra, *items], chunk_rows)
    done = 0
    for cells in chunks:
        if rows := len(cells["W_WEIGHT"]):
            yield _block(path, cells, items, done + 2)
            done += rows
    if announced is not None and done != announced:
        message = f"{done} respondents where the file announces {announced}; is it cut short?"
        raise bad(path, message)


def _chunks(
    path: Path, names: Sequence[str], chunk_rows: int
) -> tuple[Iterator[Cells], int | None]:
    """Return chunks of the columns, and how many rows the file says it has (None: unknown)."""
    dictionary = _sav_dictionary(path)
    if dictionary is None:
        return _read_chunks(path, names, chunk_rows), _read(path, metadataonly=True)[1].number_rows
    block_bytes = max(4096, min(sav_file.BLOCK_BYTES, chunk_rows * dictionary.elements))
    return _sav_chunks(path, dictionary, names, block_bytes), dictionary.rows


def _sav_dictionary(path: Path) -> sav_file.Dictionary | None:
    """Return the dictionary of a .sav; None for other files and for what pyreadstat must read."""
    if path.suffix.lower() != ".sav":
        return None
    try:
        return sav_file.read_dictionary(path)
    except (sav_file.SavError, OSError):
        return None


def _sav_chunks(
    path: Path, dictionary: sav_file.Dictionary, names: Sequence[str], block_bytes: int
) -> Iterator[Cells]:
    try:
        yield from sav_file.iter_columns(path, dictionary, names, block_bytes)
    except sav_file.SavError as error:
        raise bad(path, f"not readable as .sav ({error}); download it again") from None


def _read_chunks(path: Path, names: Sequence[str], chunk_rows: int) -> Iterator[Cells]:
    done, rows = 0, chunk_rows
    announced = _read(path, metadataonly=True)[1].number_rows
    while rows == chunk_rows and done != announced:
        cells, _ = _read(path, usecols=list(names), row_offset=done, row_limit=chunk_rows)
        rows = len(cells.get(names[0], ()))
        if rows:
            yield cells
        done += rows


def _block(path: Path, cells: Cells, items: Sequence[str], row: int) -> Block:
    index: dict[Any, int] = {}
    countries = list(cells["B_COUNTRY_ALPHA"])
    country_R = np.array([index.setdefault(cell, len(index)) for cell in countries])
    for cell in index:
        check_country(path, _text(cell), row + countries.index(cell))
    codes = [_codes(path, cells[name], row, name) for name in items]
    interviews = None
    if "D_INTERVIEW" in cells:
        interviews = _numbers(path, cells["D_INTERVIEW"], row, "D_INTERVIEW")
    weights = _numbers(path, cells["W_WEIGHT"], row, "W_WEIGHT")
    names = tuple(_text(cell) for cell in index)
    return Block(row, names, country_R, weights, np.stack(codes, axis=1), interviews)


def _text(cell: Any) -> str:
    return (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)).strip()


def _numbers(path: Path, cells: Any, row: int, column: str) -> np.ndarray:
    """Return float64 [R], NaN for a missing cell. Raise UserError for a column of text."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "S":
        cells = [_text(cell) for cell in cells.tolist()]
    try:
        return np.array(cells, np.float64)
    except (TypeError, ValueError):
        i, cell = next((i, c) for i, c in enumerate(cells) if not isinstance(c, int | float))
        raise bad(path, f"{shown(cell)} is not a number", row + i, column) from None


def _codes(path: Path, cells: Any, row: int, column: str) -> np.ndarray:
    """Return int16 [R]: MISSING for negative codes and for what the file declares missing."""
    numbers = _numbers(path, cells, row, column)
    missing = ~(numbers >= 0)
    codes = np.where(missing, MISSING, numbers)
    if wrong := np.flatnonzero((codes != np.floor(codes)) | (codes >= MOST_CODES)).tolist():
        number = numbers[wrong[0]]
        message = f"{number:g} is not a code: codes are whole numbers below {MOST_CODES}"
        raise bad(path, message, row + wrong[0], column)
    return codes.astype(np.int16)


def _read(path: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Read a file with pyreadstat. Raise its errors as UserErrors of one line."""
    pyreadstat = _pyreadstat(path)
    reader: Callable[..., tuple[dict[str, Any], Any]]
    reader = pyreadstat.read_sav if path.suffix.lower() == ".sav" else pyreadstat.read_dta
    try:
        return reader(str(path), output_format="dict", disable_datetime_conversion=True, **options)
    except Exception as error:  # pyreadstat raises its own, UnicodeDecodeError, MemoryError, ...
        read_bytes(path)  # raises if the file is absent or empty
        message = f"not readable as {path.suffix} ({error}); is it whole? Download it again"
        raise bad(path, message) from None


def _pyreadstat(path: Path) -> Any:
    try:
        import pyreadstat
    except ImportError:
        message = "needs pyreadstat; pip install 'jaxalign[survey]', or give the survey's CSV"
        raise bad(path, message) from None
    return pyreadstat
