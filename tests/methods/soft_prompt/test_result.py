"""What a run reports: in the dimensions and the reading that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.commands.soft_prompt import print_result
from jaxalign.methods.base import SOFT_PROMPT_METHODS
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.result import make_result
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey


def responses(survey: Survey) -> Responses:
    shape = 1, len(survey.items), max(len(item.options) for item in survey.items)
    return Responses(survey, ("USA",), np.zeros(shape, np.float32), np.ones(shape[:2], np.float32))


@pytest.mark.long
def test_the_result_is_of_the_dimensions_and_the_reading_asked_for(capsys):
    settings = Settings(
        countries=("USA",), dimensions=("pdi",), reading="most_likely", anchor=("DEU",)
    )
    problem = read_problem(settings)
    tuned, held_out = (
        {method.key: responses(survey) for method in SOFT_PROMPT_METHODS}
        for survey in (problem.tuned_survey, problem.held_out_survey)
    )
    objective = problem.objective(np.float32([54, 0, 0, 0, 0, 0]))
    found = make_result(problem, objective, problem.facts(), tuned, held_out)
    assert found["constants"] == [54.0, None, None, None, None, None]
    assert found["countries"]["USA"]["target"] == [40.0, None, None, None, None, None]
    found["countries"]["USA"]["tuned"] = {"expected": {"loss": 11.1}, "most_likely": {"loss": 77.7}}
    print_result(found)
    said = capsys.readouterr().out
    assert "most likely reading" in said
    assert "gradient (tuned expected)" in said
    assert said.index("77.7") < said.index("11.1")
