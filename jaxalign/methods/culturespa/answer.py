"""Step 2 of CultureSPA: how questions are put to a model, all styles and groups in one program.

Exact answers are the probability of each option; sampled answers are the first integer of several
replies. Answers are kept in OUT/answers, from where a killed run continues.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from jaxalign.answering.batch import answer_exact
from jaxalign.answering.block_plan import BlockPlan
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.sampled import answer_sampled, model_sampler
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.styles import STYLES, Style, encode_styles, groups_asked
from jaxalign.runs import settings_of
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey

BASE = "base"  # the unchanged model's name among the models of a run

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class StyledConversations:
    """Every item of some surveys in several styles for several groups, as tokens.

    Attributes:
        conversations: Style by style, group by group, item by item.
        surveys: The surveys whose items are asked, one after the other.
        rows: Each style with the groups it asks for; ("",) for a style that names none.
        plan: The conversations cut into blocks, if that has been done.
    """

    conversations: Conversations
    surveys: tuple[Survey, ...]
    rows: tuple[tuple[Style, tuple[str, ...]], ...]
    plan: BlockPlan | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The questions of all surveys."""
        return tuple(item for survey in self.surveys for item in survey.items)


def in_styles(
    inputs: Inputs, styles: Sequence[Style], groups: Sequence[str], *surveys: Survey
) -> StyledConversations:
    """Encode every item in every style for every group; "unaware" names none and is asked once."""
    items = [item for survey in surveys for item in survey.items]
    conversations = encode_styles(inputs.files.tokenizer, inputs.prompts, styles, groups, items)
    rows = tuple((style, groups_asked(style, groups)) for style in styles)
    return StyledConversations(conversations, surveys, rows)


def ask(
    experiment: Experiment,
    lm: LM,
    name: str,
    asked: StyledConversations,
    seed: int,
    on_progress: OnProgress = ignore,
) -> tuple[dict[Style, Responses], ...]:
    """Ask a model and return its responses by style, for each of the surveys.

    The conditions of the responses are the groups of the style, or the style's own name where it
    names none.

    Args:
        experiment: The run, whose directory keeps the answers.
        lm: The model: the unchanged one, or one with an adapter beside its weights.
        name: Its name, `BASE` or an adapter's; answers are kept under it.
        asked: The conversations.
        seed: Seed of sampled replies; exact answers do not depend on it.
        on_progress: Called with the number of answers.
    """
    settings = experiment.settings
    items = asked.items
    rows = len(asked.conversations) // len(items)
    log_probs_RxQxO = mass_RxQ = positions_NxRxQ = None
    key = f"{lm.sha256} {name} {settings_of(settings, fixed_only=True)}"
    if settings.reading == "exact":
        answered = answer_exact(
            lm.config,
            lm.params,
            asked.conversations,
            lm.mesh,
            key=key,
            folder=experiment.out / "answers",
            block_tokens=settings.block_tokens,
            plan=asked.plan,
            on_progress=on_progress,
        )
        log_probs_RxQxO = answered.log_probs_NxO.reshape(rows, len(items), -1)
        mass_RxQ = answered.valid_mass_N.reshape(rows, len(items))
    else:
        positions_RxQxN = answer_sampled(
            model_sampler(lm, settings.answering, seed, settings.batch_size),
            lm.tokenizer,
            asked.conversations,
            items,
            runs=settings.runs,
            key=f"{key} seed {seed}",
            folder=experiment.out / "answers",
            on_progress=on_progress,
        ).reshape(rows, len(items), settings.runs)
        positions_NxRxQ = np.moveaxis(positions_RxQxN, -1, 0)

    # Cut the columns Q into surveys, and the rows R into styles with their groups.
    responses, column = [], 0
    for survey in asked.surveys:
        columns = slice(column, column + len(survey.items))
        most = max(len(item.options) for item in survey.items)
        by_style, row = {}, 0
        for style, groups in asked.rows:
            here = slice(row, row + len(groups))
            labels = tuple(group or style for group in groups)
            if positions_NxRxQ is None:
                answers = Responses(
                    survey,
                    labels,
                    log_probs_RxQxO[here, columns, :most],
                    mass_RxQ[here, columns],
                )
            else:
                answers = Responses.from_positions(
                    survey, labels, positions_NxRxQ[:, here, columns]
                )
            by_style[style] = answers
            row = here.stop
        responses.append(by_style)
        column = columns.stop
    return tuple(responses)


def answer_survey(experiment: Experiment) -> list[dict[Style, Responses]]:
    """Ask the unchanged model the survey in every style, once per group of equivalent seeds.

    Returns:
        Responses by style, for each of the settings' `seed_groups`.
    """
    _log.info("2 answer: the survey in every style")
    inputs = experiment.inputs
    asked = in_styles(inputs, STYLES, experiment.groups, inputs.survey)
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
        Responses by seed and style ("unaware", "p1", "p2").
    """
    _log.info("2 answer: the written questions")
    responses = {}
    on_progress = experiment.reporting("2 answer the questions")
    for seeds in experiment.settings.seed_groups:
        # The questions of all seeds that are answered alike are asked together.
        surveys = [questions[seed] for seed in seeds]
        styles = ("unaware", "p1", "p2")
        asked = in_styles(experiment.inputs, styles, experiment.groups, *surveys)
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
    log_probs_QxO = answer_exact(
        lm.config,
        lm.params,
        inputs.guard_conversations,
        lm.mesh,
        key=f"{lm.sha256} {name}",
        folder=experiment.out / "answers",
        block_tokens=experiment.settings.block_tokens,
        plan=plan,
        on_progress=on_progress,
    ).log_probs_NxO
    chosen_Q = np.exp(log_probs_QxO, dtype=np.float32).argmax(axis=-1)
    return chosen_Q == np.array([right for _, right in inputs.guard])
