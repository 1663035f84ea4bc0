"""Checking a survey file from Python: everything that is wrong with it, or what is in it."""

from __future__ import annotations

import json

import pytest

from jaxalign.core.errors import UserError
from jaxalign.surveys import check_survey, read_survey, vsm
from jaxalign.surveys.survey import to_json
from tests.support.own_files import own_csv, wvs_csv


def test_a_survey_in_order(tmp_path):
    files = own_csv(tmp_path, ("USA", "night owls"))
    check = check_survey(files["survey"], files["distributions"])
    assert check.ok
    assert (check.format, check.problems) == ("own-csv", ())
    assert check.survey == read_survey(files["survey"], files["distributions"])
    assert "3 items (3 ordinal, 0 nominal); 3 to 3 options; 1 topic (things)" in str(check)
    assert "2 countries (USA, night owls)" in str(check)


def test_every_problem_of_a_survey_of_ones_own_is_found(tmp_path):
    fields = to_json(vsm()) | {"wording": "mine", "version": 1}
    (tmp_path / "own.json").write_text(json.dumps(fields, indent=1))
    check = check_survey(str(tmp_path / "own.json"))
    assert not check.ok
    assert check.survey is None
    assert [p.rpartition(": ")[2] for p in check.problems] == [
        "1 is not of type string",
        "'mine' is not one of paraphrase, official",
    ]
    assert str(check).count("\n") == 1


def test_the_first_problem_of_other_formats_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    path = wvs_csv(tmp_path)
    path.write_text(path.read_text().replace("6-0-0,7,USA,1,", "6-0-0,7,USA,-1,"))
    check = check_survey(path)
    assert check.format == "wvs"
    assert [p.removeprefix(f"{path}, ") for p in check.problems] == [
        "row 9, column 'W_WEIGHT': weight -1 is missing or negative; all respondents need one"
    ]


def test_a_problem_that_hides_all_others_is_the_only_one(tmp_path):
    path = own_csv(tmp_path, ("USA",))["survey"]
    path.write_text(path.read_text().replace("topic", "topics"))
    (problem,) = check_survey(path).problems
    assert problem.startswith(f"{path}, row 1, column 'topics': not a known column")


def test_what_is_no_survey_at_all_is_refused(tmp_path):
    path = wvs_csv(tmp_path)
    with pytest.raises(
        UserError, match=r"`distributions` .*shares.csv: goes with a CSV of your own"
    ):
        check_survey(path, tmp_path / "shares.csv")
    with pytest.raises(UserError, match="`format` 'word': choose from auto, cultural-bench-easy"):
        check_survey(path, format="word")
    with pytest.raises(UserError, match="cannot be read"):
        check_survey(tmp_path / "absent.csv")
