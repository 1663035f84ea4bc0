"""World Values Survey 7 as delimited text, read with pyarrow a few thousand respondents at a time.

pyarrow agrees with Python's csv module on what a quotation mark within a cell means. polars does
not: with `9" wall` in a column that nobody asked for, polars 2.1 loses the rows up to the next such
mark without a word.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.surveys.formats.files import (
    DELIMITERS,
    after_sep_line,
    bad,
    check_header,
    header_of,
    is_utf16,
    read_start,
    shown,
    unreadable,
)
from jaxalign.surveys.formats.wvs_cells import COUNTRY, VERSION, Cells, Chunk, columns_in_file

_DELIMITERS = f"{DELIMITERS}| "  # some exports have bars; R's write.table has spaces
BLOCK_BYTES = 4 << 20
_WRONG_WIDTH = re.compile(r"(?:Row #(\d+): )?Expected \d+ columns, got (\d+):(.*)", re.DOTALL)
_UNNAMED = re.compile(r"(unnamed: ?\d+|x|index|)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file whose header has been read.

    Attributes:
        path: The file.
        columns: Names as the file spells them; "" for row names, which R writes without a header.
        delimiter: What separates cells.
        lines_before: Lines before the header: 1 if the file begins with Excel's `sep=;`.
        version: The first respondent's `version` cell, "" if there is none.
        encoding: Encoding of the text.
    """

    path: Path
    columns: tuple[str, ...]
    delimiter: str
    lines_before: int
    version: str
    encoding: str = "utf8"

    def chunks(self, names: Sequence[str], block_bytes: int = BLOCK_BYTES) -> Iterator[Chunk]:
        """Yield columns of the respondents, in blocks of about `block_bytes`.

        Rows without any cell are yielded too. Row numbers count records. They are line numbers
        unless a cell holds a line break.
        """
        at = {name: i for i, name in reversed(list(enumerate(self.columns)))}
        width = len(self.columns)
        # Positions instead of names: a header may leave several columns unnamed.
        wanted = [str(at[name]) for name in names]
        row = self.lines_before + 2
        for batch in self._batches([*wanted, str(width - 1)], block_bytes):
            cells = {n: _cells(batch.column(i)) for n, i in zip(names, wanted, strict=True)}
            self._check_last(_cells(batch.column(str(width - 1))), row)
            yield Chunk(row, cells)
            row += batch.num_rows

    def labels(self, column: str) -> Mapping[float, str]:
        """Return what the file calls the codes of a column: text files do not say."""
        return {}

    def hashes(self, rows: set[int]) -> dict[int, int]:
        """Return a hash of the whole of each of some rows, leaving out row names and numbers."""
        named = [i for i, name in enumerate(self.columns) if not _UNNAMED.fullmatch(name.strip())]
        out, row = {}, self.lines_before + 2
        for batch in self._batches([str(i) for i in named], BLOCK_BYTES):
            here = [r for r in range(row, row + batch.num_rows) if r in rows]
            if here:
                part = batch.take(_pyarrow(self.path)[0].array([r - row for r in here]))
                texts = [column.to_pylist() for column in part.columns]
                out |= {
                    r: hash(cells) for r, cells in zip(here, zip(*texts, strict=True), strict=True)
                }
            row += batch.num_rows
        return out

    def _batches(self, wanted: list[str], block_bytes: int) -> Iterator[Any]:
        pa, pacsv = _pyarrow(self.path)
        width = len(self.columns)
        texts = pa.dictionary(pa.int32(), pa.binary())
        positions = [str(i) for i in range(width)]
        wanted = list(dict.fromkeys(wanted))
        options = {
            "parse_options": pacsv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,
            ),
            "convert_options": pacsv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(positions, texts),
                strings_can_be_null=False,
                check_utf8=False,
            ),
        }
        try:
            reader = pacsv.open_csv(
                self.path,
                read_options=pacsv.ReadOptions(
                    use_threads=False,
                    block_size=block_bytes,
                    column_names=positions,
                    skip_rows=self.lines_before,
                    skip_rows_after_names=1,
                    encoding=self.encoding,
                ),
                **options,
            )
            yield from reader
        except OSError as error:
            raise unreadable(self.path, error) from None
        except pa.ArrowInvalid as error:
            if wrong := _WRONG_WIDTH.search(str(error)):
                row = int(wrong[1]) + self.lines_before if wrong[1] else None
                cells = int(wrong[2])
                why = "is the file cut short?" if cells < width else "is it delimited otherwise?"
                if "\n" in wrong[3].rstrip():
                    why = "is a quotation mark opened and never closed?"
                message = f"{cells} cells where the header has {width}; {why}"
                raise bad(self.path, message, row) from None
            if "straddling" in str(error):  # a row is longer than a block
                message = "a row without an end; is a quotation mark opened and never closed?"
                raise bad(self.path, message) from None
            raise bad(self.path, f"not readable as a table ({error})") from None

    def _check_last(self, cells: Cells, first_row: int) -> None:
        """Raise UserError if a cell of the last column has swallowed rows of the table."""
        for i, value in enumerate(cells.values):
            lines = re.split(r"\r\n|\n|\r", str(value))[1:]
            if any(line.count(self.delimiter) >= len(self.columns) - 1 for line in lines):
                message = "a quotation mark is opened and never closed"
                raise bad(self.path, message, cells.row_of(i, first_row))


