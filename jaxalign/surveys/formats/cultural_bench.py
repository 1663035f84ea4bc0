"""CulturalBench, Easy and Hard (Chiu et al. 2024, arXiv 2410.02677), from the user's CSV.

Easy: question_idx, prompt_question, prompt_option_a ... prompt_option_d, answer (letter), country.
Hard: question_idx, prompt_question, prompt_option, answer (true or false), country; four rows a
question, which is right only when all four are: rows scored apart would give about 75 % to whoever
always says false.
"""

from __future__ import annotations

from pathlib import Path

from jaxalign.surveys.formats.files import bad, read_table, shown
from jaxalign.surveys.formats.multiple_choice import ChoiceTest, answer_index, make_item
from jaxalign.surveys.survey import Item

EASY_COLUMNS = (
    "prompt_question", "prompt_option_a", "prompt_option_b", "prompt_option_c", "prompt_option_d",
    "answer", "country",
)  # fmt: skip
HARD_COLUMNS = ("question_idx", "prompt_question", "prompt_option", "answer", "country")
_SOURCE = "CulturalBench (arXiv 2410.02677), the user's own file"


def read_cultural_bench_easy(path: Path | str) -> ChoiceTest:
    """Four options a question. Raises UserError naming file, row and column."""
    path = Path(path)
    items: list[Item] = []
    answers, countries = [], []
    row_of: dict[str, int] = {}
    for row, cells in read_table(path, EASY_COLUMNS).rows:
        _check_filled(path, row, cells, EASY_COLUMNS)
        id = cells.get("question_idx") or str(row)
        if id in row_of:
            raise bad(path, f"question {id} is in row {row_of[id]} already", row, "question_idx")
        row_of[id] = row
        options = tuple(cells[name] for name in EASY_COLUMNS[1:5])
        items.append(make_item(path, row, id, cells["prompt_question"], options, cells["country"]))
        answers.append(answer_index(path, row, cells["answer"], 4))
        countries.append(cells["country"])
    ids = tuple(item.id for item in items)
    return ChoiceTest(
        "CulturalBench Easy", _SOURCE, tuple(items), tuple(answers), tuple(countries), ids
    )


def read_cultural_bench_hard(path: Path | str) -> ChoiceTest:
    """Items to be judged true (option 0) or false (1): the question is the stem, one proposed
    answer the text. `groups` holds the question that each belongs to."""
    path = Path(path)
    items: list[Item] = []
    answers, countries, groups = [], [], []
    rows_of: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for row, cells in read_table(path, HARD_COLUMNS).rows:
        _check_filled(path, row, cells, HARD_COLUMNS)
        group = cells["question_idx"]
        together = rows_of.setdefault(group, [])
        _check_same_question(path, row, cells, together)
        together.append((row, cells))
        id, country = f"{group}-{len(together)}", cells["country"]
        text, stem = cells["prompt_option"], cells["prompt_question"]
        items.append(make_item(path, row, id, text, ("true", "false"), country, stem))
        answers.append(_true_or_false(path, row, cells["answer"]))
        countries.append(country)
        groups.append(group)
    for group, together in rows_of.items():
        if len(together) != 4:
            message = f"question {group} has {len(together)} rows; a question has four"
            raise bad(path, message, together[-1][0], "question_idx")
    return ChoiceTest(
        "CulturalBench Hard", _SOURCE, tuple(items), tuple(answers), tuple(countries), tuple(groups)
    )


def _check_filled(path: Path, row: int, cells: dict[str, str], columns: tuple[str, ...]) -> None:
    for name in columns:
        if not cells[name].strip():
            raise bad(path, "the cell is empty", row, name)


def _check_same_question(
    path: Path, row: int, cells: dict[str, str], together: list[tuple[int, dict[str, str]]]
) -> None:
    """Rows of one question share its text and country, and propose different answers."""
    for other, earlier in together:
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
