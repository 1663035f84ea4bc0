"""Questions with a right answer (CulturalBench, MMLU-style) and GlobalOpinionQA.

The tests write files in their own words, and check what is read from them and every refusal.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys import ChoiceTest, Survey
from jaxalign.surveys.formats import read_any, recognise
from jaxalign.surveys.formats.cultural_bench import EASY_COLUMNS, HARD_COLUMNS
from jaxalign.surveys.formats.opinion_qa import read_opinion_qa

Rows = list[list[str]]


def table(rows: Rows, delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


EASY: Rows = [
    ["data_idx", "question_idx", *EASY_COLUMNS],
    ["0", "7", "Which bread, if any?", "flat", "round", "sour, dark", "none", "C", "Norway"],
    ["1", "8", "Shoes indoors?", "always", "never", "by season", "in rain", "b", "Japan"],
]
EASY[2][7] = "B"
HARD: Rows = [
    list(HARD_COLUMNS),
    *(
        [q, f"Question {q}?", f"proposal {i}", str(i == right), "Peru"]
        for q, right in (("1", 2), ("2", 0))
        for i in range(4)
    ),
]
MMLU: Rows = [
    ["question", "A", "B", "C", "D", "answer"],
    ["What is 2 + 2?", "3", "4", "5", "22", "B"],
    ["Which is a fruit?", "pear", "stone", "cloud", "shoe", "A"],
]
LINES = [
    {"question": "What is 2 + 2?", "choices": ["3", "4", "5"], "answer": 1, "subject": "sums"},
    {"question": "A fruit?", "A": "pear", "B": "stone", "answer": "A"},
]


def selections(**shares: list[float]) -> str:
    """As Python prints it; blanks in a country's name are given as underscores."""
    named = {name.replace("_", " "): value for name, value in shares.items()}
    return str(defaultdict(list, named))


OPINIONS: Rows = [
    ["question", "selections", "options", "source"],
    [
        "Is it so?",
        selections(Britain=[0.2, 0.7, 0.1], Atlantis=[0, 0.5, 0.48]),
        "['Yes', \"No, it isn't\", 'DK/Refused']",
        "GAS",
    ],
    ["How much?", selections(Chile=[30, 70], United_States=[0, 0]), "['a lot', 'little']", "WVS"],
]