def open_text(path: Path) -> TextFile:
    """Read the header of a file. Raise UserError if it has none."""
    start = read_start(path).decode("utf-8-sig", errors="replace")
    with open(path, "rb") as file:
        encoding = "utf-16" if is_utf16(file.read(2)) else "utf8"
    text, lines_before, given = after_sep_line(start)
    delimiter = max(given or _DELIMITERS, key=lambda d: len(header_of(text, d)))
    header, first = _sample(text, delimiter)
    if len(header) < 2:
        line = shown(text.splitlines()[0])
        message = (
            f"the header {line} is delimited by neither commas, semicolons, tabs, bars nor spaces"
        )
        raise bad(path, message, lines_before + 1)
    columns = tuple(name.strip() for name in header)
    check_header(path, [name for name in columns if name])
    if not first:
        if not re.search(r"[\r\n]", text):
            raise bad(path, "there are no rows below the header")
        return TextFile(path, columns, delimiter, lines_before, "", encoding)
    columns = _with_row_names(columns, first)
    cells = dict(zip(columns, first, strict=False))
    version = columns_in_file(columns, [VERSION]).get(VERSION)
    first_version = cells.get(version, "").strip()
    return TextFile(path, columns, delimiter, lines_before, first_version, encoding)


def _sample(text: str, delimiter: str) -> tuple[list[str], list[str]]:
    """Return the cells of the header and of the first row below it, which may be empty."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return next(rows, []), next(rows, [])
    except csv.Error:  # a cell of over 128 KiB
        return header_of(text, delimiter), []


def _with_row_names(columns: tuple[str, ...], first: list[str]) -> tuple[str, ...]:
    """Return the columns, beginning with an unnamed one if rows have one cell more than the header.

    R writes row names under no header. A delimiter at the end of each row gives a cell more, too;
    the country tells which of the two it is.
    """
    country = columns_in_file(columns, [COUNTRY]).get(COUNTRY)
    if len(first) != len(columns) + 1 or country is None:
        return columns
    at = columns.index(country)
    if re.fullmatch(r"[A-Z]{3}", first[at + 1].strip()):
        return ("", *columns)
    return (*columns, "") if not first[-1].strip() else columns


def _cells(column: Any) -> Cells:
    values = [v.decode("utf-8", "replace") for v in column.dictionary.to_pylist()]
    return Cells(values, column.indices.to_numpy(zero_copy_only=False))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
    except ImportError:
        message = "needs pyarrow; pip install 'jaxalign[survey]'"
        raise bad(path, message) from None
    return pyarrow, pyarrow.csv
