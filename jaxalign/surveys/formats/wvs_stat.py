"""World Values Survey 7 as SPSS (.sav, .zsav), Stata (.dta) or SAS (.sas7bdat, .xpt) has it.

pyreadstat reads the files in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats.files import bad, read_bytes
from jaxalign.surveys.formats.wvs_cells import VERSION, Cells, Chunk, columns_in_file

# By the end of the file's name, the function of pyreadstat that reads it.
_READERS = {
    ".sav": "read_sav",
    ".zsav": "read_sav",
    ".dta": "read_dta",
    ".sas7bdat": "read_sas7bdat",
    ".xpt": "read_xport",
}
SUFFIXES = tuple(_READERS)

# pyreadstat starts each chunk at the beginning of the file and skips, so more chunks cost time. It
# holds a chunk as Python objects of 32 bytes a cell, so larger chunks cost memory.
CHUNK_ROWS = 8192
# Files hold texts in an encoding that they do not name, or not rightly. Labels and free text are
# not needed, and codes and countries are the same in Latin-1 as in any other.
_FALLBACK_ENCODING = "LATIN1"


@dataclasses.dataclass(frozen=True)
class StatFile:
    """A file whose dictionary has been read.

    Attributes:
        path: The file.
        columns: Names as the file spells them.
        rows: Number of respondents that the file announces; None if it does not say.
        version: The first respondent's `version` cell, "" if there is none.
        encoding: The encoding to read texts in; None for what the file says.
        value_labels: What the file calls the codes of its columns.
    """

    path: Path
    columns: tuple[str, ...]
    rows: int | None
    version: str
    encoding: str | None
    value_labels: Mapping[str, Mapping[Any, str]] = dataclasses.field(default_factory=dict)

    def chunks(self, names: Sequence[str], chunk_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Yield columns of the respondents. Rows are numbered from 2, as if 1 were a header."""
        done = 0
        for cells in self._chunks(names, chunk_rows):
            yield Chunk(done + 2, {name: _cells(cells[name]) for name in names})
            done += len(cells[names[0]])
        if self.rows is not None and done != self.rows:
            message = f"{done} respondents where the file announces {self.rows}; is it cut short?"
            raise bad(self.path, message)

    def labels(self, column: str) -> Mapping[float, str]:
        """Return what the file calls the codes of a column; empty if it does not say."""
        labels = self.value_labels.get(column, {}).items()
        return {float(code): str(label) for code, label in labels if isinstance(code, (int, float))}

    def hashes(self, rows: set[int]) -> dict[int, int]:
        """Return a hash of the whole of each of some rows."""
        out, row = {}, 2
        for cells in self._chunks(self.columns, CHUNK_ROWS // 2):
            columns = list(cells.values())
            # NaN differs from itself; text does not.
            here = [r for r in range(row, row + len(columns[0])) if r in rows]
            out |= {r: hash(tuple(str(column[r - row]) for column in columns)) for r in here}
            row += len(columns[0])
        return out

    def _chunks(self, names: Sequence[str], chunk_rows: int) -> Iterator[dict[str, Any]]:
        done, rows = 0, chunk_rows
        while rows == chunk_rows and done != self.rows:
            options = {"usecols": list(names), "row_offset": done, "row_limit": chunk_rows}
            try:
                cells, _ = _read(self.path, encoding=self.encoding, **options)
            except _WrongEncodingError:
                cells, _ = _read(self.path, encoding=_FALLBACK_ENCODING, **options)
            rows = len(cells.get(names[0], ()))
            if rows:
                yield cells
            done += rows


def open_stat(path: Path) -> StatFile:
    """Read the dictionary of a file. Raise UserError if that cannot be done."""
    encoding = None
    try:
        _, metadata = _read(path, metadataonly=True)
    except _WrongEncodingError:
        encoding = _FALLBACK_ENCODING
        _, metadata = _read(path, metadataonly=True, encoding=encoding)
    # A damaged .dta may have columns without a name.
    columns = tuple(str(name) for name in metadata.column_names)
    version = columns_in_file(columns, [VERSION]).get(VERSION)
    labels = metadata.variable_value_labels or {}
    file = StatFile(path, columns, metadata.number_rows, "", encoding, labels)
    first = next(file.chunks([version], 1), None) if version else None
    cell = first.columns[version].values[0] if first else None
    return file if cell is None else dataclasses.replace(file, version=str(cell).strip())


def _cells(column: Any) -> Cells:
    """Return the distinct values of a column, which is a list of numbers and None, or of texts."""
    try:
        values, index = np.unique(np.array(column, np.float64), return_inverse=True)
        return Cells(values.tolist(), index)
    except (TypeError, ValueError):  # texts, or numbers among texts
        seen: dict[Any, int] = {}
        index = np.array([seen.setdefault(cell, len(seen)) for cell in column], np.int64)
        return Cells(tuple(seen), index)


class _WrongEncodingError(Exception):
    """A text of the file is not in the encoding that it was read in."""


def _read(path: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Read a file with pyreadstat. Raise its errors as UserErrors of one line."""
    pyreadstat = _pyreadstat(path)
    reader = getattr(pyreadstat, _READERS[path.suffix.lower()])
    try:
        return reader(str(path), output_format="dict", disable_datetime_conversion=True, **options)
    except Exception as error:  # pyreadstat raises its own, UnicodeDecodeError, MemoryError, ...
        read_bytes(path)  # raises if the file is absent or empty
        wrong = isinstance(error, UnicodeDecodeError) or "encoding" in str(error)
        if wrong and options.get("encoding") is None:
            raise _WrongEncodingError from None
        message = f"not readable as {path.suffix} ({error}); is it whole? Download it again"
        raise bad(path, message) from None


def _pyreadstat(path: Path) -> Any:
    try:
        import pyreadstat
    except ImportError:
        message = "needs pyreadstat; pip install 'jaxalign[survey]', or give the survey's CSV"
        raise bad(path, message) from None
    return pyreadstat
