"""A survey file without wording can be scored against, but nobody may be asked "Q1"."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.commands import check as survey_check
from jaxalign.commands import write_questions
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.soft_prompt import study as soft_prompt


@pytest.fixture
def codes_alone(tmp_path, monkeypatch) -> Path:
    """A World Values Survey file: two countries, two items, codes."""
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    rows = [
        f"6-0-0,{i},{country},1,{1 + i % 4},{1 + i % 2}"
        for c, country in enumerate(("USA", "CHN"))
        for i in range(60 * c, 60 * c + 60)
    ]
    header = "version,D_INTERVIEW,B_COUNTRY_ALPHA,W_WEIGHT,Q1,Q2"
    path = tmp_path / "wvs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return path


def test_experiments_that_ask_a_model_refuse_it(codes_alone):
    said = "survey`? .*wvs.csv: 2 of 2 items have no wording, such as 'Q1'.* your own JSON or CSV"
    config = CultureSPASettings(survey=codes_alone, countries=("USA", "CHN"))
    with pytest.raises(UserError, match=said):
        read_inputs(config)
    with pytest.raises(UserError, match=said):
        write_questions.read_inputs(write_questions.Settings(survey=codes_alone))
    for option in ("held_out", "instrument"):
        with pytest.raises(UserError, match=said.replace("survey", option.replace("_", "-"), 1)):
            soft_prompt.read_study(soft_prompt.Config(**{option: codes_alone}))


def test_survey_check_finds_nothing_wrong_but_says_it(codes_alone, capsys):
    survey_check.run(survey_check.Config(codes_alone))
    said = capsys.readouterr().out
    assert "Nothing is wrong with it. But 2 of its items have no wording" in said
    assert "no model can be asked" in said
