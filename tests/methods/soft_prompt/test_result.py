"""What a run reports: in the dimensions, readings, presentations and seeds that were asked for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jaxalign.commands.soft_prompt import print_result
from jaxalign.core.files import plain
from jaxalign.methods.base import SOFT_PROMPT_METHODS
from jaxalign.methods.soft_prompt.method_answers import MethodAnswers, SurveyAnswers
from jaxalign.methods.soft_prompt.problem import Problem, read_problem
from jaxalign.methods.soft_prompt.result import SEEDED, make_result
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.surveys.survey import Survey
from tests.support.soft_prompt_result import example_result

METHODS = [method.key for method in SOFT_PROMPT_METHODS]


def made_up(problem: Problem, survey: Survey, replies: int = 0, names=METHODS) -> SurveyAnswers:
    """Answers of all methods, at random but for options that an item does not have."""
    settings, random = problem.settings, np.random.default_rng(len(survey.items))
    presentations = problem.reported[0].presentations
    most = max(len(item.options) for item in survey.items)
    past_Q = np.array([len(item.options) for item in survey.items])
    found = {}
    for name in names:
        seeds = len(settings.seeds) if name in SEEDED else 1
        shape = seeds, len(settings.countries), len(presentations), len(survey.items)
        logits = np.where(
            np.arange(most) < past_Q[:, None], random.normal(size=(*shape, most)), -np.inf
        )
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        positions = None
        if replies:
            positions = random.integers(-1, 2, (replies, *shape)).astype(np.int8)
        mass = random.uniform(size=shape).astype(np.float32)
        found[name] = MethodAnswers(log_probs.astype(np.float32), mass, positions)
    return problem.survey_answers(survey, presentations, found)


def result_of(problem: Problem, replies: int = 0, constants=None) -> dict:
    surveys = problem.tuned_survey, problem.held_out_survey
    answers = tuple(
        made_up(problem, s, replies if s is problem.tuned_survey else 0) for s in surveys
    )
    history = tuple(made_up(problem, s, names=()) for s in surveys)
    earlier = {"80": "tuned"}
    history = tuple(
        dataclasses.replace(h, methods={g: a.methods[m] for g, m in earlier.items()})
        for h, a in zip(history, answers, strict=True)
    )
    objective = problem.objective(constants)
    fitness_C = np.arange(len(problem.settings.entries), dtype=np.float32)
    return make_result(problem, objective, problem.facts(), answers, fitness_C, history)


@pytest.mark.long
def test_the_result_is_of_the_dimensions_and_the_reading_asked_for(capsys):
    settings = Settings(
        countries=("USA",), dimensions=("pdi",), reading="most_likely", anchor=("DEU",)
    )
    problem = read_problem(settings)
    found = result_of(problem, constants=np.float32([54, 0, 0, 0, 0, 0]))
    assert found["constants"] == [54.0, None, None, None, None, None]
    assert found["countries"]["USA"]["target"] == [40.0, None, None, None, None, None]
    for read, loss in (("expected", 11.1), ("most_likely", 77.7)):
        found["countries"]["USA"]["tuned"][read]["loss"] = loss
    print_result(found)
    said = capsys.readouterr().out
    assert "most likely reading" in said
    assert "gradients in the expected reading (the most likely one has none)" in said
    assert said.index("77.7") < said.index("11.1")


def check_alike(found, example, where="") -> None:
    if not isinstance(found, dict) or not isinstance(example, dict):
        assert found is None or example is None or type(found) is type(example), where
        return
    assert set(found) == set(example), where
    for name in found:
        if name not in ("settings", "sources", "facts", "versions"):
            check_alike(found[name], example[name], f"{where}.{name}")


@pytest.mark.long
@pytest.mark.parametrize("reading", ["expected", "sampled"])
def test_the_result_has_the_form_that_reports_read(reading):
    settings = Settings(
        countries=("USA", "CHN"), seeds=(0, 1), presentations=("A", "B"), reading=reading
    )
    found = plain(result_of(read_problem(settings), replies=3 if reading == "sampled" else 0))
    check_alike(found, json.loads(json.dumps(example_result(reading=reading))))
    assert found["presentations"] == {"tuned": ["A", "B"], "untuned": ["C", "D"]}


@pytest.mark.long
def test_means_over_seeds_and_presentations():
    settings = Settings(countries=("USA", "CHN"), seeds=(3, 5), presentations=("A", "B"))
    problem = read_problem(settings)
    found = result_of(problem)["countries"]["CHN"]
    by_seed = [found["seeds"][seed]["tuned"] for seed in ("3", "5")]
    for read in ("expected", "most_likely"):
        losses = [record[read]["loss"] for record in by_seed]
        assert found["tuned"][read]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    # Probabilities are averaged over presentations: expected scores are then means, losses not.
    under = [found["naive"]["presentations"][name]["expected"]["scores"] for name in ("A", "B")]
    np.testing.assert_allclose(
        found["naive"]["expected"]["scores"], np.mean(under, axis=0), rtol=1e-4, atol=1e-3
    )
    others = [found["naive"]["presentations"][name]["expected"]["scores"] for name in ("C", "D")]
    np.testing.assert_allclose(
        found["naive"]["untuned"]["expected"]["scores"], np.mean(others, axis=0), atol=1e-3
    )
    # Entries are ordered seed by seed.
    assert [found["seeds"][seed]["fitness"] for seed in ("3", "5")] == [1.0, 3.0]
