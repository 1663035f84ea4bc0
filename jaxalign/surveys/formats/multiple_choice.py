"""Multiple-choice questions with one right answer, as MMLU has them: CSV and JSON lines.

CSV: columns question, A, B, C, D (and more letters, up to J, if there are more options) and
answer, a letter; a column `subject` or `topic` is optional. A file without a header has six columns
in that order. JSON lines, or one JSON list of objects: {"question", "choices": [...], "answer":
letter or index from 0} or {"question", "A", "B", "C", "D", "answer": letter}; "subject" is
optional.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.files import (
    DELIMITERS,
    FileStart,
    bad,
    check_width,
    header_of,
    iter_rows,
    parse_json,
    read_table,
    read_text,
    shown,
)
from jaxalign.surveys.survey import Item

LETTERS = "ABCDEFGHIJ"


@FORMATS.register("multiple-choice")
class MultipleChoice(Format):
    """Questions with one right answer among lettered options."""

    def recognises(self, start: FileStart) -> bool:
        if start.is_json:
            return _is_json_lines(start) or _is_json_list_of_answers(start)
        if start.has_columns("question", "A", "B", "answer"):
            return True
        return start.suffix != ".json" and is_headerless(start.text)

    def read(self, path: Path) -> ChoiceTest:
        return read_multiple_choice(path)


def _is_json_lines(start: FileStart) -> bool:
    if start.suffix == ".jsonl":
        return True
    try:
        fields = json.loads(start.text.lstrip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and "question" in fields


def _is_json_list_of_answers(start: FileStart) -> bool:
    return start.text.lstrip().startswith("[") and '"answer"' in start.text


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as a file has it, before its answer is checked."""

    row: int
    text: str
    options: tuple[str, ...]
    answer: str | int
    topic: str = ""


def read_multiple_choice(path: Path | str) -> ChoiceTest:
    """Read multiple-choice questions from CSV or JSON.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    text = read_text(path)
    questions = _questions(path, text)
    if not questions:
        raise bad(path, "there are no questions")
    items = [_item(path, question) for question in questions]
    answers = [answer_index(path, q.row, q.answer, len(q.options)) for q in questions]
    ids = tuple(item.id for item in items)
    return ChoiceTest(
        path.stem, "the user's own file", tuple(items), tuple(answers), ("",) * len(ids), ids
    )


def _questions(path: Path, text: str) -> list[Question]:
    if path.suffix.lower() == ".jsonl" or text.lstrip().startswith("{"):
        return _from_json_lines(path, text)
    if text.lstrip().startswith("["):
        return [_fields(path, n, row) for n, row in enumerate(parse_json(text, str(path)), 1)]
    return _from_csv(path, text)


def is_headerless(text: str) -> bool:
    """Return whether the first row has six cells, the last of which is an answer's letter."""
    rows = [header_of(text, delimiter) for delimiter in DELIMITERS]
    return any(len(row) == 6 and row[5].strip() in tuple("ABCD") for row in rows)


def answer_index(path: Path, row: int, answer: str | int, options: int) -> int:
    """Return the position of an answer given as a letter, or as a position from 0."""
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer.strip()) if len(answer) < 3 else -1
    letters = LETTERS[:options]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip() in letters:
        return letters.index(answer.strip())
    if type(answer) is int and 0 <= answer < options:
        return answer
    message = f"{shown(answer)} is no answer; give one of {' '.join(letters)}, or 0...{options - 1}"
    raise bad(path, message, row, "answer")


def _from_csv(path: Path, text: str) -> list[Question]:
    if is_headerless(text):
        delimiter = next(d for d in DELIMITERS if len(header_of(text, d)) == 6)
        return [_cells(path, row, cells) for row, cells in iter_rows(path, text, delimiter)]
    needed = ("question", "A", "B", "answer")
    table = read_table(path, needed, text)
    letters = [letter for letter in LETTERS if letter in table.columns]
    if letters != list(LETTERS[: len(letters)]):
        raise bad(path, f"the options' columns are {' '.join(letters)}; leave no letter out", 1)
    return [
        Question(
            row,
            cells["question"],
            tuple(cells[letter] for letter in letters),
            cells["answer"],
            cells.get("subject") or cells.get("topic") or "",
        )
        for row, cells in table.rows
    ]


def _cells(path: Path, row: int, cells: list[str]) -> Question:
    check_width(path, row, len(cells), 6)
    return Question(row, cells[0], tuple(cells[1:5]), cells[5])


def _from_json_lines(path: Path, text: str) -> list[Question]:
    questions = []
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad(path, f"not JSON ({error}); one object a line", row) from None
        questions.append(_fields(path, row, fields))
    return questions


def _fields(path: Path, row: int, fields: Any) -> Question:
    if not isinstance(fields, dict):
        raise bad(path, f"{shown(fields)} is not a JSON object", row)
    for name in ("question", "answer"):
        if name not in fields:
            raise bad(path, "the field is absent", row, name)
    choices = fields.get("choices", fields.get("options"))
    if choices is None:
        choices = [fields[letter] for letter in LETTERS if letter in fields]
    texts = [fields["question"], fields.get("subject", ""), *_list(choices)]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in texts):
        message = f"question and subject must be text and choices a list of text: {shown(fields)}"
        raise bad(path, message, row)
    return Question(row, texts[0], tuple(choices), fields["answer"], texts[1])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _item(path: Path, question: Question) -> Item:
    if len(question.options) > len(LETTERS):
        raise bad(path, f"{len(question.options)} options; at most {len(LETTERS)}", question.row)
    for letter, option in zip(LETTERS, question.options, strict=False):
        if not option.strip():
            raise bad(path, "the option is empty", question.row, letter)
    id = f"q{question.row}"
    return make_item(path, question.row, id, question.text, question.options, question.topic)


def make_item(
    path: Path, row: int, id: str, text: str, options: tuple[str, ...], topic: str, stem: str = ""
) -> Item:
    """Return a nominal item. Raise UserError, which names the row, if something is wrong."""
    try:
        for value in (id, text, topic, stem, *options):
            value.encode()  # JSON also spells lone surrogates, which no file can hold
        codes = tuple(range(1, len(options) + 1))
        return Item(id, text, options, codes, "nominal", topic, stem)
    except (UserError, UnicodeEncodeError) as error:
        raise bad(path, str(error), row) from None
