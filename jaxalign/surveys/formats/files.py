"""Read text, JSON and tables that others wrote, and say in one line what is wrong with them.

Rows are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import object_without_repeats

DELIMITERS = ",;\t"
_SHOWN = 60  # characters of an offending value that an error repeats
_START_BYTES = 1 << 20  # enough for any header
_SEP_LINE = re.compile(r"\ufeff?\"?sep=([,;\t|])\"?[ \t;,]*(?:\r\n|\n|\r)", re.IGNORECASE)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # JSON can spell half a character, UTF-8 cannot


def bad(
    path: Path | str, message: str, row: int | None = None, column: str | None = None
) -> UserError:
    """Return the error to raise for something wrong at one place of a file."""
    place = f"{path}"
    place += f", row {row}" if row is not None else ""
    place += f", column {column!r}" if column is not None else ""
    return UserError(f"{place}: {' '.join(message.split())}")


def shown(value: object) -> str:
    """Return `value` as an error repeats it: quoted, and shortened where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# -- text -----------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """Return the whole file. Raise UserError if it cannot be read or is empty."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise unreadable(path, error) from None
    if not content.strip():
        raise bad(path, "the file is empty")
    return content


def read_start(path: Path) -> bytes:
    """Return the first megabyte of a file, which holds any header, in UTF-8.

    Raises:
        UserError: The file cannot be read, is empty, or is evidently not UTF-8 text.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    start = as_utf8(start)
    if not start.strip():
        raise bad(path, "the file is empty")
    check_encoding(path, start)
    return start


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error to raise for a file that cannot be opened."""
    return bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})")


def read_text(path: Path) -> str:
    """Return the whole file as text, without a byte order mark.

    Raises:
        UserError: It is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    content = as_utf8(read_bytes(path))
    if not content.strip():  # nothing behind a byte order mark
        raise bad(path, "the file is empty")
    check_encoding(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        raise bad(path, f"byte {byte} is not UTF-8; save the file as UTF-8", row=line) from None


def is_utf16(content: bytes) -> bool:
    """Return whether a text begins with a byte order mark of UTF-16, as "Unicode text" does."""
    return content.startswith((b"\xff\xfe", b"\xfe\xff"))


def as_utf8(content: bytes) -> bytes:
    """Return a text in UTF-8 where it is UTF-16 with a byte order mark; else as it is."""
    if not is_utf16(content):
        return content
    whole = content[: len(content) // 2 * 2]  # the first megabyte may end within a character
    return whole.decode("utf-16", errors="ignore").encode("utf-8", errors="replace")


# How files begin that are no text tables, and what to do with them.
_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive or spreadsheet; unpack it, or export it as CSV in UTF-8"),
    (b"\x1f\x8b", "compressed by gzip, as R's files are; unpack it, or export it as CSV in UTF-8"),
    (b"RDX", "a file of R; save the table with write.csv"),
    (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull in its folder"),
    (b"<!doctype html", "a web page in place of the file; download it again"),
    (b"<html", "a web page in place of the file; download it again"),
    (b"ascii spss port file", "an SPSS portable file; save it as .sav"),
)


def check_encoding(path: Path, content: bytes) -> None:
    """Raise UserError for what is evidently no text table: archives, spreadsheets, web pages."""
    beginning = content[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, advice in _BEGINNINGS:
        if beginning.startswith(start) or beginning.lower().startswith(start):
            raise bad(path, advice)
    if b"\0" in content:
        raise bad(path, "the file holds zero bytes, so it is not text; give a CSV in UTF-8")


def sha256_of_file(path: Path) -> str:
    """Return the hash of the file's bytes, which are read in pieces."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


class FileStart:
    """A file or folder whose format is to be recognised, with its beginning read once.

    Nothing here raises: what cannot be read as UTF-8 text has no text and no header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.suffix = path.suffix.lower()

    @functools.cached_property
    def text(self) -> str:
        """The first megabyte of the file."""
        try:
            return read_start(self.path).decode("utf-8-sig", errors="replace")
        except UserError:
            return ""

    @functools.cached_property
    def headers(self) -> tuple[tuple[str, ...], ...]:
        """The cells of the header if it is delimited by commas, semicolons or tabs."""
        text, _, given = after_sep_line(self.text)
        return tuple(tuple(header_of(text, delimiter)) for delimiter in given or DELIMITERS)

    @property
    def is_json(self) -> bool:
        """Whether the text begins as a JSON object or list does."""
        return self.text.lstrip().startswith(("{", "["))

    def has_columns(self, *names: str) -> bool:
        """Return whether the first row is a header that holds all of `names`."""
        return not self.is_json and any(set(names) <= set(header) for header in self.headers)


# -- JSON -----------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        UserError: The file cannot be read, is empty or not UTF-8; or it is not JSON, with line and
            column; or one of its objects names a key twice.
    """
    return parse_json(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not blank.

    Raises:
        UserError: As `read_json`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text. Raise UserError, which begins with `where`, if it is not."""
    try:
        value = json.loads(text, object_pairs_hook=object_without_repeats)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise bad(where, "half of a character (a surrogate without its other half)") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise bad(where, f"not JSON at {place} ({error.msg})") from None
    except RecursionError:
        raise bad(where, "nested too deeply") from None
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        raise bad(where, str(error)) from None


# -- tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a small file. `rows[i]` is (row number, cells by column)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_table(
    path: Path, needed: Sequence[str], text: str | None = None, others: Sequence[str] | None = None
) -> Table:
    """Return the table in a file whose cells commas, semicolons or tabs delimit.

    Args:
        path: The file.
        needed: Columns that must be there. The header also tells the delimiter.
        text: The file's text, where it has been read already.
        others: Further columns that may be there. Any column besides is then refused, so that a
            misspelt one is not overlooked. None: any column may be there.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    text = read_text(path) if text is None else text
    text, lines_before, given = after_sep_line(text)
    delimiter = find_delimiter(path, text, needed, given or DELIMITERS)
    numbered = iter_rows(path, text, delimiter, lines_before + 1)
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


def after_sep_line(text: str) -> tuple[str, int, str]:
    """Return a table's text without the line `sep=;` that spreadsheets write and obey.

    Returns:
        The text; the number of lines left out, 0 or 1; and the delimiter that the line names, "" if
        there is no such line.
    """
    match = _SEP_LINE.match(text)
    return (text[match.end() :], 1, match[1]) if match else (text, 0, "")


def find_delimiter(
    path: Path, text: str, needed: Sequence[str], delimiters: str = DELIMITERS
) -> str:
    """Return the delimiter under which the header has the columns needed."""
    headers = {d: header_of(text, d) for d in delimiters}
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
    """Return the stripped cells of the first row; none if it cannot be parsed."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [name.strip() for name in next(reader, [])]
    except csv.Error:
        return []


def iter_rows(
    path: Path, text: str, delimiter: str, first_row: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and cells of each row that is not blank.

    Spreadsheets write rows of delimiters alone at the end of a file.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    row = first_row - 1
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
    """Raise UserError if a header names a column twice."""
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise bad(path, "the column is there twice; keep one", 1, name)
        seen.add(name)


def check_width(path: Path, row: int, cells: int, columns: int) -> None:
    """Raise UserError unless a row has one cell for each column."""
    if cells != columns:
        why = "is the file cut short?" if cells < columns else "is a delimiter inside a text?"
        raise bad(path, f"{cells} cells where the header has {columns}; {why}", row)
