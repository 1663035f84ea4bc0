"""Step 2 of CultureSPA: how questions are put to a model, all styles and groups in one program.

Exact answers are the probability of each option; sampled answers are the first integer of several
replies. Answers are kept in OUT/answers, from where a killed run continues.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxalign.answering.batch import (
    OUT_OF_RANGE,
    UNREADABLE,
    Answered,
    answer_exact,
    answer_sampled,
    from_log_probs,
    from_runs,
)
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import encode
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.generate import generate
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import STYLES, Style, encode_styles, groups_asked
from jaxalign.runs import settings_of
from jaxalign.surveys.survey import Item, Survey

BASE = "base"  # the unchanged model's name among the models of a run

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class Replies:
    """What groups C (one row for a style that names none) answer to items Q in N runs.

    Attributes:
        answered: Option probabilities, or shares of the sampled replies.
        position_NxCxQ: Position of the option chosen, negative without an answer (`UNREADABLE`,
            `OUT_OF_RANGE`); a single run if answers are exact.
    """

    answered: Answered
    position_NxCxQ: np.ndarray

    @property
    def answers_NxCxQ(self) -> np.ndarray:
        """Positions as float32, NaN without an answer."""
        return np.where(self.position_NxCxQ < 0, np.nan, self.position_NxCxQ).astype(np.float32)

    @property
    def counts(self) -> dict[str, int]:
        """Number of replies, of those without a number, and of those with a number of no option."""
        return {
            "replies": self.position_NxCxQ.size,
            "unreadable": int((self.position_NxCxQ == UNREADABLE).sum()),
            "out_of_range": int((self.position_NxCxQ == OUT_OF_RANGE).sum()),
        }

    def of_items(self, items: slice) -> Replies:
        """Return the replies to some of the items."""
        distribution_CxQxO = self.answered.distribution_CxQxO[:, items]
        return Replies(Answered(distribution_CxQxO), self.position_NxCxQ[:, :, items])


@dataclasses.dataclass(frozen=True)
class StyledConversations:
    """Every item in several styles for several groups, as tokens.

    Attributes:
        conversations: Style by style, group by group, item by item.
        items: The questions.
        rows: Each style with its number of groups.
    """

    conversations: Conversations
    items: tuple[Item, ...]
    rows: tuple[tuple[Style, int], ...]


def in_styles(
    inputs: Inputs, styles: Sequence[Style], groups: Sequence[str], items: Sequence[Item]
) -> StyledConversations:
    """Encode every item in every style for every group; "unaware" names none and is asked once."""
    tokens = inputs.files.tokenizer
    conversations = encode_styles(tokens, inputs.prompts, styles, groups, items)
    rows = tuple((style, len(groups_asked(style, groups))) for style in styles)
    return StyledConversations(conversations, tuple(items), rows)


def ask(
    experiment: Experiment,
    lm: LM,
    name: str,
    asked: StyledConversations,
    seed: int,
    on_progress: OnProgress = ignore,
) -> dict[Style, Replies]:
    """Ask a model and return its replies by style.

    Args:
        experiment: The run, whose directory keeps the answers.
        lm: The model: the unchanged one, or one with an adapter merged into its weights.
        name: Its name, `BASE` or an adapter's; answers are kept under it.
        asked: The conversations.
        seed: Seed of sampled replies; exact answers do not depend on it.
        on_progress: Called with the number of answers.
    """
    settings = experiment.settings
    rows, items = len(asked.conversations) // len(asked.items), len(asked.items)
    key = f"{lm.sha256} {name} {settings_of(settings, fixed_only=True)}"
    if settings.reading == "exact":
        log_probs = answer_exact(
            lm.config,
            lm.params,
            asked.conversations,
            lm.mesh,
            key=key,
            folder=experiment.out / "answers",
            block_tokens=settings.block_tokens,
            on_progress=on_progress,
        )
        answered = from_log_probs(log_probs.reshape(rows, items, -1))
        position_NxRxQ = answered.most_likely_CxQ[None]
    else:
        position = answer_sampled(
            _sampler(settings, lm, seed),
            lm.tokenizer,
            asked.conversations,
            asked.items,
            runs=settings.runs,
            key=f"{key} seed {seed}",
            folder=experiment.out / "answers",
            on_progress=on_progress,
        ).reshape(rows, items, settings.runs)
        answered = from_runs(position, asked.items)
        position_NxRxQ = np.moveaxis(position, -1, 0)
    # Cut the rows R back into styles, each with its own groups C.
    replies, start = {}, 0
    for style, count in asked.rows:
        here = slice(start, start + count)
        distribution_CxQxO = answered.distribution_CxQxO[here]
        replies[style] = Replies(Answered(distribution_CxQxO), position_NxRxQ[:, here])
        start += count
    return replies


def _sampler(
    settings: CultureSPASettings, lm: LM, seed: int
) -> Callable[[list[list[int]], list[int]], list[list[int]]]:
    def sample(prompts: list[list[int]], ids: list[int]) -> list[list[int]]:
        return generate(
            lm.config,
            lm.params,
            prompts,
            settings.answering,
            lm.tokenizer.stop_ids,
            seed,
            ids,
            settings.batch_size,
            mesh=lm.mesh,
        )

    return sample


def answer_survey(experiment: Experiment) -> list[dict[Style, Replies]]:
    """Ask the unchanged model the survey in every style, once per group of equivalent seeds.

    Returns:
        Replies by style, for each of the settings' `seed_groups`.
    """
    _log.info("2 answer: the survey in every style")
    inputs = experiment.inputs
    asked = in_styles(inputs, STYLES, experiment.groups, inputs.survey.items)
    on_progress = experiment.reporting("2 answer the survey")
    return [
        ask(experiment, experiment.lm, BASE, asked, seeds[0], on_progress)
        for seeds in experiment.settings.seed_groups
    ]


def answer_written(
    experiment: Experiment, questions: Mapping[int, Survey]
) -> dict[int, dict[Style, Replies]]:
    """Ask the unchanged model the written questions in the styles that selection compares.

    Args:
        experiment: The run.
        questions: The written questions by seed.

    Returns:
        Replies by seed and style ("unaware", "p1", "p2").
    """
    _log.info("2 answer: the written questions")
    replies_of = {}
    on_progress = experiment.reporting("2 answer the questions")
    for seeds in experiment.settings.seed_groups:
        # The questions of all seeds that are answered alike are asked together.
        items = [item for seed in seeds for item in questions[seed].items]
        asked = in_styles(experiment.inputs, ("unaware", "p1", "p2"), experiment.groups, items)
        replies = ask(experiment, experiment.lm, BASE, asked, seeds[0], on_progress)
        start = 0
        for seed in seeds:
            here = slice(start, start + len(questions[seed].items))
            replies_of[seed] = {style: replies[style].of_items(here) for style in replies}
            start = here.stop
    return replies_of


def right_answers(experiment: Experiment, lm: LM, name: str) -> np.ndarray:
    """Ask a model the guard's questions plainly, without a system message.

    Returns:
        bool, one per question: whether the most likely option is the right one.
    """
    inputs = experiment.inputs
    items = [item for item, _ in inputs.guard]
    conversations = encode(lm.tokenizer, inputs.prompts.texts.prompts, [[]], items)
    log_probs = answer_exact(
        lm.config,
        lm.params,
        conversations,
        lm.mesh,
        key=f"{lm.sha256} {name}",
        folder=experiment.out / "answers",
        block_tokens=experiment.settings.block_tokens,
    )
    chosen_Q = from_log_probs(log_probs[None]).most_likely_CxQ[0]
    return chosen_Q == np.array([right for _, right in inputs.guard])
