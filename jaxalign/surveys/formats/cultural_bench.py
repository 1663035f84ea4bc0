"""CulturalBench, Easy and Hard (Chiu et al. 2024, arXiv 2410.02677), from the user's file.

CSV as published, JSON, JSON lines or parquet; columns are found whatever their case.

Easy: question_idx, prompt_question, prompt_option_a ... prompt_option_d, answer (letter), country.
Hard: question_idx, prompt_question, prompt_option, answer (true or false), country; four rows a
question, which is right only when all four are. Scored row by row, someone who always says false
would reach about 75 %.

What cannot be asked is left out and counted in the test's `notes`: a question with an empty option
(tools that read "None" as a missing value make one). So are questions with more or fewer than one
true row, which are kept: the rule of all four holds for them too. Questions of fewer than four
rows, as a cut of the file may have, are kept and counted; they are easier to get wholly right.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, shown
from jaxalign.surveys.formats.multiple_choice import answer_index, make_item
from jaxalign.surveys.formats.records import Row, as_text, columns_of, read_records
from jaxalign.surveys.names import find_country
from jaxalign.surveys.survey import Item

EASY = "CulturalBench Easy"
HARD = "CulturalBench Hard"
TRUE, FALSE = 0, 1  # positions of the two options of a row of Hard

_OPTION_COLUMNS = tuple(f"prompt_option_{letter}" for letter in "abcd")
EASY_COLUMNS = ("prompt_question", *_OPTION_COLUMNS, "answer", "country")
HARD_COLUMNS = ("question_idx", "prompt_question", "prompt_option", "answer", "country")
_SOURCE = "CulturalBench (arXiv 2410.02677), the user's own file"
_MOST_NAMES = 5  # questions that a note names


@FORMATS.register("cultural-bench-easy")
class CulturalBenchEasy(Format):
    """Questions with four options."""

    def recognises(self, start: FileStart) -> bool:
        return set(EASY_COLUMNS) <= set(columns_of(start))

    def read(self, path: Path) -> ChoiceTest:
        return read_cultural_bench_easy(path)


@FORMATS.register("cultural-bench-hard")
class CulturalBenchHard(Format):
    """Questions of four proposed answers, each to be judged true or false."""

    def recognises(self, start: FileStart) -> bool:
        return set(HARD_COLUMNS) <= set(columns_of(start))

    def read(self, path: Path) -> ChoiceTest:
        return read_cultural_bench_hard(path)


def read_cultural_bench_easy(path: Path | str) -> ChoiceTest:
    """Read CulturalBench Easy, which has four options a question.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    items: list[Item] = []
    answers, countries, left_out = [], [], []
    row_of: dict[str, int] = {}
    for row, cells in _rows(path, EASY_COLUMNS, may_be_empty=_OPTION_COLUMNS):
        id = cells.get("question_idx") or str(row)
        if id in row_of:
            message = f"question {id} is in row {row_of[id]} already"
            raise bad(path, message, row, "question_idx")
        row_of[id] = row
        options = tuple(cells[name] for name in _OPTION_COLUMNS)
        answer = answer_index(path, row, cells["answer"], 4)
        if not all(options):
            left_out.append(id)
            continue
        items.append(make_item(path, row, id, cells["prompt_question"], options, cells["country"]))
        answers.append(answer)
        countries.append(cells["country"])
    _check_any(path, items)
    ids = tuple(item.id for item in items)
    notes = _empty_options(left_out)
    return ChoiceTest(EASY, _SOURCE, tuple(items), tuple(answers), tuple(countries), ids, notes)


