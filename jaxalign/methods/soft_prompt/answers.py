"""The answers that a soft-prompt run compares: both surveys under baselines and tuned prompts.

Every method is asked in every presentation that is reported. What is asked is known as token ids
before anything is computed (`baseline_questions`, `tuned_questions`, `history_questions`), so that
the programs can be compiled before the search. Everything is asked by
`jaxalign.methods.ask.answer`, which keeps the answers in the run's directory as they come, from
where a killed run continues.

Letters: E entry (a country under a seed, seed by seed), S seed, C country, M prompt token, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxalign.answering.batch import default_block_tokens
from jaxalign.answering.block_plan import BlockPlan, plan_blocks, with_one_shape
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM
from jaxalign.methods.ask import Answers, Exact, Questions, Sampled, answer, encode_conditions
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Persona, Plain
from jaxalign.methods.soft_prompt.history import points
from jaxalign.methods.soft_prompt.method_answers import MethodAnswers, SurveyAnswers
from jaxalign.methods.soft_prompt.problem import AskedSurveys, Problem
from jaxalign.methods.soft_prompt.prompt import SoftPrompt

BothSurveys = tuple[SurveyAnswers, SurveyAnswers]  # answers to the tuned survey, and the held-out
Rows = Mapping[str, np.ndarray]  # by method, which condition is each seed's and country's: [S, C]
Prompts = Mapping[str, np.ndarray | jax.Array]  # by method, one prompt per entry: [E, M, D]


def baseline_questions(problem: Problem) -> list[Questions]:
    """Return both surveys' questions asked plainly, as each country, and after its examples.

    Condition by condition: the plain question, one persona a country, one list of examples a
    country.
    """
    return [_questions(problem, _baselines(problem), asked) for asked in problem.reported]


def tuned_questions(
    problem: Problem, prompts_PxMxD: Sequence[jax.Array | np.ndarray]
) -> list[Questions]:
    """Return both surveys' questions asked under soft prompts, prompt by prompt."""
    conditions = _conditions(problem, prompts_PxMxD)
    return [_questions(problem, conditions, asked) for asked in problem.reported]


def reply_questions(
    problem: Problem, prompts_PxMxD: Sequence[jax.Array | np.ndarray] | None = None
) -> Questions:
    """Return the tuned survey's questions that replies are drawn to, in all presentations.

    Args:
        problem: What is compared.
        prompts_PxMxD: The soft prompts; None asks under the baselines.
    """
    baselines = prompts_PxMxD is None
    conditions = _baselines(problem) if baselines else _conditions(problem, prompts_PxMxD)
    return _reply_questions(problem, conditions)


def history_questions(
    problem: Problem, prompts_PxMxD: Sequence[jax.Array | np.ndarray], rows: int
) -> list[Questions]:
    """Return both surveys' questions in the tuned presentations, under prompts found on the way.

    Args:
        problem: What is compared.
        prompts_PxMxD: The prompts.
        rows: Embeddings that `tuned_questions` has, for which its program is compiled. So many
            prompts at a time make one of the lists.
    """
    length = problem.settings.prompt.length
    # As many prompts as the compiled program has room for; the last list is padded.
    at_a_time = rows // length
    found = []
    for start in range(0, len(prompts_PxMxD), at_a_time):
        conditions = _conditions(problem, prompts_PxMxD[start : start + at_a_time])
        questions = _questions(problem, conditions, problem.scored_on_the_way)
        lacking = rows - len(questions.extra_ExD)
        extra_ExD = np.pad(questions.extra_ExD, ((0, lacking), (0, 0)))
        found.append(dataclasses.replace(questions, extra_ExD=extra_ExD))
    return found


def kept_generations(problem: Problem) -> tuple[int, ...]:
    """Return the generations whose best prompts are asked too, without the last."""
    if problem.scored_on_the_way is None:
        return ()
    return points(problem.settings)[:-1]


def plans_of_one_shape(questions: Sequence[Questions], block_tokens: int) -> list[BlockPlan]:
    """Cut questions into blocks of one shape, so that one program answers all of them.

    Where their options differ in what is read of them, each has a shape of its own.
    """
    plans = [plan_blocks(asked.conversations, block_tokens) for asked in questions]
    try:
        return with_one_shape(plans)
    except ValueError:
        return plans


