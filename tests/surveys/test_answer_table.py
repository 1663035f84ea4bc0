"""Answers as a table, option by option."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from jaxalign.surveys.answer_table import COLUMNS, NAME, AnswerTable
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey

SURVEY = Survey(
    "sky",
    "1",
    "made up",
    "official",
    (
        Item("q1", "Is it blue?", ("yes, “blue”", "no"), (1, 2)),
        Item("q2", "How high?", ("low", "so, so", "high"), (1, 2, 3)),
    ),
)


def test_every_option_is_a_row_in_csv_and_parquet(tmp_path):
    table = AnswerTable()
    log_probs = np.float32([[-1.3862944, -0.2876821, -np.inf, 0], [np.nan, np.nan, np.nan, 0]])
    table.add(SURVEY, log_probs, np.array([0.5, np.nan]), method="persona", country="CHN", seed=1)
    positions = np.array([[0, 2], [1, -1]])
    table.add_responses(Responses.from_positions(SURVEY, ["x"], positions[:, None]), "plain")
    paths = table.write(tmp_path)
    assert paths[0].name == f"{NAME}.csv"
    with paths[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 5
    first = {"survey": "sky", "method": "persona", "country": "CHN", "seed": "1", "option": "1"}
    first |= {"label": "yes, “blue”", "probability": "0.25", "valid_mass": "0.5", "replies": ""}
    assert first.items() <= rows[0].items()
    assert [row["probability"] for row in rows[2:5]] == [""] * 3
    assert [row["replies"] for row in rows[5:]] == ["1", "1", "0", "0", "1"]
    assert [row["valid_mass"] for row in rows[5:]] == ["1", "1", "0.5", "0.5", "0.5"]
    read = pytest.importorskip("pyarrow.parquet").read_table(paths[1]).to_pylist()
    assert [row["code"] for row in read] == [int(row["code"]) for row in rows]
    assert read[2]["probability"] is None
    assert read[5]["replies"] == 1


def test_rows_of_items_that_were_asked_with_each_items_country(tmp_path):
    table = AnswerTable()
    table.add(
        SURVEY,
        np.log(np.float32([[np.nan] * 3, [0.5, 0.25, 0.25]])),
        method="tuned",
        country=("CHN", "USA"),
        asked_Q=np.array([False, True]),
    )
    text = table.write(tmp_path)[0].read_text("utf-8").splitlines()
    assert text[1:] == [
        "sky,tuned,USA,,,q2,ordinal,1,1,low,0.5,,",
        'sky,tuned,USA,,,q2,ordinal,2,2,"so, so",0.25,,',
        "sky,tuned,USA,,,q2,ordinal,3,3,high,0.25,,",
    ]