def read_cultural_bench_hard(path: Path | str) -> ChoiceTest:
    """Read CulturalBench Hard as items to be judged true (option 0) or false (option 1).

    An item's stem is the question and its text one proposed answer. `groups` holds the question
    that each item belongs to.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    questions: dict[str, list[Row]] = {}
    for row, cells in _rows(path, HARD_COLUMNS, may_be_empty=("prompt_option",)):
        earlier = questions.setdefault(cells["question_idx"], [])
        _check_same_question(path, row, cells, earlier)
        truth = _true_or_false(path, row, cells["answer"])
        earlier.append((row, cells | {"truth": truth}))
    items: list[Item] = []
    answers, countries, groups = [], [], []
    left_out, short, not_one_true, repeated = [], [], [], []
    for question, rows in questions.items():
        if len(rows) > 4:
            message = f"question {question} has {len(rows)} rows; a question has four"
            raise bad(path, message, rows[-1][0], "question_idx")
        truths = [cells["truth"] for _, cells in rows]
        options = [cells["prompt_option"] for _, cells in rows]
        if not all(options):
            left_out.append(question)
            continue
        if len(rows) < 4:
            short.append(question)
        elif truths.count(TRUE) != 1:
            not_one_true.append(question)
        if len(set(options)) < len(rows):
            repeated.append(question)
        for n, (row, cells) in enumerate(rows, 1):
            text, stem, country = options[n - 1], cells["prompt_question"], cells["country"]
            id = f"{question}-{n}"
            items.append(make_item(path, row, id, text, ("true", "false"), country, stem))
            answers.append(truths[n - 1])
            countries.append(country)
            groups.append(question)
    _check_any(path, items)
    notes = (
        *_empty_options(left_out),
        *_counted(short, "fewer than four rows", "kept, though easier to get wholly right"),
        *_counted(not_one_true, "another number of true rows than one", "kept"),
        *_counted(repeated, "the same proposed answer twice", "kept"),
    )
    return ChoiceTest(
        HARD, _SOURCE, tuple(items), tuple(answers), tuple(countries), tuple(groups), notes
    )


# Countries


def country_code(name: str) -> str:
    """Return the ISO 3166 alpha-3 code of a country, or a name that is no country's as it is.

    >>> country_code("South Korea"), country_code("Atlantis")
    ('KOR', 'Atlantis')
    """
    name = name.strip()
    if name.casefold() in _countries():
        return _countries()[name.casefold()][0]
    return find_country(name) or name


def region_of(name: str) -> str | None:
    """Return the region that CulturalBench counts a country to; None for another country.

    >>> region_of("Peru"), region_of("PER"), region_of("Atlantis")
    ('South America', 'South America', None)
    """
    return _countries().get(name.strip().casefold(), ("", None))[1]


@functools.cache
def _countries() -> dict[str, tuple[str, str]]:
    """Return code and region by name, and by code, both case-folded."""
    text = (
        resources.files("jaxalign.surveys").joinpath("data/cultural_bench.csv").read_text("utf-8")
    )
    found: dict[str, tuple[str, str]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        for name in (row["iso3"], row["name"], *filter(None, row["also"].split("|"))):
            found[name.casefold()] = row["iso3"], row["region"]
    return found


# Rows


def _rows(path: Path, columns: Sequence[str], may_be_empty: Sequence[str]) -> list[Row]:
    """Return the rows with the text of each cell; raise UserError for an empty one."""
    rows = []
    for row, values in read_records(path, columns):
        cells = {name: as_text(value) for name, value in values.items()}
        for name in columns:
            if not cells[name] and name not in may_be_empty:
                raise bad(path, "the cell is empty", row, name)
        rows.append((row, cells))
    return rows


def _check_same_question(
    path: Path, row: int, cells: dict[str, Any], earlier_rows: Sequence[Row]
) -> None:
    """Raise UserError unless the rows of a question share its text and country."""
    for other, earlier in earlier_rows:
        for name in ("prompt_question", "country"):
            if cells[name].split() != earlier[name].split():
                message = f"{shown(cells[name])} differs from row {other} of the same question"
                raise bad(path, message, row, name)


def _true_or_false(path: Path, row: int, answer: str) -> int:
    try:
        return {"true": TRUE, "1": TRUE, "false": FALSE, "0": FALSE}[answer.lower()]
    except KeyError:
        raise bad(path, f"{shown(answer)} is neither true nor false", row, "answer") from None


def _check_any(path: Path, items: Sequence[Item]) -> None:
    if not items:
        raise bad(path, "every question has an empty option, so there is nothing to ask")


def _empty_options(questions: Sequence[str]) -> tuple[str, ...]:
    return _counted(questions, "an empty option", "left out")


def _counted(questions: Sequence[str], what: str, done: str) -> tuple[str, ...]:
    """Return a note such as "2 questions have an empty option and are left out: 7, 12"."""
    if not questions:
        return ()
    one = len(questions) == 1
    subject, verb = ("question has", "is") if one else ("questions have", "are")
    names = [*questions[:_MOST_NAMES], *(["..."] if len(questions) > _MOST_NAMES else [])]
    return (f"{len(questions)} {subject} {what} and {verb} {done}: {', '.join(names)}",)