FILES: dict[str, tuple[str, str]] = {
    "opinion-qa": ("opinions.csv", table(OPINIONS)),
    "cultural-bench-easy": ("easy.csv", table(EASY)),
    "cultural-bench-hard": ("hard.csv", table(HARD)),
    "multiple-choice": ("mmlu.csv", table(MMLU)),
    "multiple-choice without header": ("mmlu.csv", table(MMLU[1:])),
    "multiple-choice with semicolons": ("mmlu.csv", table(MMLU, ";")),
    "multiple-choice in JSON lines": ("mmlu.jsonl", "\n".join(map(json.dumps, LINES))),
    "multiple-choice in a JSON list": ("mmlu.json", json.dumps(LINES, indent=1)),
    "multiple-choice from a spreadsheet": ("mmlu.csv", table(MMLU) + ",,,,,,\n , ,,,,,\n"),
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("kind", FILES)
def test_each_format_is_recognised(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, *FILES[kind])
    assert recognise(path) == kind.split(" ")[0]
    survey = read_any(path)
    assert survey.sha256 == read_any(path, kind.split(" ")[0]).sha256
    assert all(item.scale == "nominal" for item in survey.items)


def read_test(folder: Path, kind: str) -> ChoiceTest:
    test = read_any(write(folder, *FILES[kind]))
    assert isinstance(test, ChoiceTest)
    return test


def test_easy(tmp_path: Path) -> None:
    test = read_test(tmp_path, "cultural-bench-easy")
    assert [item.id for item in test.items] == ["7", "8"]
    assert test.items[0].options == ("flat", "round", "sour, dark", "none")
    assert (test.answers, test.countries, test.groups) == ((2, 1), ("Norway", "Japan"), ("7", "8"))


def test_hard_keeps_the_four_rows_of_a_question_together(tmp_path: Path) -> None:
    test = read_test(tmp_path, "cultural-bench-hard")
    assert test.groups == ("1",) * 4 + ("2",) * 4
    assert test.answers == (1, 1, 0, 1, 0, 1, 1, 1)
    assert test.items[2].options == ("true", "false")
    assert (test.items[2].stem, test.items[2].text) == ("Question 1?", "proposal 2")


def test_mmlu_in_every_spelling(tmp_path: Path) -> None:
    plain = read_test(tmp_path, "multiple-choice")
    assert plain.answers == (1, 0)
    assert plain.items[0].options == ("3", "4", "5", "22")
    for kind in ("multiple-choice without header", "multiple-choice with semicolons"):
        other = read_test(tmp_path, kind)
        assert other.answers == plain.answers
        assert [i.options for i in other.items] == [i.options for i in plain.items]
    lines = read_test(tmp_path, "multiple-choice in JSON lines")
    listed = read_test(tmp_path, "multiple-choice in a JSON list")
    assert (listed.items, listed.answers) == (lines.items, lines.answers)
    assert lines.answers == (1, 0)
    assert lines.items[0].topic == "sums"
    assert lines.items[1].options == ("pear", "stone")


def test_opinions(tmp_path: Path) -> None:
    survey = read_any(write(tmp_path, *FILES["opinion-qa"]))
    assert isinstance(survey, Survey)
    assert [item.topic for item in survey.items] == ["GAS", "WVS"]
    assert survey.items[0].options == ("Yes", "No, it isn't", "DK/Refused")
    assert set(survey.distributions) == {"GBR", "Atlantis", "CHL"}, "all zero: not asked"
    np.testing.assert_allclose(survey.distributions["Atlantis"]["q1"], [0, 0.5 / 0.98, 0.48 / 0.98])
    np.testing.assert_allclose(survey.distributions["CHL"]["q2"], [0.3, 0.7])


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [
        *OPINIONS,
        ["More?", selections(Chile=[0.3, 0.7]), "['a', 'b', 'c']", "WVS"],
        [" ", selections(Chile=[0.3, 0.7]), "['a', 'b']", "WVS"],
        OPINIONS[1],
    ]
    survey = read_opinion_qa(write(tmp_path, "opinions.csv", table(rows)))
    assert [item.id for item in survey.items] == ["q1", "q2"]
    assert survey.notes == (
        "left out 3 of 5 rows: row 4, column 'selections': 2 shares of Chile for 3 options; "
        "row 5, column 'question': the cell is empty; row 6: the same as row 2",
    )


def test_national_samples_are_the_country_and_the_others_are_not(tmp_path: Path) -> None:
    answers = {
        "India (Old national sample)": [0.4, 0.6],
        "India (Current national sample)": [0.5, 0.5],
        "China (Non-national sample)": [0.2, 0.8],
        "China": [0.3, 0.7],
        "Morocco (Old national sample)": [0.1, 0.9],
        "Bosnia Herzegovina": [0.6, 0.4],
        "S. Korea": [1.0, 0.0],
        "Atlantis (Current national sample)": [0.2, 0.8],
    }
    printed = f"defaultdict(<class 'list'>, {answers})"
    rows = [OPINIONS[0], ["Made up?", printed, "[1.0, 2.5]", "GAS"]]
    survey = read_opinion_qa(write(tmp_path, "opinions.csv", table(rows)))
    assert survey.items[0].options == ("1", "2.5")
    first = {group: shares["q1"][0] for group, shares in survey.distributions.items()}
    assert first == {
        "IND": 0.5,
        "India (Old national sample)": 0.4,
        "CHN": 0.3,
        "China (Non-national sample)": 0.2,
        "MAR": 0.1,
        "BIH": 0.6,
        "KOR": 1.0,
        "Atlantis (Current national sample)": 0.2,
    }
    assert "IND (India (Current national sample): 1)" in survey.notes[0]
    assert "MAR (Morocco (Old national sample): 1)" in survey.notes[0]


@pytest.mark.parametrize("label", ["Missing; Unknown", "Not asked in survey", "No answer"])
def test_what_nobody_answered_is_no_option(tmp_path: Path, label: str) -> None:
    options = str(["Yes", label, "Don't know"])
    answers = selections(Chile=[0.4, 0.2, 0.4], Peru=[0, 1, 0])
    rows = [OPINIONS[0], ["Made up?", answers, options, "WVS"]]
    survey = read_opinion_qa(write(tmp_path, "opinions.csv", table(rows)))
    assert survey.items[0].options == ("Yes", "Don't know")
    assert survey.distributions == {"CHL": {"q1": (0.5, 0.5)}}


# -- bad input ------------------------------------------------------------------------------------


def cell(rows: Rows, row: int, column: str, value: str) -> str:
    # Rows of opinions that cannot be used are left out, so the file has no other.
    rows = [list(r) for r in (rows[:2] if rows is OPINIONS else rows)]
    rows[row][rows[0].index(column)] = value
    return table(rows)


CODE = "__import__('os').system('true')"
BAD: dict[str, tuple[str, str, str]] = {
    "easy: answer": ("easy.csv", cell(EASY, 1, "answer", "E"), "row 2, column 'answer': 'E'"),
    "easy: blank": ("easy.csv", cell(EASY, 2, "country", " "), "row 3, column 'country': .*empty"),
    "easy: repeated": ("easy.csv", table([*EASY, EASY[1]]), "row 4, .*'question_idx': .*row 2"),
    "easy: no rows": ("easy.csv", table(EASY[:1]), "no rows below the header"),
    "easy: cut": ("easy.csv", table(EASY)[:-20], "row 3: 6 cells where the header has 9; .*short"),
    "easy: open": ("easy.csv", table(EASY) + '"a', "row 4: not readable as a table"),
    "hard: five rows": ("hard.csv", table([*HARD, HARD[1]]), "question 1 has 5 rows; .*four"),
    "hard: truth": ("hard.csv", cell(HARD, 1, "answer", "maybe"), "row 2, .* 'maybe'"),
    "hard: other text": ("hard.csv", cell(HARD, 2, "prompt_question", "?"), "row 3, .*from row 2"),
    "mmlu: answer": ("mmlu.csv", cell(MMLU, 2, "answer", "F"), "row 3, column 'answer': 'F'"),
    "mmlu: empty option": ("mmlu.csv", cell(MMLU, 1, "C", ""), "row 2, column 'C': .*empty"),
    "mmlu: empty text": ("mmlu.csv", cell(MMLU, 1, "question", " "), "row 2: .*empty text"),
    "mmlu: a letter left out": ("mmlu.csv", table(MMLU).replace("C,D,", "D,E,"), "leave no letter"),
    "mmlu: column twice": ("mmlu.csv", table(MMLU).replace("B,C", "B,B"), "column 'B': .*twice"),
    "mmlu: headerless width": ("m.csv", table([*MMLU[1:], ["a", "b"]]), "row 3: 2 cells .*has 6"),
    "lines: not JSON": ("m.jsonl", json.dumps(LINES[0]) + "\n{", "row 2: not JSON"),
    "lines: no object": ("m.jsonl", "[1]", r"row 1: \[1\] is not a JSON object"),
    "lines: no answer": ("m.jsonl", '{"question": "a"}', "row 1, column 'answer': .*absent"),
    "lines: index": ("m.jsonl", json.dumps(LINES[0] | {"answer": 3}), "row 1, .*3 is no answer"),
    "lines: truth": ("m.jsonl", json.dumps(LINES[0] | {"answer": True}), "True is no answer"),
    "lines: one choice": ("m.jsonl", json.dumps(LINES[0] | {"choices": ["a"], "answer": 0}), "at"),
    "opinions: code": ("o.csv", cell(OPINIONS, 1, "options", CODE), "row 2, column 'options'"),
    "opinions: more code": (
        "o.csv",
        cell(OPINIONS, 1, "selections", f"defaultdict(<class 'list'>, {{'a': {CODE}}})"),
        "row 2, column 'selections'",
    ),
    "opinions: no dictionary": ("o.csv", cell(OPINIONS, 1, "selections", "[1]"), "not a printed"),
    "opinions: options": ("o.csv", cell(OPINIONS, 1, "options", "{1: 2}"), "'options': .*list"),
    "opinions: sum": (
        "o.csv",
        cell(OPINIONS, 1, "selections", "{'Chile': [0.1, 0.1, 0.1]}"),
        "sum to 0.3",
    ),
    "opinions: below zero": (
        "o.csv",
        cell(OPINIONS, 1, "selections", "{'Chile': [-0.1, 0.6, 0.5]}"),
        "are not numbers",
    ),
    "empty": ("o.csv", "", "the file is empty"),
    "unknown": ("o.csv", "a,b\n1,2\n", "not recognised: the first row reads 'a, b'; .*own-csv"),
    "a spreadsheet": ("o.csv", "PK\x03\x04", "spreadsheet; .*export it as CSV"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_any(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_encoding_says_where(tmp_path: Path) -> None:
    path = tmp_path / "easy.csv"
    path.write_bytes(table(EASY).replace("dark", "dårk").encode("latin-1"))
    with pytest.raises(UserError, match="row 2: byte 0xe5 is not UTF-8; save the file as UTF-8"):
        read_any(path)
    path.write_bytes(table(EASY).encode("utf-16"))
    assert read_any(path).items[0].id == "7"
    path.write_bytes(b"\xef\xbb\xbf" + table(EASY).encode())
    assert read_any(path).items[0].id == "7"


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_any(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="a folder without"):
        read_any(tmp_path)
    with pytest.raises(UserError, match="`format` 'word': choose from auto, cultural-bench-easy"):
        read_any(tmp_path, "word")


# -- fuzzing --------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(max_size=6)), min_size=1, max_size=4
)
FUZZ = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def only_user_errors(read: Callable[[], Any]) -> None:
    said = ""
    try:
        survey = read()
        assert survey.items
        assert len(survey.sha256) == 64
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("kind", FILES)
@FUZZ
@given(changes=edits, keep=st.floats(0, 1))
def test_a_damaged_file_is_refused_or_read(
    tmp_path: Path, kind: str, changes: list[tuple[float, int, bytes]], keep: float
) -> None:
    name, text = FILES[kind]
    content = text.encode()
    for where, cut, new in changes:
        at = int(where * len(content))
        content = content[:at] + new + content[at + cut :]
    path = tmp_path / name
    for damaged in (content, text.encode()[: int(keep * len(text))]):
        path.write_bytes(damaged)
        only_user_errors(lambda: read_any(path, kind.split(" ")[0]))
        only_user_errors(lambda: read_any(path))


@FUZZ
@given(content=st.binary(max_size=200), text=st.text(max_size=60), shares=st.text(max_size=60))
def test_random_cells_and_bytes(tmp_path: Path, content: bytes, text: str, shares: str) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    only_user_errors(lambda: read_any(path))
    rows = [OPINIONS[0], [text, "{" + shares + "}", "[" + text + "]", "GAS"]]
    path.write_text(table(rows), encoding="utf-8", errors="replace", newline="")
    only_user_errors(lambda: read_opinion_qa(path))


# -- layouts that datasets are saved in -----------------------------------------------------------

OPINION_RECORDS = [
    {
        "question": f"Is thing {n} right?",
        "selections": {"United States": [0.7, 0.3], **({"China": [0.4, 0.6]} if n else {})},
        "options": ["Yes", "No"],
        "source": "GAS",
    }
    for n in range(3)
]


def printed(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "selections": f"defaultdict(<class 'list'>, {row['selections']})",
        "options": str(row["options"]),
    }


@pytest.mark.parametrize("layout", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("row_of", [printed, dict])
def test_opinions_are_read_alike_from_every_layout(
    tmp_path: Path, layout: str, row_of: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    rows, path = list(map(row_of, OPINION_RECORDS)), tmp_path / f"opinions.{layout}"
    if layout == "csv":
        path.write_text(table([list(rows[0]), *(list(row.values()) for row in rows)]))
    elif layout == "json":
        path.write_text(json.dumps(rows))
    elif layout == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    survey = read_any(path)
    assert isinstance(survey, Survey)
    assert survey.name == "GlobalOpinionQA"
    assert [item.options for item in survey.items] == [("Yes", "No")] * 3
    assert survey.distributions["USA"]["q1"] == (0.7, 0.3)
    assert set(survey.distributions["CHN"]) == {"q2", "q3"}


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "B"}, 1),
        ({"choices": {"text": ["w", "x"], "label": ["1", "2"]}, "answerKey": "1"}, 0),
        ({"options": {"A": "w", "B": "x"}, "answer": "B"}, 1),
        ({"options": ["w", "x"], "answer": "(B)"}, 1),
        ({"options": ["w", "x"], "answer": "B."}, 1),
        ({"options": ["w", "x"], "answer_key": 0}, 0),
        ({"A": "w", "B": "x", "answerKey": "b"}, 1),
    ],
)
def test_keys_as_tests_spell_them(tmp_path: Path, fields: dict[str, Any], answer: int) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "Why?"} | fields))
    test = read_any(path)
    assert isinstance(test, ChoiceTest)
    assert (test.items[0].options, test.answers) == (("w", "x"), (answer,))
    assert not test.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04", "a zip archive or spreadsheet; unpack it"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"RDX3\nX", "a file of R; save the table with write.csv"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer; run git lfs pull"),
        (b"<!DOCTYPE html>", "a web page in place of the file"),
        (b"\xef\xbb\xbf <html>", "a web page in place of the file"),
        (b"ASCII SPSS PORT FILE", "an SPSS portable file; save it as .sav"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "survey.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_any(path)


def values_of(inner: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from(["text", "label", "A", "B", "US", ""])
    return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from(["a", "B", "['x', 'y']", "{'US': [0.5, 0.5]}", ""]),
    values_of,
    max_leaves=6,
)
odd_rows = st.fixed_dictionaries(
    {},
    optional={
        name: odd_values
        for name in (*OPINION_RECORDS[0], "choices", "answer", "answerKey", "A", "B", "passage")
    },
)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(odd_rows, min_size=1, max_size=3))
def test_odd_json_is_refused_in_one_line_or_read(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path, said = tmp_path / "rows.json", ""
    path.write_text(json.dumps(rows))
    try:
        read_any(path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
