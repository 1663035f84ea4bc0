"""A survey of the user's own, as JSON or as plain CSV, with all that is wrong with it.

JSON: the format of `jaxalign.surveys.survey`; `data/survey.schema.json` is its JSON Schema.

CSV: one item a row, with the columns `id`, `text` and `options`, and optionally `stem`, `scale`
(ordinal or nominal; empty means ordinal) and `topic`. `options` lists `code=label`, separated by
`|`, in the order of the scale:

    id,text,options,topic
    q1,How often do you read?,1=never|2=sometimes|3=often,leisure

How groups of people answered is in a second CSV, `distributions`, one share a row, with the columns
`country` (or `group`; either may hold any name), `item`, `code` and `share`. The shares of a group
and item sum to 1. A code that is left out has share 0.
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
from jaxalign.core.files import check_new_file, write_text
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, read_table, read_text, shown
from jaxalign.surveys.formats.json_places import Places, broken_rules
from jaxalign.surveys.survey import Item, Survey, from_json

COLUMNS = ("id", "text", "options")
OPTIONAL_COLUMNS = ("stem", "scale", "topic")
SHARE_COLUMNS = ("item", "code", "share")
GROUP_COLUMNS = ("country", "group")  # one of them names the group
_TOLERANCE = 1e-3  # how far a sum of shares may be from 1, as in `Survey`


@FORMATS.register("own-json")
class OwnJSON(Format):
    """A survey in jaxalign's JSON format. Any JSON file that no other format recognises."""

    fallback = True

    def recognises(self, start: FileStart) -> bool:
        return start.is_json or (start.suffix == ".json" and bool(start.text))

    def read(self, path: Path) -> Survey:
        return read_own_json(path)

    def check(self, path: Path) -> tuple[list[str], Survey | None]:
        problems, survey = check_json(path)
        return [str(problem) for problem in problems], survey


@FORMATS.register("own-csv")
class OwnCSV(Format):
    """A survey as a table, with how groups answered in a second one."""

    takes_distributions = True

    def recognises(self, start: FileStart) -> bool:
        return start.has_columns(*COLUMNS)

    def read(self, path: Path, distributions: Path | str | None = None) -> Survey:
        return read_own_csv(path, distributions)

    def check(
        self, path: Path, distributions: Path | None = None
    ) -> tuple[list[str], Survey | None]:
        problems, survey = check_csv(path, distributions)
        return [str(problem) for problem in problems], survey


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    `place` is such as "line 3, column 14" in JSON and "row 3, column 'scale'" in CSV.
    """

    path: Path
    place: str
    message: str

    def __str__(self) -> str:
        place = f", {self.place}" if self.place else ""
        return f"{self.path}{place}: {' '.join(self.message.split())}"


TEMPLATE = (
    "id,text,options,topic\n"
    "q1,How often do you read?,1=never|2=sometimes|3=often,leisure\n"
    '"q2","Do you agree: work comes first, then leisure?",1=disagree|2=neither|3=agree,work\n'
)
SHARES_TEMPLATE = (
    "country,item,code,share\n"
    "CHN,q1,1,0.2\nCHN,q1,2,0.5\nCHN,q1,3,0.3\nCHN,q2,1,0.1\nCHN,q2,2,0.3\nCHN,q2,3,0.6\n"
    "USA,q1,1,0.1\nUSA,q1,2,0.4\nUSA,q1,3,0.5\nUSA,q2,1,0.4\nUSA,q2,2,0.3\nUSA,q2,3,0.3\n"
)


def write_template(path: Path) -> tuple[Path, Path]:
    """Write a survey in CSV to begin with, and beside it how two countries answered.

    Args:
        path: The survey's file, such as mine.csv; the answers become mine-answers.csv.

    Returns:
        Both paths.

    Raises:
        UserError: One of the files is there already, or its folder is not.
    """
    paths = path, path.with_name(f"{path.stem}-answers{path.suffix}")
    for each in paths:
        check_new_file(each, "template")
        if each.exists():
            raise UserError(f"`template` {each}: is there already; give another name")
    for each, text in zip(paths, (TEMPLATE, SHARES_TEMPLATE), strict=True):
        write_text(each, text)
    return paths


def read_own_json(path: Path | str) -> Survey:
    """Read a survey from JSON. Raise UserError with the first problem if there are any."""
    return _survey_or_raise(*check_json(Path(path)))


def read_own_csv(path: Path | str, distributions: Path | str | None = None) -> Survey:
    """Read a survey from CSV. Raise UserError with the first problem if there are any."""
    path, shares = Path(path), None if distributions is None else Path(distributions)
    return _survey_or_raise(*check_csv(path, shares))


def _survey_or_raise(problems: list[Problem], survey: Survey | None) -> Survey:
    if survey is None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return survey


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a survey file."""
    file = resources.files("jaxalign.surveys").joinpath("data/survey.schema.json")
    return json.loads(file.read_text("utf-8"))


