"""The command `check`: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest

from jaxalign.commands import check as command
from jaxalign.runs.console import main
from jaxalign.surveys import read_survey, vsm
from jaxalign.surveys.survey import to_json
from tests.support.new_format import club_format
from tests.support.own_files import own_csv, wvs_csv


def check(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it printed to stdout and stderr."""
    code = 0
    try:
        main(command.run, command.Config, [str(arg) for arg in args])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_survey_in_order(tmp_path, capsys):
    files = own_csv(tmp_path, ("USA", "CHN"))
    code, out, err = check(capsys, files["survey"], "--distributions", files["distributions"])
    assert (code, err) == (0, "")
    for part in ("3 items (3 ordinal, 0 nominal)", "1 topic (things)", "2 countries (CHN, USA)"):
        assert part in out
    assert read_survey(files["survey"], files["distributions"]).sha256 in out


def test_one_problem_is_the_error(tmp_path, capsys):
    path = own_csv(tmp_path, ("USA",))["survey"]
    path.write_text(path.read_text().replace("1=no", "no", 1))
    code, out, err = check(capsys, path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "row 2, column 'options': 'no' is not code=label" in err
    assert err.count("\n") == 1


def test_several_problems_are_listed_before_the_error(tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(to_json(vsm()) | {"wording": "mine", "version": 1}, indent=1))
    code, _, err = check(capsys, path)
    assert code == 2
    assert [line.startswith("error: ") for line in err.splitlines()] == [False, False, True]
    assert "line 3, column 13" in err
    assert "wrong in 2 places" in err


def test_a_great_many_problems_are_cut(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text("id,text,options\n" + "".join(f"q{i},,1=a|2=b\n" for i in range(60)))
    code, _, err = check(capsys, path)
    assert code == 2
    assert "... and 10 more" in err
    assert err.count("the cell is empty") == 50


def test_other_formats(tmp_path, capsys):
    path = own_csv(tmp_path, ("USA",))["survey"]
    code, _, err = check(capsys, path, "--format", "wvs")
    assert code == 2
    assert "B_COUNTRY_ALPHA" in err
    assert check(capsys, tmp_path / "absent.csv")[0] == 2
    test = tmp_path / "mmlu.csv"
    test.write_text("a,b,c,d,e,A\n")
    code, out, _ = check(capsys, test)
    assert code == 0
    assert "1 questions with a right answer" in out
    code, _, err = check(capsys, test, "--distributions", tmp_path / "shares.csv")
    assert code == 2
    assert "--distributions" in err
    code, _, err = check(capsys, test, "--format", "word")
    assert code == 2
    assert "--format 'word': choose from auto, cultural-bench-easy" in err


def test_a_survey_without_wording_is_right_but_cannot_be_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    command.run(command.Config(wvs_csv(tmp_path)))
    out = capsys.readouterr().out
    assert "Nothing is wrong with it. But 2 of its items have no wording" in out
    assert "no model can be asked" in out


def test_a_format_that_a_new_file_adds(tmp_path, capsys):
    (tmp_path / "club.txt").write_text("club members: 3 yes, 1 no\n")
    with club_format(tmp_path / "formats"):
        code, out, _ = check(capsys, tmp_path / "club.txt")
    assert code == 0
    assert "club (club): 1 items (0 ordinal, 1 nominal)" in out


def test_a_template_is_a_survey_in_order_and_replaces_nothing(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    code, out, err = check(capsys, "--template", path)
    answers = tmp_path / "mine-answers.csv"
    assert (code, err) == (0, "")
    assert f"jaxalign check {path} --distributions {answers}" in out
    code, out, err = check(capsys, path, "--distributions", answers)
    assert (code, err) == (0, "")
    for part in ("2 items (2 ordinal, 0 nominal)", "2 countries (CHN, USA)"):
        assert part in out
    code, _, err = check(capsys, "--template", path)
    assert code == 2
    assert err == f"error: --template {path}: is there already; give another name\n"
    code, _, err = check(capsys)
    assert code == 2
    assert "name a survey file, or give --template" in err
