"""Replies scored against survey files that hold codes alone, and files of single countries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.stats import score_replies
from jaxalign.surveys import Survey, check_survey
from jaxalign.surveys.formats.wvs import read_wvs
from jaxalign.surveys.replies import read_answers
from jaxalign.surveys.reply_files import read_replies

LABELS = ["a lot", "some", "little", "none"]


def country_file(folder: Path) -> Path:
    path = folder / "wvs.csv"
    rows = [f"AND,1,{1 + n % 4},{2 + n % 3}" for n in range(60)]
    path.write_text("\n".join(["B_COUNTRY_ALPHA,W_WEIGHT,Q1,Q138", *rows]) + "\n")
    return path


def survey(folder: Path) -> Survey:
    return read_wvs(country_file(folder), use_cache=False)


def replies(folder: Path, **answers: tuple[list[str], str]) -> Path:
    path = folder / "replies_culture_aware_AND_0.json"
    rows = [
        {"Q_id": item, "question": "q", "option_lst": options, "answer": text}
        for item, (options, text) in answers.items()
    ]
    path.write_text(json.dumps(rows))
    return path


def positions(folder: Path, path: Path, **options) -> list[int]:
    (run,) = read_replies(path)
    return read_answers(run, survey(folder), **options).positions[0, 0].tolist()


def test_options_are_compared_by_number_where_there_is_no_wording(tmp_path):
    assert positions(tmp_path, replies(tmp_path, Q1=(LABELS, "2"))) == [1, -3]
    # A reader that wants an option's text finds the one that was shown.
    shown = replies(tmp_path, Q1=(LABELS, "3. little"))
    assert positions(tmp_path, shown, reader="strict") == [2, -3]
    with pytest.raises(UserError, match="item Q1: 3 options, which differ from the survey's 4"):
        positions(tmp_path, replies(tmp_path, Q1=(LABELS[:3], "2")))


def test_a_code_that_nobody_in_the_country_chose_is_an_answer(tmp_path):
    assert positions(tmp_path, replies(tmp_path, Q138=(LABELS, "1"))) == [-3, 0]


def test_items_that_the_country_was_not_asked_are_left_out_and_said(tmp_path):
    path = replies(tmp_path, Q1=(LABELS, "2"), Q93=(LABELS[:3], "1"))
    assert positions(tmp_path, path) == [1, -3]
    analysis = score_replies(survey(tmp_path), [path], resamples=10)
    assert analysis["scores"]["AND"]["items"] == 1
    said = "\n".join(analysis["notes"])
    assert "left out 1 reply to items that World Values Survey 7 lacks: Q93" in said
    assert "nobody chose some options of 1 published scale, which stay options: Q138 (1)" in said
    with pytest.raises(UserError, match="item 'Q93' is not in World Values Survey 7, nor is any"):
        positions(tmp_path, replies(tmp_path, Q93=(LABELS[:3], "1")))


def test_the_check_of_a_file_says_which_scales_are_incomplete(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    said = str(check_survey(country_file(tmp_path)))
    assert "no model can be asked.\n- nobody chose some options" in said


def test_a_survey_that_no_command_could_count_with_is_not_called_right(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("id,text,options\nq1,How often?,1=never|99999999=often\n")
    (problem,) = check_survey(path).problems
    assert "code 99999999" in problem


def test_a_country_may_be_written_out(tmp_path):
    path = tmp_path / "replies.jsonl"
    doc = {"Q_id": "Q1", "country": "Andorra", "mode": "aware"}
    path.write_text(json.dumps({"doc": doc, "resps": [["2"]]}) + "\n")
    analysis = score_replies(survey(tmp_path), [path], resamples=10)
    assert analysis["personas"] == ["AND"]
    path.write_text(path.read_text().replace("Andorra", "Narnia"))
    with pytest.raises(UserError, match="country 'Narnia' is not in the survey; it has AND"):
        score_replies(survey(tmp_path), [path], resamples=10)