def ask_baselines(
    problem: Problem, lm: LM, folder: Path | None = None, on_progress: OnProgress = ignore
) -> BothSurveys:
    """Ask both surveys under each baseline; return the answers to the tuned and the held-out one.

    Args:
        problem: What is compared.
        lm: The model.
        folder: Directory that keeps the answers; None keeps none.
        on_progress: Called with the number of blocks of questions that are answered.
    """
    questions = baseline_questions(problem)
    # Rows of each method's conditions, one per country; the plain question is the same for all.
    count = len(problem.settings.countries)
    rows = {
        "naive": np.zeros((1, count), int),
        "persona": 1 + np.arange(count)[None],
        "icl": 1 + count + np.arange(count)[None],
    }
    conditions = _baselines(problem)
    return _ask(problem, lm, questions, conditions, rows, folder, on_progress, "baselines")


def ask_tuned(
    problem: Problem,
    lm: LM,
    prompts: Prompts,
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
    history: Prompts | None = None,
) -> tuple[BothSurveys, BothSurveys | None]:
    """Ask both surveys under the prompts of each method.

    Args:
        problem: What is compared.
        lm: The model.
        prompts: By method, one prompt per entry: float32 [E, M, D].
        folder: Directory that keeps the answers; None keeps none.
        on_progress: Called with the number of blocks of questions that are answered.
        history: By name, prompts that the search had found on the way, likewise. They are asked in
            the presentations that are tuned on alone.

    Returns:
        The answers to the tuned and to the held-out survey; and those under `history`.
    """
    # Final and earlier prompts share plans of one shape, and so one program.
    every, rows = _flat(problem, prompts)
    questions, conditions = tuned_questions(problem, every), _conditions(problem, every)
    if not history:
        found = _ask(problem, lm, questions, conditions, rows, folder, on_progress, "tuned prompts")
        return found, None
    earlier, earlier_rows = _flat(problem, history)
    on_the_way = history_questions(problem, earlier, len(questions[0].extra_ExD))
    tokens = default_block_tokens(lm.mesh.devices.flat[0].platform)
    plans = plans_of_one_shape([*questions, *on_the_way], tokens)
    planned = [
        dataclasses.replace(asked, plan=plan)
        for asked, plan in zip([*questions, *on_the_way], plans, strict=True)
    ]
    questions, on_the_way = planned[: len(questions)], planned[len(questions) :]
    found = _ask(problem, lm, questions, conditions, rows, folder, on_progress, "tuned prompts")
    answers = [
        _exact(problem, lm, asked, folder, on_progress, "earlier prompts, block")
        for asked in on_the_way
    ]
    parts = [(problem.scored_on_the_way, _joined(answers))]
    return found, _cut(problem, parts, earlier_rows)


def ask_conditions(problem: Problem, lm: LM, conditions: Sequence[Condition]) -> BothSurveys:
    """Ask both surveys under any conditions; return the answers to the tuned and the held-out one.

    Args:
        problem: What is asked.
        lm: The model.
        conditions: The conditions.

    Returns:
        The answers of one "method", `asked`, which has one seed and a "country" per condition.
    """
    # Planned here, so that a caller with many conditions, one by one, does not fill the log.
    tokens = default_block_tokens(lm.mesh.devices.flat[0].platform)
    questions = [
        dataclasses.replace(asked, plan=plan_blocks(asked.conversations, tokens))
        for asked in (_questions(problem, conditions, part) for part in problem.reported)
    ]
    rows = {"asked": np.arange(len(conditions))[None]}
    return _ask(problem, lm, questions, conditions, rows, None, ignore, "answers")


def _flat(problem: Problem, prompts: Prompts) -> tuple[list[np.ndarray], Rows]:
    """Return all prompts in a row, method by method, and where each entry's stands."""
    every = [
        np.asarray(prompt_MxD) for prompts_ExMxD in prompts.values() for prompt_MxD in prompts_ExMxD
    ]
    shape = len(problem.settings.seeds), len(problem.settings.countries)
    # An entry is a seed's country; entries are listed seed by seed.
    first, rows = 0, {}
    for name, prompts_ExMxD in prompts.items():
        rows[name] = first + np.arange(len(prompts_ExMxD)).reshape(shape)
        first += len(prompts_ExMxD)
    return every, rows


