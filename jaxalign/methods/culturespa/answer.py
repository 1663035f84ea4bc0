"""Step 2 of CultureSPA: how questions are put to a model, all styles and groups in one program.

Exact answers are the probability of each option; sampled answers are the first integer of several
replies. Everything is asked by `jaxalign.methods.ask.answer`, which keeps the answers in
OUT/answers, from where a killed run continues.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.answering.block_plan import BlockPlan
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.sampled import Sampler
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM
from jaxalign.methods.ask import Exact, Questions, Reading, Sampled, answer, encode_conditions
from jaxalign.methods.culturespa.conditions import in_style
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import STYLES, Style, groups_asked
from jaxalign.methods.endpoint import Endpoint, EndpointReplies, server_sampler
from jaxalign.prompts import Message
from jaxalign.runs import settings_of
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey

BASE = "base"  # the unchanged model's name among the models of a run
COMPARED: tuple[Style, ...] = ("unaware", "p1", "p2")  # the styles that selection compares

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class StyledConversations:
    """Every item of some surveys in several styles for several groups, as tokens.

    Attributes:
        questions: Style by style, group by group, presentation by presentation, item by item.
        surveys: The surveys whose items are asked, one after the other.
        rows: Each style with the groups it asks for; ("",) for a style that names none.
        plan: The conversations cut into blocks, if that has been done.
    """

    questions: Questions
    surveys: tuple[Survey, ...]
    rows: tuple[tuple[Style, tuple[str, ...]], ...]
    plan: BlockPlan | None = None

    @property
    def conversations(self) -> Conversations:
        """The questions as token ids."""
        return self.questions.conversations


def in_styles(
    inputs: Inputs, styles: Sequence[Style], groups: Sequence[str], *surveys: Survey
) -> StyledConversations:
    """Encode every item in every style for every group, in all presentations of the run.

    "unaware" names no group and is asked once.
    """
    items = [item for survey in surveys for item in survey.items]
    conditions = [c for style in styles for c in in_style(style, inputs.prompts, groups)]
    questions = encode_conditions(
        inputs.files, inputs.prompts.texts.prompts, conditions, items, inputs.presentations
    )
    rows = tuple((style, groups_asked(style, groups)) for style in styles)
    return StyledConversations(questions, surveys, rows)


def ask(
    experiment: Experiment,
    lm: LM,
    name: str,
    asked: StyledConversations,
    seed: int,
    on_progress: OnProgress = ignore,
) -> tuple[dict[Style, Responses], ...]:
    """Ask a model and return its responses by style, for each of the surveys.

    Responses are the mean over presentations; `Responses.by_presentation` has those in each, if
    there are several. Their conditions are the groups of the style, or the style's own name where
    it names none.

    Args:
        experiment: The run, whose directory keeps the answers.
        lm: The model: the unchanged one, or one with an adapter beside its weights.
        name: Its name, `BASE` or an adapter's; answers are kept under it.
        asked: The conversations.
        seed: Seed of sampled replies; exact answers do not depend on it.
        on_progress: Called with the number of answers.
    """
    settings = experiment.settings
    answers = answer(
        lm,
        dataclasses.replace(asked.questions, plan=asked.plan),
        _reading(settings, seed),
        key=f"{lm.sha256} {name} {settings_of(settings, fixed_only=True)}",
        folder=experiment.out / "answers",
        on_progress=on_progress,
        sampler=_server(experiment, asked, seed)
        if settings.generator_answers and name == BASE
        else None,
    )
    # Cut the items into surveys, and the conditions into styles with their groups.
    responses, first = [], 0
    for survey in asked.surveys:
        by_style, row = {}, 0
        for style, groups in asked.rows:
            labels = tuple(group or style for group in groups)
            rows = slice(row, row + len(groups))
            by_style[style] = answers.responses(survey, first, rows, labels)
            row = rows.stop
        responses.append(by_style)
        first += len(survey.items)
    return tuple(responses)


def _server(experiment: Experiment, asked: StyledConversations, seed: int) -> Sampler:
    """Return what has the server of `generator` write the unchanged model's replies."""
    settings, prompts = experiment.settings, experiment.inputs.prompts
    questions = asked.questions
    of_condition = [(style, group) for style, groups in asked.rows for group in groups]
    condition_N = np.zeros(len(questions.conversations), int)
    for a, index_FxQ in enumerate(questions.index_AxFxQ):
        condition_N[index_FxQ] = a

    def messages(name: tuple[int, int]) -> list[Message]:
        """Return the conversation of (number of the conversation, run)."""
        shown = questions.asked.rows[questions.row_N[name[0]]]
        return prompts.conversation(*of_condition[condition_N[name[0]]], shown)

    def sample(*requests: Any) -> Iterator[tuple[Any, Sequence[int]]]:
        # Not before the first reply is wanted: a study of a finished run needs no server.
        endpoint = Endpoint.of(settings.generator, settings.generator_model)
        path = experiment.out / "endpoint-answers.jsonl"
        replies = EndpointReplies(endpoint, settings.answering, seed, path, settings.batch_size)
        encode = experiment.inputs.files.tokenizer.encode
        yield from server_sampler(replies, messages, encode)(*requests)

    return sample


