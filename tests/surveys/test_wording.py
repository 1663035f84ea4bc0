"""A survey file without wording can be scored against, but no model may be asked "Q1"."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.commands import write_questions
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.settings import Settings
from tests.support.own_files import wvs_csv


@pytest.fixture
def codes_alone(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    return wvs_csv(tmp_path)


def test_experiments_that_ask_a_model_refuse_it(codes_alone):
    message = "`survey` .*wvs.csv: 2 of 2 items have no wording, such as 'Q1'.* JSON or CSV"
    settings = CultureSPASettings(survey=codes_alone, countries=("USA", "CHN"))
    with pytest.raises(UserError, match=message):
        read_inputs(settings)
    with pytest.raises(UserError, match=message):
        write_questions.read_inputs(write_questions.Settings(survey=codes_alone))
    for parameter in ("held_out", "instrument"):
        with pytest.raises(UserError, match=message.replace("survey", parameter, 1)):
            read_problem(Settings(**{parameter: codes_alone}))
