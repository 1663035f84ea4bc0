"""Reading JSON that others wrote: one line that says where it breaks, whatever is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign.surveys.formats.files import bad, read_text

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # JSON may spell one, UTF-8 cannot


def read_json(path: Path) -> Any:
    """The file's value. Raises UserError where it cannot be read, is empty or not UTF-8, with line
    and column where it is not JSON, and for an object that names a key twice."""
    return parse_json(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of each line that is not blank. Raises UserError as `read_json`."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def parse_json(text: str, where: str) -> Any:
    """The value that `text` spells. Raises UserError, with `where` in front."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise bad(where, "half of a character (a surrogate without its other half)") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise bad(where, f"not JSON at {place} ({error.msg})") from None
    except RecursionError:
        raise bad(where, "nested too deeply") from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise bad(where, str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise ValueError(f"key {twice[:40]!r} appears twice in one object")
    return fields
