"""An instrument of the user's own, as JSON or as plain CSV, and everything that is wrong with it.

JSON: the format of `jaxalign.surveys.survey`, as `data/instrument.schema.json` states it.

CSV: one item a row, columns `id`, `text` and `options`, and where wanted `stem`, `scale` (ordinal
or nominal; empty is ordinal) and `topic`. `options` lists `code=label`, separated by `|`, in the
order of the scale:

    id,text,options,topic
    q1,How often do you read?,1=never|2=sometimes|3=often,leisure

How countries answered comes in a second CSV, `distributions`, one share a row, columns `country`,
`item`, `code` and `share`. Shares of a country and item sum to 1; a code left out has share 0.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import read_table, read_text, shown
from jaxalign.surveys.formats.json_places import Places, broken_rules
from jaxalign.surveys.survey import Item, Survey, from_json

COLUMNS = ("id", "text", "options")
OPTIONAL_COLUMNS = ("stem", "scale", "topic")
SHARE_COLUMNS = ("country", "item", "code", "share")
_TOLERANCE = 1e-3  # of a sum of shares, as Instrument has it


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong. `place` is "line 3, column 14" in JSON, "row 3, column 'scale'" in CSV."""

    path: Path
    place: str
    message: str

    def __str__(self) -> str:
        place = f", {self.place}" if self.place else ""
        return f"{self.path}{place}: {' '.join(self.message.split())}"


def read_own_json(path: Path | str) -> Survey:
    """The instrument in a JSON file. Raises UserError with the first thing wrong."""
    return _first_or_result(*check_json(Path(path)))


def read_own_csv(path: Path | str, distributions: Path | str | None = None) -> Survey:
    """The instrument in a CSV file. Raises UserError with the first thing wrong."""
    path, shares = Path(path), None if distributions is None else Path(distributions)
    return _first_or_result(*check_csv(path, shares))


def _first_or_result(problems: list[Problem], instrument: Survey | None) -> Survey:
    if instrument is None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return instrument


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of an instrument file."""
    file = resources.files("jaxalign.surveys").joinpath("data/instrument.schema.json")
    return json.loads(file.read_text("utf-8"))


def check_json(path: Path) -> tuple[list[Problem], Survey | None]:
    """Everything wrong with a JSON instrument; the instrument where nothing is."""
    text = read_text(path)
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        return [_at(path, error.lineno, error.colno, f"not JSON: {error.msg}")], None
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
        return [Problem(path, "", f"not JSON ({error})")], None
    places = Places(text)
    problems = [
        _at(path, line, column, f"the field {shown(key)} comes twice; keep one")
        for line, column, key in places.of_repeated()
    ]
    broken = list(broken_rules(fields, schema()))
    if not broken:
        broken = _inconsistencies(fields)
    problems += [_at(path, *places.of(where), message) for where, message in broken]
    if problems:
        return problems, None
    try:
        return [], from_json(fields, str(path))
    except UserError as error:
        return [Problem(path, "", str(error).removeprefix(f"{path}: "))], None


def _at(path: Path, line: int, column: int, message: str) -> Problem:
    return Problem(path, f"line {line}, column {column}", message)


def _inconsistencies(fields: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """What no schema can say: ids and codes that repeat, shares that do not fit the options."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    items: dict[str, int] = {}
    for i, row in enumerate(fields["items"]):
        labels = tuple(option["label"] for option in row["options"])
        codes = tuple(option["code"] for option in row["options"])
        if row["id"] in items:
            found.append((("items", i, "id"), f"id {shown(row['id'])} repeats"))
        items[row["id"]] = len(labels)
        try:
            Item(row["id"], row["text"], labels, codes, row.get("scale", "ordinal"))
        except UserError as error:
            found.append((("items", i, "options"), str(error)))
    for country, answers in fields.get("distributions", {}).items():
        for item, shares in answers.items():
            where = ("distributions", country, item)
            if item not in items:
                found.append((where, f"there is no item {shown(item)}"))
            elif len(shares) != items[item]:
                found.append((where, f"{len(shares)} shares for {items[item]} options"))
            elif not abs(math.fsum(shares) - 1) <= _TOLERANCE:
                found.append((where, f"shares sum to {math.fsum(shares):g}, not to 1"))
    return found