def _reading(settings: CultureSPASettings, seed: int) -> Reading:
    """Return how a run reads answers."""
    if settings.reading == "exact":
        return Exact(settings.block_tokens)
    return Sampled(settings.runs, settings.answering, seed, settings.batch_size)


def answer_survey(
    experiment: Experiment, styles: Sequence[Style] = STYLES
) -> list[dict[Style, Responses]]:
    """Ask the unchanged model the survey, once per group of equivalent seeds.

    Args:
        experiment: The run.
        styles: The styles to ask in; default: all.

    Returns:
        Responses by style, for each of the settings' `seed_groups`.
    """
    inputs = experiment.inputs
    asked = in_styles(inputs, styles, experiment.groups, inputs.survey)
    on_progress = experiment.reporting("2 answer the survey")
    return [
        ask(experiment, experiment.lm, BASE, asked, seeds[0], on_progress)[0]
        for seeds in experiment.settings.seed_groups
    ]


def answer_written(
    experiment: Experiment, questions: Mapping[int, Survey]
) -> dict[int, dict[Style, Responses]]:
    """Ask the unchanged model the written questions in the styles that selection compares.

    Args:
        experiment: The run.
        questions: The written questions by seed.

    Returns:
        Responses by seed and style.
    """
    responses = {}
    on_progress = experiment.reporting("2 answer the questions")
    for seeds in experiment.settings.seed_groups:
        # The questions of all seeds that are answered alike are asked together.
        surveys = [questions[seed] for seed in seeds]
        asked = in_styles(experiment.inputs, COMPARED, experiment.groups, *surveys)
        answers = ask(experiment, experiment.lm, BASE, asked, seeds[0], on_progress)
        responses |= dict(zip(seeds, answers, strict=True))
    return responses


def right_answers(
    experiment: Experiment,
    lm: LM,
    name: str,
    plan: BlockPlan | None = None,
    on_progress: OnProgress = ignore,
) -> np.ndarray:
    """Ask a model the guard's questions plainly, without a system message.

    Args:
        experiment: The run, whose directory keeps the answers.
        lm: The model: the unchanged one, or one with an adapter beside its weights.
        name: Its name, `BASE` or an adapter's; answers are kept under it.
        plan: The guard's questions cut into blocks, if that has been done.
        on_progress: Called with the number of answers.

    Returns:
        bool, one per question: whether the most likely option is the right one.
    """
    inputs = experiment.inputs
    answers = answer(
        lm,
        dataclasses.replace(inputs.guard_questions, plan=plan),
        Exact(experiment.settings.block_tokens),
        key=f"{lm.sha256} {name}",
        folder=experiment.out / "answers",
        on_progress=on_progress,
    )
    chosen_Q = np.exp(answers.log_probs_AxQxO[0], dtype=np.float32).argmax(axis=-1)
    return chosen_Q == np.array([right for _, right in inputs.guard])