def check_json(path: Path) -> tuple[list[Problem], Survey | None]:
    """Return everything that is wrong with a JSON survey, or else the survey."""
    text = read_text(path)
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        return [_at(path, error.lineno, error.colno, f"not JSON: {error.msg}")], None
    except (ValueError, RecursionError) as error:  # a number too long, or nested too deep
        return [Problem(path, "", f"not JSON ({error})")], None
    places = Places(text)
    problems = [
        _at(path, line, column, f"the field {shown(key)} is there twice; keep one")
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
    """Return what no schema can express: repeated ids and codes, shares that do not fit."""
    problems: list[tuple[tuple[str | int, ...], str]] = []
    options_of: dict[str, int] = {}
    for i, row in enumerate(fields["items"]):
        labels = tuple(option["label"] for option in row["options"])
        codes = tuple(option["code"] for option in row["options"])
        if row["id"] in options_of:
            problems.append((("items", i, "id"), f"id {shown(row['id'])} repeats"))
        options_of[row["id"]] = len(labels)
        try:
            Item(row["id"], row["text"], labels, codes, row.get("scale", "ordinal"))
        except UserError as error:
            problems.append((("items", i, "options"), str(error)))
    for group, answers in fields.get("distributions", {}).items():
        if not group.strip():
            problems.append((("distributions", group), "the group has no name"))
        for item, shares in answers.items():
            where = ("distributions", group, item)
            if item not in options_of:
                problems.append((where, f"there is no item {shown(item)}"))
            elif len(shares) != options_of[item]:
                problems.append((where, f"{len(shares)} shares for {options_of[item]} options"))
            elif not abs(math.fsum(shares) - 1) <= _TOLERANCE:
                problems.append((where, f"shares sum to {math.fsum(shares):g}, not to 1"))
    return problems


def check_csv(path: Path, shares: Path | None = None) -> tuple[list[Problem], Survey | None]:
    """Return everything that is wrong with a CSV survey and its shares, or else the survey."""
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
        share_problems, distributions = _check_shares(shares, items, row_of)
        problems += share_problems
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
        problems.append(_in(path, row, "scale", f"{shown(scale)}; choose ordinal or nominal"))
    codes, labels = [], []
    for option in cells["options"].split("|") if cells["options"].strip() else ():
        code, equals, label = (piece.strip() for piece in option.partition("="))
        try:
            codes.append(int(code))
            labels.append(label)
        except ValueError:
            equals = ""
        if not equals or not label:
            message = f"{shown(option)} is not code=label with a whole number for a code"
            problems.append(_in(path, row, "options", message))
    if problems:
        return None, problems
    text = cells["text"].strip()
    topic, stem = ((cells.get(name) or "").strip() for name in ("topic", "stem"))
    try:
        return Item(id, text, tuple(labels), tuple(codes), scale, topic, stem), []
    except UserError as error:
        return None, [_in(path, row, "options", str(error))]


def _check_shares(
    path: Path, items: dict[str, Item], row_of: dict[str, int]
) -> tuple[list[Problem], dict[str, dict[str, tuple[float, ...]]]]:
    """Return what is wrong with a table of shares, and the shares by group and item."""
    problems: list[Problem] = []
    shares: dict[tuple[str, str], dict[int, float]] = {}
    last_row: dict[tuple[str, str], int] = {}
    table = read_table(path, SHARE_COLUMNS, others=GROUP_COLUMNS)
    names = [name for name in GROUP_COLUMNS if name in table.columns]
    if len(names) != 1:
        raise bad(path, f"give one of the columns {' and '.join(GROUP_COLUMNS)}", row=1)
    for row, cells in table.rows:
        group, id = cells[names[0]].strip(), cells["item"].strip()
        if not group:
            problems.append(_in(path, row, names[0], "the cell is empty"))
            continue
        problem = _share_problem(path, row, cells, items, row_of, shares.get((group, id), {}))
        if problem is not None:
            problems.append(problem)
        elif id in items:
            shares.setdefault((group, id), {})[_code(cells)] = _number(cells["share"])
            last_row[group, id] = row
    distributions: dict[str, dict[str, tuple[float, ...]]] = {}
    for (group, id), by_code in shares.items():
        # A sum can only be judged if no row was left out of it.
        total = math.fsum(by_code.values())
        if abs(total - 1) > _TOLERANCE and not problems:
            message = f"the shares of {group} and {id} sum to {total:g}, not to 1"
            problems.append(_in(path, last_row[group, id], "share", message))
        answers = distributions.setdefault(group, {})
        answers[id] = tuple(by_code.get(code, 0.0) for code in items[id].codes)
    return problems, distributions


def _number(text: str) -> float:
    """Return a cell's number, also with a decimal comma. Raise ValueError if it is none."""
    return float(text.replace(",", ".") if "." not in text else text)


def _code(cells: dict[str, str]) -> int:
    """Return the code of a row, also written as 1.0. Raise ValueError unless it is whole."""
    number = _number(cells["code"])
    if not number.is_integer():  # nor are nan and infinity
        raise ValueError(number)
    return int(number)


def _share_problem(
    path: Path,
    row: int,
    cells: dict[str, str],
    items: dict[str, Item],
    row_of: dict[str, int],
    earlier: dict[int, float],
) -> Problem | None:
    """Return what is wrong with one row of shares, None if nothing is.

    `earlier` holds the shares of the same group and item so far, by code.
    """
    id = cells["item"].strip()
    if id not in row_of:
        return _in(path, row, "item", f"there is no item {shown(id)}")
    if id not in items:
        return None  # the item's own row is wrong, which is reported there
    try:
        code = _code(cells)
    except ValueError:
        return _in(path, row, "code", f"{shown(cells['code'])} is not a whole number")
    if code not in items[id].codes:
        message = f"code {code} is not one of item {id}'s codes {list(items[id].codes)}"
        return _in(path, row, "code", message)
    if code in earlier:
        return _in(path, row, "code", f"code {code} of item {id} is there already")
    try:
        share = _number(cells["share"])
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        return _in(path, row, "share", f"{shown(cells['share'])} is not a number from 0 to 1")
    return None
