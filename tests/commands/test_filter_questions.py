"""`jaxalign filter-questions` on files that are right and files that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxalign.commands import filter_questions
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.questions import (
    read_questions,
)
from jaxalign.surveys.survey import load


def released(*rows: dict[str, object]) -> bytes:
    return json.dumps(
        [{"Q_id": "Q0", "class": "Science & Technology", **row} for row in rows]
    ).encode()


def row(question: str, *options: object) -> dict[str, object]:
    return {"question": question, "option_lst": list(options)}


def test_the_command_says_what_each_filter_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "generated.json", tmp_path / "kept.json"
    path.write_bytes(
        released(
            row("A?", "1. a", "2. b"),
            row("A?", "c", "d"),
            row("B?", "1", "2"),
            row("C?", "a"),
            row("D?", "1 - a", "2", "3 - c"),
            row("E?", "1. a", "2. a"),
            row("F?", "1", "2 - x"),
        )
    )
    filter_questions.run(filter_questions.Settings(path, out=out))
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, *counts in (
        ("written", "–", "–", "6"),
        ("duplicates", "1", "0", "5"),
        ("scales", "1", "0", "4"),
        ("numbers", "0", "2", "4"),
        ("labels", "0", "1", "4"),
        ("labelled", "1", "0", "3"),
        ("options", "1", "0", "2"),
        ("options", "1"),
    ):
        assert [name, *counts] in [line[-len(counts) - 1 :] for line in said], name
    items = load(out).items
    scale = 'D? On a scale where 1 means "a" and 3 means "c".'
    assert [(i.id, i.text, i.options) for i in items] == [
        ("science_technology-0001", "A?", ("a", "b")),
        ("science_technology-0004", scale, ("1", "2", "3")),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not JSON"), (b'[{"a": ', "not JSON"), (b"{}", "a list"), (b"[" * 100_000, "nested")],
)
def test_files_that_are_no_list_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "generated.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        filter_questions.run(filter_questions.Settings(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "absent.json")
    with pytest.raises(UserError, match="no such folder"):
        filter_questions.run(filter_questions.Settings(path, out=tmp_path / "no" / "kept.json"))
    with pytest.raises(UserError, match="a folder; name a file"):
        filter_questions.run(filter_questions.Settings(path, out=tmp_path))
