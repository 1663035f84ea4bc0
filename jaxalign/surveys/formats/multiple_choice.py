"""Multiple-choice questions with one right answer, as MMLU has them: CSV, JSON or parquet.

CSV: columns question, A, B, C, D (and more letters, up to J, if there are more options) and
answer, a letter; or question, choices (a list as Python or numpy prints it) and answer. A column
`subject`, `topic` or `category` is optional. A file without a header has six columns in the first
order. JSON lines, one JSON list of objects, and parquet: {"question", "choices": [...], "answer":
letter or index from 0} or {"question", "A", "B", "C", "D", "answer": letter}. Columns and letters
may be in upper or lower case. Choices may have labels of their own, as ARC's have: {"text": [...],
"label": [...]} or {"A": ..., "B": ...}; the answer, also called `answerKey`, is then one of these.

A passage that the question is about (`passage`, `article`, `context`, `paragraph`, `story`) is
shown before it. Any other field is named in the test's `notes`, for no model will see it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
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
    read_text,
    shown,
)
from jaxalign.surveys.formats.records import (
    as_list,
    as_text,
    columns_of,
    is_parquet,
    read_records,
)
from jaxalign.surveys.survey import Item

LETTERS = "ABCDEFGHIJ"

_CHOICES = ("choices", "options")
_ANSWERS = ("answer", "answerkey", "answer_key")
_SUBJECTS = ("subject", "topic", "category")
_PASSAGES = ("passage", "article", "context", "paragraph", "story")
# Fields that say which question it is, and nothing that a reader of the question needs.
_LABELS = ("", "unnamed: 0", "id", "idx", "index", "question_id", "split", "source")
_KNOWN = {"question", *_ANSWERS, *LETTERS.lower(), *_CHOICES, *_SUBJECTS, *_PASSAGES, *_LABELS}


@FORMATS.register("multiple-choice")
class MultipleChoice(Format):
    """Questions with one right answer among lettered options."""

    def recognises(self, start: FileStart) -> bool:
        columns = set(columns_of(start))
        if start.is_json:
            # What no other format knows, too: a message about JSON lines says more than
            # "not recognised".
            return ("question" in columns and "selections" not in columns) or (
                start.suffix == ".jsonl" and not columns
            )
        if "question" in columns and columns & {*_ANSWERS}:
            return {"a", "b"} <= columns or bool(columns & {*_CHOICES})
        return start.suffix != ".json" and is_headerless(start.text)

    def read(self, path: Path) -> ChoiceTest:
        return read_multiple_choice(path)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as a file has it, before its answer is checked."""

    row: int
    text: str
    options: tuple[str, ...]
    answer: Any
    topic: str = ""
    passage: str = ""


def read_multiple_choice(path: Path | str) -> ChoiceTest:
    """Read multiple-choice questions from CSV, JSON or parquet.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    text = None if is_parquet(path) else read_text(path)
    notes: tuple[str, ...] = ()
    if text is not None and not text.lstrip().startswith(("{", "[")) and is_headerless(text):
        questions = _without_header(path, text)
    else:
        first = columns_of(FileStart(path))
        key = next((name for name in _ANSWERS if name in first), "answer")
        rows = read_records(path, ("question", key), text)
        questions = [_question(path, row, cells) for row, cells in rows]
        notes = _unused_fields(sorted({name for _, cells in rows for name in cells} - _KNOWN))
    items = [_item(path, question) for question in questions]
    answers = [answer_index(path, q.row, q.answer, len(q.options)) for q in questions]
    ids = tuple(item.id for item in items)
    places = ("",) * len(ids)
    source = "the user's own file"
    return ChoiceTest(path.stem, source, tuple(items), tuple(answers), places, ids, notes)


def is_headerless(text: str) -> bool:
    """Return whether the first row has six cells, the last of which is an answer's letter."""
    rows = [header_of(text, delimiter) for delimiter in DELIMITERS]
    return any(len(row) == 6 and row[5].strip().upper() in tuple("ABCD") for row in rows)


