"""Questions with one right answer: MMLU-style CSV and JSON lines, and the type they are read into.

CSV: columns question, A, B, C, D (more letters, up to J, where there are more options) and answer,
a letter; `subject` or `topic` may be there. Without a header: six columns in that order. JSON
lines, or one JSON list: {"question", "choices": [...], "answer": letter or index from 0} or
{"question", "A", "B", "C", "D", "answer": letter}, and "subject" where wanted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import (
    DELIMITERS,
    bad,
    check_width,
    header_of,
    iter_rows,
    read_table,
    read_text,
    shown,
)  # fmt: skip
from jaxalign.surveys.formats.json_file import parse_json
from jaxalign.surveys.survey import Item

LETTERS = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True)
class ChoiceTest:
    """Items with a right answer each. `answers[i]` is the index of the right option of `items[i]`.

    Items of the same group count together: the group is right only when all of them are
    (CulturalBench Hard). Elsewhere every item is a group of its own. `countries[i]` is the place
    that a question is about, as the file spells it; "" where it says nothing.
    """

    name: str
    source: str
    items: tuple[Item, ...]
    answers: tuple[int, ...]
    countries: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = [len(x) for x in (self.items, self.answers, self.countries, self.groups)]
        if len(set(lengths)) != 1 or not self.items:
            raise UserError(f"test {self.name!r}: {lengths} items, answers, countries and groups")

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of everything that a score depends on."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Question:
    """One question on its way into a ChoiceTest."""

    row: int
    text: str
    options: tuple[str, ...]
    answer: str | int
    topic: str = ""


def read_multiple_choice(path: Path | str) -> ChoiceTest:
    """MMLU-style questions. Raises UserError naming file, row and column."""
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
    """Whether the first row has six cells of which the last is an answer's letter."""
    rows = [header_of(text, delimiter) for delimiter in DELIMITERS]
    return any(len(row) == 6 and row[5].strip() in tuple("ABCD") for row in rows)


def answer_index(path: Path, row: int, answer: str | int, options: int) -> int:
    """The index of an answer given as a letter, or as an index from 0."""
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer.strip()) if len(answer) < 3 else -1
    letters = LETTERS[:options]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip() in letters:
        return letters.index(answer.strip())
    if type(answer) is int and 0 <= answer < options:
        return answer
    message = f"{shown(answer)} is no answer; one of {' '.join(letters)}, or 0...{options - 1}"
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
            row, cells["question"], tuple(cells[letter] for letter in letters), cells["answer"],
            cells.get("subject") or cells.get("topic") or "",
        )
        for row, cells in table.rows
    ]  # fmt: skip


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
        raise bad(path, f"{shown(fields)} is no JSON object", row)
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
    return make_item(path, question.row, f"q{question.row}", question.text, question.options,
                     topic=question.topic)  # fmt: skip


def make_item(
    path: Path, row: int, id: str, text: str, options: tuple[str, ...], topic: str, stem: str = ""
) -> Item:
    """A nominal item; what is wrong with it is told with its row."""
    try:
        for part in (id, text, topic, stem, *options):
            part.encode()  # JSON also spells lone surrogates, which no file can hold
        codes = tuple(range(1, len(options) + 1))
        return Item(id, text, options, codes, "nominal", topic, stem)
    except (UserError, UnicodeEncodeError) as error:
        raise bad(path, str(error), row) from None
