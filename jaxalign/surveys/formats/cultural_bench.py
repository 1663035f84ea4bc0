"""CulturalBench, Easy and Hard (Chiu et al. 2024, arXiv 2410.02677), from the user's CSV.

Easy: question_idx, prompt_question, prompt_option_a ... prompt_option_d, answer (letter), country.
Hard: question_idx, prompt_question, prompt_option, answer (true or false), country; four rows a
question, which is right only when all four are. Scored row by row, someone who always says false
would reach about 75 %.
"""

from __future__ import annotations

from pathlib import Path

from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import FileStart, bad, read_table, shown
from jaxalign.surveys.formats.multiple_choice import answer_index, make_item
from jaxalign.surveys.survey import Item

_OPTION_COLUMNS = tuple(f"prompt_option_{letter}" for letter in "abcd")
EASY_COLUMNS = ("prompt_question", *_OPTION_COLUMNS, "answer", "country")
HARD_COLUMNS = ("question_idx", "prompt_question", "prompt_option", "answer", "country")
_SOURCE = "CulturalBench (arXiv 2410.02677), the user's own file"


@FORMATS.register("cultural-bench-easy")
class CulturalBenchEasy(Format):
    """Questions with four options."""

    def recognises(self, start: FileStart) -> bool:
        return start.has_columns(*EASY_COLUMNS)

    def read(self, path: Path) -> ChoiceTest:
        return read_cultural_bench_easy(path)


@FORMATS.register("cultural-bench-hard")
class CulturalBenchHard(Format):
    """Questions of four proposed answers, each to be judged true or false."""

    def recognises(self, start: FileStart) -> bool:
        return start.has_columns(*HARD_COLUMNS)

    def read(self, path: Path) -> ChoiceTest:
        return read_cultural_bench_hard(path)


def read_cultural_bench_easy(path: Path | str) -> ChoiceTest:
    """Read CulturalBench Easy, which has four options a question.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    items: list[Item] = []
    answers, countries = [], []
    row_of: dict[str, int] = {}
    for row, cells in read_table(path, EASY_COLUMNS).rows:
        _check_filled(path, row, cells, EASY_COLUMNS)
        id = cells.get("question_idx") or str(row)
        if id in row_of:
            message = f"question {id} is in row {row_of[id]} already"
            raise bad(path, message, row, "question_idx")
        row_of[id] = row
        options = tuple(cells[name] for name in _OPTION_COLUMNS)
        items.append(make_item(path, row, id, cells["prompt_question"], options, cells["country"]))
        answers.append(answer_index(path, row, cells["answer"], 4))
        countries.append(cells["country"])
    ids = tuple(item.id for item in items)
    return ChoiceTest(
        "CulturalBench Easy", _SOURCE, tuple(items), tuple(answers), tuple(countries), ids
    )


def read_cultural_bench_hard(path: Path | str) -> ChoiceTest:
    """Read CulturalBench Hard as items to be judged true (option 0) or false (option 1).

    An item's stem is the question and its text one proposed answer. `groups` holds the question
    that each item belongs to.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    items: list[Item] = []
    answers, countries, groups = [], [], []
    rows_of: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for row, cells in read_table(path, HARD_COLUMNS).rows:
        _check_filled(path, row, cells, HARD_COLUMNS)
        group = cells["question_idx"]
        earlier_rows = rows_of.setdefault(group, [])
        _check_same_question(path, row, cells, earlier_rows)
        earlier_rows.append((row, cells))
        id, country = f"{group}-{len(earlier_rows)}", cells["country"]
        text, stem = cells["prompt_option"], cells["prompt_question"]
        items.append(make_item(path, row, id, text, ("true", "false"), country, stem))
        answers.append(_true_or_false(path, row, cells["answer"]))
        countries.append(country)
        groups.append(group)
    for group, rows in rows_of.items():
        if len(rows) != 4:
            message = f"question {group} has {len(rows)} rows; a question has four"
            raise bad(path, message, rows[-1][0], "question_idx")
    return ChoiceTest(
        "CulturalBench Hard", _SOURCE, tuple(items), tuple(answers), tuple(countries), tuple(groups)
    )


def _check_filled(path: Path, row: int, cells: dict[str, str], columns: tuple[str, ...]) -> None:
    for name in columns:
        if not cells[name].strip():
            raise bad(path, "the cell is empty", row, name)


def _check_same_question(
    path: Path, row: int, cells: dict[str, str], earlier_rows: list[tuple[int, dict[str, str]]]
) -> None:
    """Raise UserError unless the rows of a question share its text and country, and propose
    different answers."""
    for other, earlier in earlier_rows:
        for name in ("prompt_question", "country"):
            if cells[name] != earlier[name]:
                message = f"{shown(cells[name])} differs from row {other} of the same question"
                raise bad(path, message, row, name)
        if cells["prompt_option"] == earlier["prompt_option"]:
            raise bad(path, f"the same as in row {other}", row, "prompt_option")


def _true_or_false(path: Path, row: int, answer: str) -> int:
    try:
        return {"true": 0, "1": 0, "false": 1, "0": 1}[answer.strip().lower()]
    except KeyError:
        raise bad(path, f"{shown(answer)} is neither true nor false", row, "answer") from None
