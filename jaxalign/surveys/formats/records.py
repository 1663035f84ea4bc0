"""Tables as people save them: CSV, a JSON list of objects, JSON lines, or parquet.

All four come out alike: numbered rows of cells, with the names of columns in lower case. A cell is
whatever the file holds there (text, number, truth value, list); `as_text` writes it as text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.streams import visible
from jaxalign.surveys.formats.files import (
    DELIMITERS,
    FileStart,
    bad,
    check_header,
    check_width,
    header_of,
    iter_rows,
    parse_json,
    read_text,
    shown,
)

Row = tuple[int, dict[str, Any]]
"""Number of the row as its file counts them, and its cells by column."""

_PARQUET = b"PAR1"
# A list as Python prints it, or as numpy does, without commas: ['a' 'b'].
_LITERAL = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PRINTED_LIST = re.compile(rf"\s*\[\s*({_LITERAL}(?:[\s,]+{_LITERAL})*)\s*,?\s*\]\s*", re.DOTALL)


def read_records(path: Path, needed: Sequence[str], text: str | None = None) -> list[Row]:
    """Return the rows of a table, whichever way it was saved.

    Args:
        path: The file.
        needed: Columns that must be there, in lower case.
        text: The file's text, where it has been read already.

    Raises:
        UserError: The file cannot be read, has no rows, or lacks a column; the message names it.
    """
    if text is None and is_parquet(path):
        rows = _from_parquet(path)
    else:
        text = read_text(path) if text is None else text
        rows = list(_from_json(path, text) if _is_json(text) else _from_csv(path, text, needed))
    if not rows:
        raise bad(path, "there are no questions")
    for number, cells in rows:
        if lacking := [name for name in needed if name not in cells]:
            raise bad(path, "the field is absent", number, lacking[0])
    return rows


def columns_of(start: FileStart) -> tuple[str, ...]:
    """Return the names of a file's columns in lower case, or of its first object's fields.

    Returns:
        The names; () where the beginning of the file is no table.

    Raises:
        UserError: The file is parquet, and nothing here can read that.
    """
    if is_parquet(start.path):
        return tuple(name.strip().lower() for name in _parquet(start.path).schema_arrow.names)
    if start.is_json:
        return tuple(name.strip().lower() for name in first_object(start.text))
    return tuple(name.lower() for name in max(start.headers, key=len, default=()))


def first_object(text: str) -> dict[str, Any]:
    """Return the first object of JSON lines, or of a JSON list; {} if there is none."""
    try:
        start = text.lstrip().removeprefix("[").lstrip()
        value, _ = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_parquet(path: Path) -> bool:
    """Return whether a file is parquet, told by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except (OSError, ValueError):
        return False


def as_text(value: Any) -> str:
    """Return a cell as text without blanks around it: null is "", 7.0 is "7", true is "true"."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def as_list(value: Any) -> list[str] | None:
    """Return a cell that is a list, or a list as Python or numpy prints it; None if it is neither.

    >>> as_list("['a', \\"it's\\"]"), as_list("['a' 'b']"), as_list("a, b")
    (['a', "it's"], ['a', 'b'], None)
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        printed = _PRINTED_LIST.fullmatch(value)
        if printed is None:
            return None
        try:
            return [ast.literal_eval(text) for text in re.findall(_LITERAL, printed[1], re.DOTALL)]
        except (SyntaxError, ValueError):
            return None
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return [as_text(entry) for entry in value]
    return None


def _is_json(text: str) -> bool:
    return text.lstrip().startswith(("{", "["))


def _from_csv(path: Path, text: str, needed: Sequence[str]) -> Iterator[Row]:
    headers = {d: [name.lower() for name in header_of(text, d)] for d in DELIMITERS}
    delimiter = next((d for d, names in headers.items() if set(needed) <= set(names)), None)
    if delimiter is None:
        names = max(headers.values(), key=len)
        lacking = [name for name in needed if name not in names]
        raise bad(
            path,
            f"the header lacks {', '.join(lacking)}; it reads {shown(', '.join(names))} "
            "(delimit by commas, semicolons or tabs)",
            row=1,
        )
    numbered = iter_rows(path, text, delimiter)
    _, header = next(numbered)
    check_header(path, [name.strip() for name in header])
    columns = tuple(name.strip().lower() for name in header)
    check_header(path, columns)
    empty = True
    for row, cells in numbered:
        check_width(path, row, len(cells), len(columns))
        empty = False
        yield row, dict(zip(columns, cells, strict=True))
    if empty:
        raise bad(path, "there are no rows below the header")


def _from_json(path: Path, text: str) -> Iterator[Row]:
    if text.lstrip().startswith("[") and path.suffix.lower() != ".jsonl":
        values = enumerate(parse_json(text, str(path)), 1)
    else:
        values = _lines(path, text)
    for number, value in values:
        if not isinstance(value, dict):
            raise bad(path, f"{shown(value)} is not a JSON object", number)
        cells = {name.strip().lower(): cell for name, cell in value.items()}
        if len(cells) < len(value):
            raise bad(path, "two fields have the same name but for upper and lower case", number)
        yield number, cells


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad(path, f"not JSON ({error}); one object a line", number) from None


def _said(error: Exception) -> str:
    """Return an error of pyarrow, which may repeat bytes of the file."""
    return visible(" ".join(str(error).split()))


def _from_parquet(path: Path) -> list[Row]:
    try:
        rows = _parquet(path).read().to_pylist()
    except (OSError, ValueError) as error:
        raise bad(path, f"cannot be read as parquet ({_said(error)}); download it again") from None
    return [
        (number, {name.strip().lower(): cell for name, cell in row.items()})
        for number, row in enumerate(rows, 1)
    ]


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: parquet needs the package pyarrow (pip install pyarrow); "
            "or save the table as CSV or JSON"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise bad(path, f"cannot be read as parquet ({_said(error)}); download it again") from None