def answer_index(path: Path, row: int, answer: Any, options: int) -> int:
    """Return the position of an answer given as a letter of any case, or as a position from 0."""
    letters = LETTERS[:options]
    text = as_text(answer).upper()
    if lettered := re.fullmatch(r"\(?([A-J])[.):]?\)?", text):  # "(B)", "B."
        text = lettered[1]
    if not isinstance(answer, bool):
        if len(text) == 1 and text in letters:
            return letters.index(text)
        if text.isascii() and text.isdigit() and len(text) < 3 and int(text) < options:
            return int(text)
    message = f"{shown(answer)} is no answer; give one of {' '.join(letters)}, or 0...{options - 1}"
    raise bad(path, message, row, "answer")


def _without_header(path: Path, text: str) -> list[Question]:
    delimiter = next(d for d in DELIMITERS if len(header_of(text, d)) == 6)
    questions = []
    for row, cells in iter_rows(path, text, delimiter):
        check_width(path, row, len(cells), 6)
        questions.append(Question(row, cells[0], tuple(cells[1:5]), cells[5]))
    return questions


def _question(path: Path, row: int, cells: dict[str, Any]) -> Question:
    texts = {
        name: cells[name]
        for name in ("question", *_SUBJECTS, *_PASSAGES)
        if cells.get(name) is not None
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise bad(path, f"{shown(text)} is not text", row, name)
    topic = next((texts[name] for name in _SUBJECTS if texts.get(name)), "")
    passages = [texts[name].strip() for name in _PASSAGES if texts.get(name, "").strip()]
    options, labels = _options(path, row, cells)
    answer = next((cells[name] for name in _ANSWERS if cells.get(name) is not None), None)
    if as_text(answer) in labels:
        answer = LETTERS[labels.index(as_text(answer))]
    return Question(row, texts.get("question", ""), options, answer, topic, "\n\n".join(passages))


def _options(
    path: Path, row: int, cells: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options of a row, from its list or from its lettered columns, and their labels.

    There are no labels where letters count the options.
    """
    for name in _CHOICES:
        if cells.get(name) is not None:
            options, labels = cells[name], []
            if isinstance(options, dict) and {"text", "label"} <= options.keys():
                options, labels = options["text"], options["label"]
            elif isinstance(options, dict):
                labels, options = list(options), list(options.values())
            options, labels = as_list(options), as_list(labels)
            if options is None or labels is None or len(labels) not in (0, len(options)):
                raise bad(path, f"{shown(cells[name])} is not a list of text", row, name)
            if len(options) > len(LETTERS):
                raise bad(path, f"{len(options)} options; at most {len(LETTERS)}", row)
            return tuple(options), tuple(labels)
    # JSON has no field, and parquet a null, where a question has fewer options than others.
    there = [letter for letter in LETTERS if cells.get(letter.lower()) is not None]
    if there != list(LETTERS[: len(there)]):
        raise bad(path, f"the options' columns are {' '.join(there)}; leave no letter out", row)
    return tuple(as_text(cells[letter.lower()]) for letter in there), ()


def _unused_fields(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    one = len(names) == 1
    subject = f"field {names[0]!r} is" if one else f"fields {', '.join(map(repr, names))} are"
    return (f"{subject} not understood, and no model will see {'it' if one else 'them'}",)


def _item(path: Path, question: Question) -> Item:
    if len(question.options) > len(LETTERS):
        raise bad(path, f"{len(question.options)} options; at most {len(LETTERS)}", question.row)
    for letter, option in zip(LETTERS, question.options, strict=False):
        if not option.strip():
            raise bad(path, "the option is empty", question.row, letter)
    id, q = f"q{question.row}", question
    return make_item(path, q.row, id, q.text, q.options, q.topic, q.passage)


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
