"""The answers that a soft-prompt run compares: both surveys under baselines and tuned prompts.

What is asked is known as token ids before anything is computed (`baseline_questions`,
`tuned_questions`), so that the programs can be compiled before the search. Everything is asked by
`jaxalign.methods.ask.answer`, which keeps the answers in the run's directory as they come, from
where a killed run continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM
from jaxalign.methods.ask import Answers, Exact, Questions, answer, encode_conditions
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Persona, Plain
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.surveys.responses import Responses

ByMethod = dict[str, Responses]  # by a method's key, one condition per country
BothSurveys = tuple[ByMethod, ByMethod]  # responses to the tuned survey, and to the held-out one


def baseline_questions(problem: Problem) -> Questions:
    """Return both surveys' questions asked plainly, as each country, and after its examples.

    Condition by condition: the plain question, one persona a country, one list of examples a
    country.
    """
    groups = problem.settings.countries
    personas = [Persona(group, problem.group_name(group)) for group in groups]
    return _questions(problem, [Plain(), *personas, *map(problem.in_context, groups)])


def tuned_questions(problem: Problem, prompts_PxMxD: Sequence[jax.Array | np.ndarray]) -> Questions:
    """Return both surveys' questions asked under soft prompts, prompt by prompt."""
    placement = problem.settings.prompt.placement
    return _questions(
        problem, [SoftPrompt(np.asarray(prompt_MxD), placement) for prompt_MxD in prompts_PxMxD]
    )


def ask_baselines(
    problem: Problem, lm: LM, folder: Path | None = None, on_progress: OnProgress = ignore
) -> BothSurveys:
    """Ask both surveys under each baseline; return the responses to the tuned and the held-out one.

    Args:
        problem: What is compared.
        lm: The model.
        folder: Directory that keeps the answers; None keeps none.
        on_progress: Called with the number of blocks of questions that are answered.
    """
    answers = _answer(
        problem, lm, baseline_questions(problem), folder, on_progress, "baselines, block"
    )
    # Rows of each method's conditions, one per country; the plain question is the same for all.
    count = len(problem.settings.countries)
    rows = {
        "naive": [0] * count,
        "persona": list(range(1, 1 + count)),
        "icl": list(range(1 + count, 1 + 2 * count)),
    }
    return _by_survey(problem, answers, rows)


def ask_tuned(
    problem: Problem,
    lm: LM,
    prompts: Mapping[str, jax.Array],
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
) -> BothSurveys:
    """Ask both surveys under the prompts of each method.

    Args:
        problem: What is compared.
        lm: The model.
        prompts: By method, one prompt per country: float32 [C, M, D].
        folder: Directory that keeps the answers; None keeps none.
        on_progress: Called with the number of blocks of questions that are answered.

    Returns:
        The responses to the tuned and to the held-out survey.
    """
    # Method by method, country by country.
    every = [prompt_MxD for prompts_CxMxD in prompts.values() for prompt_MxD in prompts_CxMxD]
    questions = tuned_questions(problem, every)
    answers = _answer(problem, lm, questions, folder, on_progress, "tuned prompts, block")
    # Each method's prompts are consecutive conditions, one per country.
    count = len(problem.settings.countries)
    rows = {m: list(range(i * count, (i + 1) * count)) for i, m in enumerate(prompts)}
    return _by_survey(problem, answers, rows)


def _questions(problem: Problem, conditions: Sequence[Condition]) -> Questions:
    items = (*problem.tuned_survey.items, *problem.held_out_survey.items)
    return encode_conditions(problem.model, problem.prompts, conditions, items)


def _answer(
    problem: Problem,
    lm: LM,
    questions: Questions,
    folder: Path | None,
    on_progress: OnProgress,
    task: str,
) -> Answers:
    return answer(
        lm,
        questions,
        Exact(),
        key=f"{problem.model.sha256} {problem.settings.weights}",
        folder=folder,
        on_progress=on_progress,
        task=task,
    )


def _by_survey(problem: Problem, answers: Answers, rows: Mapping[str, list[int]]) -> BothSurveys:
    """Cut answers into surveys and methods."""
    tuned, held_out = problem.tuned_survey, problem.held_out_survey
    countries = problem.settings.countries
    return tuple(
        {name: answers.responses(survey, first, r, countries) for name, r in rows.items()}
        for survey, first in ((tuned, 0), (held_out, len(tuned.items)))
    )
