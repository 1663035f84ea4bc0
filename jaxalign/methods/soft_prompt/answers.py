"""The answers that a soft-prompt run compares: both surveys under baselines and tuned prompts.

What is asked is known as token ids before anything is computed (`baseline_conversations`,
`tuned_conversations`), so that the programs can be compiled before the search. The answers are kept
in the run's directory as they come, from where a killed run continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxalign.answering.batch import ExactAnswers, answer_exact
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import SoftLeadIn, encode
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM
from jaxalign.methods.conditions import Persona, Plain
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item

ByMethod = dict[str, Responses]  # by a method's key, one condition per country
BothSurveys = tuple[ByMethod, ByMethod]  # responses to the tuned survey, and to the held-out one


def baseline_conversations(problem: Problem) -> Conversations:
    """Return both surveys' questions asked plainly, as each country, and after its examples.

    Condition by condition: the plain question, one persona a country, one list of examples a
    country.
    """
    groups = problem.settings.countries
    personas = [Persona(group, problem.group_name(group)) for group in groups]
    in_context = [problem.in_context(group) for group in groups]
    lead_ins = [c.lead_in(problem.prompts) for c in (Plain(), *personas, *in_context)]
    return encode(problem.model.tokenizer, problem.prompts, lead_ins, _items(problem))


def tuned_conversations(problem: Problem, prompts: int) -> Conversations:
    """Return both surveys' questions asked under `prompts` soft prompts, prompt by prompt.

    The prompts are rows of the embeddings that the answers are computed with, one after the other.
    """
    prompt, V = problem.settings.prompt, problem.model.config.vocab_size
    # Ids past the vocabulary: prompt p owns `length` of them, from V + p * length on.
    firsts = range(V, V + prompts * prompt.length, prompt.length)
    lead_ins = [SoftLeadIn(range(i, i + prompt.length), prompt.placement) for i in firsts]
    return encode(problem.model.tokenizer, problem.prompts, lead_ins, _items(problem))


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
    answers = answer_exact(
        lm.config,
        lm.params,
        baseline_conversations(problem),
        lm.mesh,
        key=_key(problem),
        folder=folder,
        on_progress=on_progress,
        task="baselines, block",
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
    # Method by method, country by country: the order of `tuned_conversations`.
    every = [prompt_MxD for prompts_CxMxD in prompts.values() for prompt_MxD in prompts_CxMxD]
    answers = answer_exact(
        lm.config,
        lm.params,
        tuned_conversations(problem, len(every)),
        lm.mesh,
        extra_ExD=np.concatenate([np.asarray(prompt_MxD) for prompt_MxD in every]),
        key=_key(problem),
        folder=folder,
        on_progress=on_progress,
        task="tuned prompts, block",
    )
    # Each method's prompts are consecutive conditions, one per country.
    count = len(problem.settings.countries)
    rows = {m: list(range(i * count, (i + 1) * count)) for i, m in enumerate(prompts)}
    return _by_survey(problem, answers, rows)


def _items(problem: Problem) -> tuple[Item, ...]:
    return (*problem.tuned_survey.items, *problem.held_out_survey.items)


def _key(problem: Problem) -> str:
    """Return what answers depend on besides what is asked."""
    return f"{problem.model.sha256} {problem.settings.weights}"


def _by_survey(
    problem: Problem, answers: ExactAnswers, rows: Mapping[str, list[int]]
) -> BothSurveys:
    """Cut answers, condition by condition and item by item, into surveys and methods."""
    items = len(_items(problem))
    log_probs_AxQxO = answers.log_probs_NxO.reshape(-1, items, answers.log_probs_NxO.shape[-1])
    mass_AxQ = answers.valid_mass_N.reshape(-1, items)
    first = len(problem.tuned_survey.items)
    surveys = (
        (problem.tuned_survey, slice(None, first)),
        (problem.held_out_survey, slice(first, None)),
    )
    found = []
    for survey, columns in surveys:
        # Option columns past the longest item of this survey belong to the other survey's items.
        most = max(len(item.options) for item in survey.items)
        found.append(
            {
                name: Responses(
                    survey,
                    problem.settings.countries,
                    log_probs_AxQxO[r, columns, :most],
                    mass_AxQ[r, columns],
                )
                for name, r in rows.items()
            }
        )
    return found[0], found[1]