def _baselines(problem: Problem) -> list[Condition]:
    groups = problem.settings.countries
    # The plain question first, then a persona and examples for every country.
    personas = [Persona(group, problem.group_name(group)) for group in groups]
    return [Plain(), *personas, *map(problem.in_context, groups)]


def _conditions(
    problem: Problem, prompts_PxMxD: Sequence[jax.Array | np.ndarray]
) -> list[Condition]:
    placement = problem.settings.prompt.placement
    return [SoftPrompt(np.asarray(prompt_MxD), placement) for prompt_MxD in prompts_PxMxD]


def _questions(problem: Problem, conditions: Sequence[Condition], asked: AskedSurveys) -> Questions:
    return encode_conditions(
        problem.model,
        problem.prompts,
        conditions,
        asked.items,
        asked.presentations,
        problem.settings.answer,
    )


def _reply_questions(problem: Problem, conditions: Sequence[Condition]) -> Questions:
    # Replies take long, so the held-out survey is read exactly.
    return _questions(problem, conditions, problem.reported[0].alone(problem.tuned_survey))


def _ask(
    problem: Problem,
    lm: LM,
    questions: Sequence[Questions],
    conditions: Sequence[Condition],
    rows: Rows,
    folder: Path | None,
    on_progress: OnProgress,
    task: str,
) -> BothSurveys:
    """Ask what is reported, and draw replies to the tuned survey where they are wanted."""
    block = f"{task}, block"
    parts = [
        (asked, _exact(problem, lm, q, folder, on_progress, block))
        for asked, q in zip(problem.reported, questions, strict=True)
    ]
    both = _cut(problem, parts, rows)
    if not problem.settings.samples:
        return both
    replies = answer(
        lm,
        _reply_questions(problem, conditions),
        # Written as far as in the search, so that both read the same.
        Sampled(runs=problem.settings.replies, seed=problem.settings.seed, whole=False),
        key=_key(problem),
        folder=folder,
        on_progress=lambda p: on_progress(dataclasses.replace(p, task=f"{task}, reply")),
    )
    drawn = {
        name: np.stack(
            [part.positions_NxAxQ[:, rows[name]] for part in _by_presentation(replies).values()],
            axis=3,
        )
        for name in rows
    }
    methods = {
        name: dataclasses.replace(found, positions_NxSxCxFxQ=drawn[name])
        for name, found in both[0].methods.items()
    }
    return dataclasses.replace(both[0], methods=methods), both[1]


def _exact(
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
        Exact(answer=problem.settings.answer),
        key=_key(problem),
        folder=folder,
        on_progress=on_progress,
        task=task,
    )


def _key(problem: Problem) -> str:
    return f"{problem.model.sha256} {problem.settings.weights}"


def _by_presentation(answers: Answers) -> Mapping[str, Answers]:
    return answers.by_presentation or {"": answers}


def _cut(
    problem: Problem, parts: Sequence[tuple[AskedSurveys, Answers]], rows: Rows
) -> BothSurveys:
    """Cut answers into surveys and methods."""
    found = {}
    for asked, answers in parts:
        each = list(_by_presentation(answers).values())
        # Surveys that were asked together stand one after another.
        first = 0
        for survey in asked.surveys:
            columns = slice(first, first + len(survey.items))
            first += len(survey.items)
            # Option columns past the survey's longest item belong to items of other surveys.
            most = max(len(item.options) for item in survey.items)
            methods = {
                name: MethodAnswers(
                    np.stack([a.log_probs_AxQxO[r][..., columns, :most] for a in each], axis=2),
                    np.stack([a.valid_mass_AxQ[r][..., columns] for a in each], axis=2),
                )
                for name, r in rows.items()
            }
            found[id(survey)] = problem.survey_answers(survey, asked.presentations, methods)
    return found[id(problem.tuned_survey)], found[id(problem.held_out_survey)]


def _joined(parts: Sequence[Answers]) -> Answers:
    """Return exact answers under the conditions of all parts, one after the other."""
    by_presentation = None
    if parts[0].by_presentation is not None:
        by_presentation = {
            name: _joined([part.by_presentation[name] for part in parts])
            for name in parts[0].by_presentation
        }
    return Answers(
        tuple(name for part in parts for name in part.conditions),
        np.concatenate([part.log_probs_AxQxO for part in parts]),
        np.concatenate([part.valid_mass_AxQ for part in parts]),
        by_presentation=by_presentation,
    )
