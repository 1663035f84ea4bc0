"""Recognising formats, and adding one by adding a file."""

from __future__ import annotations

import pytest

from jaxalign.core.errors import UserError
from jaxalign.surveys import check_survey, read_survey
from jaxalign.surveys.formats import FORMATS, read_answered, read_any, recognise
from jaxalign.surveys.formats.base import Format
from jaxalign.surveys.formats.files import FileStart
from tests.support.new_format import club_format
from tests.support.own_files import own_csv


def test_the_formats_that_ship():
    assert set(FORMATS.names()) >= {
        "cultural-bench-easy",
        "cultural-bench-hard",
        "culturespa",
        "multiple-choice",
        "opinion-qa",
        "own-csv",
        "own-json",
        "wvs",
    }


@pytest.fixture
def new_format(tmp_path):
    with club_format(tmp_path / "formats"):
        yield


def test_a_new_file_is_a_new_format(tmp_path, new_format):
    path = tmp_path / "club.txt"
    path.write_text("club members: 3 yes, 1 no\n")
    assert recognise(path) == "club"
    survey = read_survey(path)
    assert survey.distributions == {"members": {"q": (0.75, 0.25)}}
    assert read_survey(path, format="club") == survey
    assert check_survey(path).format == "club"
    path.write_text("club members: 3 yes\n")
    (problem,) = check_survey(path).problems
    assert "1 options and 1 codes" in problem
    with pytest.raises(UserError, match="choose from auto, club, cultural-bench-easy"):
        read_survey(path, format="word")


def test_a_file_that_two_formats_recognise_is_refused(tmp_path):
    class Everything(Format):
        def recognises(self, start: FileStart) -> bool:
            return True

    path = own_csv(tmp_path, ("USA",))["survey"]
    FORMATS.register("everything")(Everything)
    try:
        with pytest.raises(UserError, match="may be everything or own-csv; choose one"):
            recognise(path)
        assert len(read_survey(path, format="own-csv").items) == 3
    finally:
        FORMATS._entries.pop("everything")


def test_a_test_with_right_answers_is_no_survey(tmp_path):
    path = tmp_path / "mmlu.csv"
    path.write_text("a,b,c,d,e,A\n")
    assert read_any(path).answers == (0,)
    with pytest.raises(UserError, match=r"mmlu\.csv: questions with one right answer"):
        read_survey(path)
    with pytest.raises(UserError, match=r"`held_out` .*: questions with one right answer"):
        read_answered(path, "held_out")


def test_messages_name_the_parameters(tmp_path):
    files = own_csv(tmp_path, ("USA",))
    message = "`survey` .*own.csv: it does not say .* with a CSV of your own `shares`"
    with pytest.raises(UserError, match=message):
        read_answered(files["survey"], "survey", None, "shares")
    survey = read_answered(files["survey"], "survey", files["distributions"], "shares")
    assert set(survey.distributions) == {"USA"}
    (tmp_path / "own.json").write_text("{}")
    with pytest.raises(UserError, match=r"`shares` .*shares\.csv: goes with a CSV of your own"):
        read_answered(tmp_path / "own.json", "survey", files["distributions"], "shares")
