"""JSON from files of strangers: whatever is wrong with it is one kind of error.

Python's own parser raises three kinds (a `RecursionError` where objects are nested too deeply), and
takes the last of two equal keys without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError

_SHOWN = 40  # characters of a key in a message


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text; bytes are UTF-8, perhaps with a byte order mark.

    Raises:
        ValueError: It is not JSON or not UTF-8, is nested too deeply, names a key of an object
            twice, or holds a number of thousands of digits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")  # json would also take UTF-16 and UTF-32
    try:
        return json.loads(text, object_pairs_hook=object_without_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def reason(error: ValueError) -> str:
    """Return what an error of `parse_json` says, without the content that is not UTF-8."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return str(error)


def object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; ValueError if a key is there twice. For `json.loads`."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:_SHOWN]!r} appears twice in one object")
            seen.add(key)
    return fields


def read_object(path: Path, remedy: str = "restore the file, or start a new run") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        remedy: What to do where it is not one, for the message.

    Raises:
        UserError: The file cannot be read, or does not hold a JSON object.
    """
    try:
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON object ({reason(error)}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object; {remedy}")
    return value
