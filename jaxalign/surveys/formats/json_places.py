"""The line and column of each value in a JSON text, and the JSON Schema rules that it breaks.

Only the rules that `data/survey.schema.json` uses are known: type, enum, pattern, required,
properties, additionalProperties, items, minItems, minimum, maximum. Any other rule raises.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from json.decoder import scanstring
from typing import Any

from jaxalign.surveys.formats.files import shown

Path = tuple[str | int, ...]
_BLANK = re.compile(r"[ \t\n\r]*")
_DEPTH = 8  # values nested deeper than this, which no survey has, get no place of their own
_TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: type(v) in (int, float),
    "integer": lambda v: type(v) is int,
    "boolean": lambda v: type(v) is bool,
}
_IGNORED = {"$schema", "title", "description"}


class Places:
    """Line and column, both counted from 1, of every value in a JSON text."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self._text, self._at = text, {}
        self._decoder = json.JSONDecoder()
        self.repeated: list[Path] = []  # keys that are in one object twice: the later one
        self._repeated_at: list[int] = []
        self._walk(self._skip(0), (), 0)

    def of(self, path: Path) -> tuple[int, int]:
        """Return line and column of a value, or of what would hold it if it is absent."""
        while path not in self._at:
            path = path[:-1]
        return self._place(self._at[path])

    def of_repeated(self) -> list[tuple[int, int, str]]:
        """Return line, column and key of each key that is in its object for a second time."""
        pairs = zip(self._repeated_at, self.repeated, strict=True)
        return [(*self._place(at), str(path[-1])) for at, path in pairs]

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def _skip(self, at: int) -> int:
        return _BLANK.match(self._text, at).end()

    def _walk(self, at: int, path: Path, depth: int) -> int:
        """Record where the value at `at` and everything in it start; return where it ends."""
        self._at[path] = at
        opening = self._text[at]
        if opening not in "{[" or depth == _DEPTH:
            return self._decoder.raw_decode(self._text, at)[1]
        at = self._skip(at + 1)
        closing = "}" if opening == "{" else "]"
        index = 0
        while self._text[at] != closing:
            key: str | int = index
            if opening == "{":
                key_at = at
                key, at = scanstring(self._text, at + 1)
                if (*path, key) in self._at:
                    self.repeated.append((*path, key))
                    self._repeated_at.append(key_at)
                at = self._skip(self._skip(at) + 1)  # past the colon
            at = self._skip(self._walk(at, (*path, key), depth + 1))
            if self._text[at] == ",":
                at = self._skip(at + 1)
            index += 1
        return at + 1


def broken_rules(value: Any, schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield where and how `value` breaks the schema, in the order of the text."""
    for rule, setting in schema.items():
        if rule == "type" and not _TYPES[setting](value):
            yield path, f"{shown(value)} is not of type {setting}"
            return  # the other rules assume that type
        if rule not in _RULES and rule not in _IGNORED | {"type"}:
            raise NotImplementedError(f"JSON Schema rule {rule!r}")
        if rule in _RULES:
            yield from _RULES[rule](value, setting, schema, path)


def _enum(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if value not in setting:
        yield path, f"{shown(value)} is not one of {', '.join(setting)}"


def _pattern(value: Any, setting: str, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if not re.search(setting, value):
        yield path, "the text is empty"


def _required(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for name in setting:
        if name not in value:
            yield path, f"the field {name!r} is absent"


def _properties(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for name in value:
        if name in setting:
            yield from broken_rules(value[name], setting[name], (*path, name))


def _additional(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    known = schema.get("properties", {})
    for name in value:
        if name in known:
            continue
        if setting is False:
            yield (*path, name), f"{shown(name)} is not a field here; known are {', '.join(known)}"
        else:
            yield from broken_rules(value[name], setting, (*path, name))


def _items(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for i, element in enumerate(value):
        yield from broken_rules(element, setting, (*path, i))


def _min_items(value: Any, setting: int, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if len(value) < setting:
        yield path, f"{len(value)} elements; at least {setting} must be there"


def _minimum(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if not value >= setting:
        yield path, f"{value!r} is below {setting}"


def _maximum(value: Any, setting: Any, schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if not value <= setting:
        yield path, f"{value!r} is above {setting}"


_RULES = {
    "enum": _enum,
    "pattern": _pattern,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "minItems": _min_items,
    "minimum": _minimum,
    "maximum": _maximum,
}