def check_csv(path: Path, shares: Path | None = None) -> tuple[list[Problem], Survey | None]:
    """Everything wrong with a CSV instrument and its shares; the instrument where nothing is."""
    table = read_table(path, COLUMNS, others=OPTIONAL_COLUMNS)
    problems: list[Problem] = []
    items: dict[str, Item] = {}
    row_of: dict[str, int] = {}
    for row, cells in table.rows:
        id = cells["id"].strip()
        if id in row_of:
            message = f"id {shown(id)} is in row {row_of[id]} already"
            problems.append(_in(path, row, "id", message))
            continue
        row_of[id] = row
        item, wrong = _item(path, row, id, cells)
        problems += wrong
        if item is not None:
            items[id] = item
    distributions = {}
    if shares is not None:
        found, distributions = _check_shares(shares, items, row_of)
        problems += found
    if problems:
        return problems, None
    source = "the user's own file"
    return [], Survey(path.stem, "1", source, "paraphrase", tuple(items.values()), distributions)


def _in(path: Path, row: int, column: str, message: str) -> Problem:
    return Problem(path, f"row {row}, column {column!r}", message)


def _item(
    path: Path, row: int, id: str, cells: dict[str, str]
) -> tuple[Item | None, list[Problem]]:
    problems = [
        _in(path, row, name, "the cell is empty") for name in COLUMNS if not cells[name].strip()
    ]
    scale = (cells.get("scale") or "").strip() or "ordinal"
    if scale not in ("ordinal", "nominal"):
        problems.append(_in(path, row, "scale", f"{shown(scale)}; ordinal or nominal"))
    codes, labels = [], []
    for part in cells["options"].split("|") if cells["options"].strip() else ():
        code, equals, label = (piece.strip() for piece in part.partition("="))
        try:
            codes.append(int(code))
            labels.append(label)
        except ValueError:
            equals = ""
        if not equals or not label:
            message = f"{shown(part)} is not code=label with a whole number for a code"
            problems.append(_in(path, row, "options", message))
    if problems:
        return None, problems
    try:
        return Item(
            id, cells["text"].strip(), tuple(labels), tuple(codes), scale,
            (cells.get("topic") or "").strip(), (cells.get("stem") or "").strip(),
        ), []  # fmt: skip
    except UserError as error:
        return None, [_in(path, row, "options", str(error))]


def _check_shares(
    path: Path, items: dict[str, Item], row_of: dict[str, int]
) -> tuple[list[Problem], dict[str, dict[str, tuple[float, ...]]]]:
    """The shares of a long table, and what is wrong with them."""
    problems: list[Problem] = []
    shares: dict[tuple[str, str], dict[int, float]] = {}
    last_row: dict[tuple[str, str], int] = {}
    for row, cells in read_table(path, SHARE_COLUMNS, others=()).rows:
        country, id = cells["country"].strip(), cells["item"].strip()
        wrong = _share_problem(path, row, cells, items, row_of, shares.get((country, id), {}))
        if wrong is not None:
            problems.append(wrong)
        elif id in items:
            shares.setdefault((country, id), {})[int(cells["code"])] = float(cells["share"])
            last_row[country, id] = row
    distributions: dict[str, dict[str, tuple[float, ...]]] = {}
    for (country, id), by_code in shares.items():
        total = math.fsum(by_code.values())
        if abs(total - 1) > _TOLERANCE and not problems:
            message = f"the shares of {country} and {id} sum to {total:g}, not to 1"
            problems.append(_in(path, last_row[country, id], "share", message))
        answers = distributions.setdefault(country, {})
        answers[id] = tuple(by_code.get(code, 0.0) for code in items[id].codes)
    return problems, distributions


def _share_problem(
    path: Path,
    row: int,
    cells: dict[str, str],
    items: dict[str, Item],
    row_of: dict[str, int],
    earlier: dict[int, float],
) -> Problem | None:
    """What is wrong with one row of shares, if anything."""
    country, id = cells["country"].strip(), cells["item"].strip()
    if not country:
        return _in(path, row, "country", "the cell is empty")
    if id not in row_of:
        return _in(path, row, "item", f"there is no item {shown(id)}")
    if id not in items:
        return None  # its own row is wrong, which is told there
    try:
        code = int(cells["code"])
    except ValueError:
        return _in(path, row, "code", f"{shown(cells['code'])} is no whole number")
    if code not in items[id].codes:
        message = f"code {code} is none of item {id}'s codes {list(items[id].codes)}"
        return _in(path, row, "code", message)
    if code in earlier:
        return _in(path, row, "code", f"country {country}, item {id} has code {code} already")
    try:
        share = float(cells["share"])
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        return _in(path, row, "share", f"{shown(cells['share'])} is no number from 0 to 1")
    return None
