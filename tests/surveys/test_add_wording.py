"""World Values Survey shares with the wording of another file."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxalign.core.errors import UserError
from jaxalign.stats import score_replies
from jaxalign.surveys import add_wording, read_survey
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.options import SurveyOptions
from tests.support.own_files import wvs_csv

HEADER = "id,text,options"
Q1 = "Q1,Is family important?,1=very|2=rather|3=not very|4=not at all"


@pytest.fixture
def shares(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    return wvs_csv(tmp_path)


def test_shares_borrow_wording_by_item_id(tmp_path, shares):
    words = tmp_path / "words.csv"
    words.write_text(f"{HEADER}\nQ9,Other?,1=a|2=b\n{Q1}\n")
    plain = read_answered(shares, "survey", worded=False)
    survey = read_answered(shares, "survey", options=SurveyOptions(wording=words))
    assert [item.id for item in survey.items] == ["Q1"]
    assert survey.items[0].text == "Is family important?"
    assert survey.distributions["USA"] == {"Q1": plain.distributions["USA"]["Q1"]}
    assert "left out 1 items that words does not word: Q2" in survey.notes
    row = {"Q_id": "Q1", "question": "q", "option_lst": list(survey.items[0].options)}
    replies = tmp_path / "replies_culture_aware_USA_0.json"
    replies.write_text(json.dumps([row | {"answer": "2"}]))
    analysis = score_replies(shares, [replies], wording=words, resamples=10)
    assert analysis["scores"]["USA"]["items"] == 1


def test_words_say_less_than_the_survey_knows(tmp_path, shares):
    """Ids in lower case, "don't know" among the options, and nothing about their order."""
    words = tmp_path / "words.csv"
    options = "-2=no answer|-1=don't know|1=very|2=rather|3=not very|4=not at all"
    words.write_text(f"{HEADER}\nq1,Is family important?,{options}\n")
    survey = read_answered(shares, "survey", options=SurveyOptions(wording=words))
    assert [(i.id, i.codes, i.options[0]) for i in survey.items] == [("Q1", (1, 2, 3, 4), "very")]
    nominal = dataclasses.replace(survey.items[0], scale="nominal")
    survey = dataclasses.replace(survey, items=(nominal,))
    worded = add_wording(survey, read_survey(words))
    assert worded.items[0].scale == "nominal"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Q1,Family?,1=very|2=rather|3=no", "item Q1: 3 options in words and 4 in World Values"),
        ("Q1,Family?,4=no|3=a little|2=rather|1=very", r"item Q1: codes \[4, 3, 2, 1\] in words"),
        ("Q77,Other?,1=a|2=b", "no item of World Values Survey 7 is worded in words"),
    ],
)
def test_wording_that_does_not_fit(tmp_path, shares, row, message):
    words = tmp_path / "words.csv"
    words.write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_answered(shares, "survey", options=SurveyOptions(wording=words))


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\ncountry;item;code;share\r\nAND;Q1;1;0,25\r\nAND;Q1;2;0,75\r\n",
        "country\titem\tcode\tshare\nAND\tQ1\t1.0\t0.25\nAND\tQ1\t2.0\t0.75\n",
        "\ufeffcountry,item,code,share\rAND,Q1,1,0.25\rAND,Q1,2,0.75\r",
    ],
)
def test_shares_of_ones_own_as_spreadsheets_save_them(tmp_path, text):
    words = tmp_path / "words.csv"
    words.write_text(f"{HEADER}\n{Q1}\n")
    (tmp_path / "shares.csv").write_bytes(text.encode())
    survey = read_answered(words, "survey", tmp_path / "shares.csv")
    assert survey.distributions == {"AND": {"Q1": (0.25, 0.75, 0, 0)}}
