"""CulturalBench and multiple-choice tests in every layout that people save them in.

All texts are made up. The columns are those of the published files.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.check import check_survey
from jaxalign.surveys.formats import read_any, recognise
from jaxalign.surveys.formats.cultural_bench import country_code, region_of
from jaxalign.surveys.formats.records import as_list

Rows = list[dict[str, Any]]

EASY: Rows = [
    {
        "data_idx": n,
        "question_idx": 100 + n,
        "prompt_question": f"What is done in place {n}?",
        **{f"prompt_option_{letter}": f"thing {letter}{n}" for letter in "abcd"},
        "answer": "ABCD"[n],
        "country": country,
    }
    for n, country in enumerate(("South Korea", "Peru", "Atlantis"))
]
HARD: Rows = [
    {
        "data_idx": 4 * n + o,
        "question_idx": 100 + n,
        "prompt_question": f"What is done in place {n}?",
        "prompt_option": f"thing {o}",
        "answer": o == n,
        "country": "Peru",
    }
    for n in range(3)
    for o in range(4)
]


def as_csv(rows: Rows, delimiter: str = ",", upper: bool = False) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    names = list(rows[0])
    # The published CSV writes truth values in capitals; pandas adds a column without a name.
    writer.writerow(["", *(name.title() if upper else name for name in names)])
    for n, row in enumerate(rows):
        values = (str(v).upper() if isinstance(v, bool) else v for v in row.values())
        writer.writerow([n, *values])
    return out.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


LAYOUTS = {
    "csv": lambda rows: as_csv(rows),
    "capitalised.csv": lambda rows: as_csv(rows, upper=True),
    "tabs.tsv": lambda rows: as_csv(rows, "\t"),
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sets_are_read_alike_from_every_layout(tmp_path: Path, layout: str) -> None:
    for kind, rows in (("easy", EASY), ("hard", HARD)):
        path = tmp_path / f"{kind}-{layout}"
        path.write_bytes(LAYOUTS[layout](rows))
        assert recognise(path) == f"cultural-bench-{kind}"
        test = read_any(path)
        assert test.notes == ()
        if kind == "easy":
            assert test.answers == (0, 1, 2)
            assert [item.id for item in test.items] == ["100", "101", "102"]
            assert test.countries == ("South Korea", "Peru", "Atlantis")
            assert test.items[1].options == ("thing a1", "thing b1", "thing c1", "thing d1")
        else:
            assert test.groups == ("100",) * 4 + ("101",) * 4 + ("102",) * 4
            assert test.answers == (0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1)
            assert test.items[5].stem == "What is done in place 1?"
            assert test.items[5].text == "thing 1"


def saved(tmp_path: Path, rows: Rows) -> Path:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    return path


def test_letters_of_any_case(tmp_path: Path) -> None:
    rows = [row | {"answer": row["answer"].lower()} for row in EASY]
    assert read_any(saved(tmp_path, rows)).answers == (0, 1, 2)


def test_what_cannot_be_asked_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [dict(row) for row in EASY]
    rows[1]["prompt_option_c"] = None
    test = read_any(saved(tmp_path, rows))
    assert [item.id for item in test.items] == ["100", "102"]
    assert test.notes == ("1 question has an empty option and is left out: 101",)
    assert "1 question has an empty option" in str(check_survey(saved(tmp_path, rows)))
    rows = [dict(row) for row in HARD]
    rows[0]["prompt_option"] = ""
    rows[6]["answer"] = True  # two true rows of question 101
    rows[9]["prompt_option"] = "thing 0"  # twice in question 102
    test = read_any(saved(tmp_path, rows))
    assert set(test.groups) == {"101", "102"}
    assert test.notes == (
        "1 question has an empty option and is left out: 100",
        "1 question has another number of true rows than one and is kept: 101",
        "1 question has the same proposed answer twice and is kept: 102",
    )
    # Not part of what a score depends on.
    assert test.sha256 == read_any(saved(tmp_path, rows)).sha256


def test_a_question_with_fewer_rows_is_kept_and_counted(tmp_path: Path) -> None:
    test = read_any(saved(tmp_path, HARD[:1]))
    assert (test.name, len(test.items), test.groups) == ("CulturalBench Hard", 1, ("100",))
    note = "1 question has fewer than four rows and is kept, though easier to get wholly right: 100"
    assert test.notes == (note,)
    cut = read_any(saved(tmp_path, HARD[:-1]))
    assert cut.notes == (note.replace("100", "102"),)
    assert len(cut.items) == len(HARD) - 1


BAD = {
    "five rows": (
        [*HARD, HARD[0]],
        "row 13, column 'question_idx': question 100 has 5 rows; a question has four",
    ),
    "truth": ([HARD[0] | {"answer": "maybe"}], "'maybe' is neither true nor false"),
    "letter": ([EASY[0] | {"answer": "E"}], "row 1, column 'answer': 'E' is no answer; .*A B C D"),
    "no letter": ([EASY[0] | {"answer": True}], "'true' is no answer"),
    "null": ([EASY[0] | {"country": None}], "row 1, column 'country': the cell is empty"),
    "column": ([EASY[0], {"question_idx": 1}], "row 2, column 'prompt_question': .*absent"),
    "nothing left": ([EASY[0] | {"prompt_option_a": ""}], "there is nothing to ask"),
    "twice": ([EASY[0], EASY[0]], "question 100 is in row 1 already"),
    "two questions": (
        [HARD[0], HARD[1] | {"prompt_question": "Another?"}],
        "'Another\\?' differs from row 1 of the same question",
    ),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_refusals_name_the_row(tmp_path: Path, rows: Rows, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_any(saved(tmp_path, rows))
    assert "\n" not in str(caught.value)


def test_countries_have_codes_and_regions() -> None:
    assert [country_code(c) for c in ("United States", "Turkey", "Türkiye", "KOR")] == [
        "USA",
        "TUR",
        "TUR",
        "KOR",
    ]
    assert country_code("Kenya") == "KEN"
    assert region_of("Kenya") is None
    assert country_code("Atlantis") == "Atlantis"
    assert region_of("Vietnam") == "Southeast Asia"
    assert region_of("Atlantis") is None


# Multiple choice


def test_a_printed_list_of_choices_and_a_capitalised_header(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    for text in (
        ",Question,A,B,C,D,Answer\n0,Made up?,w,x,y,z,B\n",
        "question,A,B,C,D,answer\nMade up?,w,x,y,z,b\n",
        "question,subject,choices,answer\nMade up?,none,\"['w', 'x', 'y', 'z']\",1\n",
        "question,subject,choices,answer\nMade up?,none,['w' 'x'\n 'y' 'z'],1\n",
    ):
        path.write_text(text.replace("['w' 'x'\n 'y' 'z']", "\"['w' 'x'\n 'y' 'z']\""))
        assert recognise(path) == "multiple-choice"
        test = read_any(path)
        assert test.items[0].options == ("w", "x", "y", "z"), text
        assert test.answers == (1,), text
        assert test.notes == ()


def test_a_passage_stands_before_its_question(tmp_path: Path) -> None:
    question = {"question": "How many?", "options": ["one", "two"], "answer": "B"}
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"article": "There are two.", "hint": "none", **question}))
    test = read_any(path)
    assert test.items[0].stem == "There are two."
    assert test.notes == ("field 'hint' is not understood, and no model will see it",)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_lists_are_read_as_python_prints_them(texts: list[str]) -> None:
    assert as_list(repr(texts)) == texts


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])), min_size=1))
def test_lists_are_read_as_numpy_prints_them(texts: list[str]) -> None:
    array = np.array(texts, dtype=object)
    with np.printoptions(threshold=10**6):
        assert as_list(str(array)) == texts
