"""What every reader shares: text decoded once and refused clearly, and small tables of cells.

Rows are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxalign.core.errors import UserError

DELIMITERS = ",;\t"
_SHOWN = 60  # characters of an offending value that an error repeats


def bad(
    path: Path | str, message: str, row: int | None = None, column: str | None = None
) -> UserError:
    """The error to raise for something wrong at one place of a file."""
    place = f"{path}"
    place += f", row {row}" if row is not None else ""
    place += f", column {column!r}" if column is not None else ""
    return UserError(f"{place}: {' '.join(message.split())}")


def shown(value: object) -> str:
    """`value` as an error repeats it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises UserError where it cannot be read or holds nothing."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not content.strip():
        raise bad(path, "the file is empty")
    return content


def read_text(path: Path) -> str:
    """The whole file as UTF-8 text, a byte order mark dropped."""
    content = read_bytes(path)
    check_encoding(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        raise bad(path, f"byte {byte} is not UTF-8; save the file as UTF-8", row=line) from None


def check_encoding(path: Path, content: bytes) -> None:
    """Refuse what is no UTF-8 text at sight: UTF-16, archives, spreadsheets."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise bad(path, "the text is UTF-16; save it as UTF-8")
    if content.startswith(b"PK\x03\x04"):
        raise bad(path, "a zip archive or spreadsheet; unpack it, or export it as CSV in UTF-8")
    if b"\0" in content:
        raise bad(path, "holds zero bytes, so it is no text file; give the CSV in UTF-8")


def sha256_of_file(path: Path) -> str:
    """Hash of the file's bytes, read in pieces."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


@dataclasses.dataclass(frozen=True)
class Table:
    """A small file's cells. `rows[i]` is (row number, cells by column)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_table(
    path: Path, needed: Sequence[str], text: str | None = None, others: Sequence[str] | None = None
) -> Table:
    """The table in `path`, its delimiter (comma, semicolon or tab) taken from the header.

    `needed` columns must be there. With `others` given, any further column is refused, so that a
    misspelt one is never passed over. Raises UserError with row and column.
    """
    text = read_text(path) if text is None else text
    delimiter = find_delimiter(path, text, needed)
    numbered = iter_rows(path, text, delimiter)
    _, header = next(numbered)
    columns = tuple(name.strip() for name in header)
    check_header(path, columns)
    known = None if others is None else {*needed, *others}
    if known is not None and (extra := [c for c in columns if c not in known]):
        raise bad(path, f"not a known column; known are {', '.join(sorted(known))}", 1, extra[0])
    rows = []
    for row, cells in numbered:
        check_width(path, row, len(cells), len(columns))
        rows.append((row, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise bad(path, "there are no rows below the header")
    return Table(path, columns, tuple(rows))


def find_delimiter(path: Path, text: str, needed: Sequence[str]) -> str:
    """The delimiter under which the header has the columns needed."""
    headers = {d: header_of(text, d) for d in DELIMITERS}
    for delimiter, header in headers.items():
        if set(needed) <= set(header):
            return delimiter
    header = max(headers.values(), key=len)
    lacking = [name for name in needed if name not in header]
    raise bad(
        path,
        f"the header lacks {', '.join(lacking)}; it reads {shown(', '.join(header))} "
        "(delimit by commas, semicolons or tabs)",
        row=1,
    )


def header_of(text: str, delimiter: str) -> list[str]:
    """The cells of the first row, blanks trimmed; none where it cannot be read."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [name.strip() for name in next(reader, [])]
    except csv.Error:
        return []


def iter_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of each row that is not blank: spreadsheets leave rows of delimiters."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    row = 0
    while True:
        row += 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise bad(path, f"not readable as a table ({error})", row) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield row, cells


def check_header(path: Path, columns: Sequence[str]) -> None:
    """Refuse a header that names a column twice."""
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise bad(path, "the column is there twice; keep one", 1, name)
        seen.add(name)


def check_width(path: Path, row: int, cells: int, columns: int) -> None:
    """Refuse a row with other than one cell a column."""
    if cells != columns:
        why = "is the file cut short?" if cells < columns else "is a delimiter inside a text?"
        raise bad(path, f"{cells} cells where the header has {columns}; {why}", row)
