"""What each method answers to a survey: under every seed, for every country, in every presentation.

Letters: N reply, S seed (one where a method has none), C country, F presentation, Q item, O option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxalign.answering.asked import AskedItems
from jaxalign.stats.presentation_mean import mean_log_probs
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.responses import NOT_ANSWERS
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

SEEDED = ("start", "tuned", "gradient")  # methods with a prompt of its own for each seed


@dataclasses.dataclass(frozen=True, eq=False)
class MethodAnswers:
    """What one method answers.

    Attributes:
        log_probs_SxCxFxQxO: float32, normalised over an item's options; -inf past them.
        valid_mass_SxCxFxQ: float32, the probability that a reply begins with an option.
        positions_NxSxCxFxQ: int8, the option that each of N sampled replies names, in published
            order, or why it names none; None where no replies were drawn.
    """

    log_probs_SxCxFxQxO: np.ndarray
    valid_mass_SxCxFxQ: np.ndarray
    positions_NxSxCxFxQ: np.ndarray | None = None

    @property
    def seeds(self) -> int:
        """S, the number of seeds."""
        return len(self.log_probs_SxCxFxQxO)

    def of_seed(self, s: int) -> MethodAnswers:
        """Return the answers under one seed, counted from 0; S is then 1."""
        replies = self.positions_NxSxCxFxQ
        return MethodAnswers(
            self.log_probs_SxCxFxQxO[s : s + 1],
            self.valid_mass_SxCxFxQ[s : s + 1],
            None if replies is None else replies[:, s : s + 1],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SurveyAnswers:
    """What all methods answer to one survey.

    Attributes:
        survey: The survey.
        asked: Its items as they were asked, in F presentations.
        tuned: Which of the presentations answers are averaged over: those that are tuned on.
        methods: The answers by method.
    """

    survey: Survey
    asked: AskedItems
    tuned: tuple[int, ...]
    methods: Mapping[str, MethodAnswers]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the presentations."""
        return self.asked.presentations

    @property
    def untuned(self) -> tuple[int, ...]:
        """Which of the presentations are not tuned on."""
        return tuple(f for f in range(len(self.names)) if f not in self.tuned)

    def log_probs(
        self, method: str, presentations: Sequence[int] | None = None, reading: str = "expected"
    ) -> np.ndarray:
        """Return a method's answers, averaged over presentations: float32 [S, C, Q, O].

        Args:
            method: The method.
            presentations: Which to average over; default: those that are tuned on.
            reading: "sampled" takes the shares of the replies for probabilities; an item of which
                no reply names an option counts as answered uniformly, as in the search.
        """
        answers = self.methods[method]
        by_form_SxCxFxQxO = answers.log_probs_SxCxFxQxO
        if reading == "sampled":
            with np.errstate(divide="ignore"):
                by_form_SxCxFxQxO = np.log(
                    reply_shares(self.survey, answers.positions_NxSxCxFxQ, by_form_SxCxFxQxO)
                )
        # Each presentation of each item is a row, and an item's rows are averaged.
        chosen = list(self.tuned if presentations is None else presentations)
        F, Q, O = by_form_SxCxFxQxO.shape[2:]  # noqa: E741
        flat = by_form_SxCxFxQxO.reshape(*by_form_SxCxFxQxO.shape[:2], F * Q, O)
        return mean_log_probs(flat, np.arange(F * Q).reshape(F, Q)[chosen])

    def by_presentation(self, method: str) -> np.ndarray:
        """Return a method's answers in each presentation, float32 [S, C, F, Q, O]."""
        return self.methods[method].log_probs_SxCxFxQxO

    def marks(self, presentation: int) -> list[tuple[str, ...]]:
        """Return, for each item, what stands before its options in published order."""
        # An item that looks alike in two presentations was asked once.
        rows = (self.asked.rows[row] for row in self.asked.index_FxQ[presentation])
        return [row.option_marks for row in rows]

    def fill(
        self, table: AnswerTable, countries: Sequence[str], seeds: Sequence[int], name: str
    ) -> None:
        """Add all answers to a table.

        What is the same for all countries, as the plain question, is there once and names none.

        Args:
            table: The table.
            countries: The C countries.
            seeds: The seeds; a method without one names none.
            name: What the survey is called.
        """
        for method, given in self.methods.items():
            by_country = given.log_probs_SxCxFxQxO
            # One condition was asked for all countries where the same row stands for each.
            alike = bool((by_country == by_country[:, :1]).all())
            for s in range(given.seeds):
                for c, country in enumerate(countries[:1] if alike else countries):
                    for f, presentation in enumerate(self.names):
                        drawn = given.positions_NxSxCxFxQ
                        table.add(
                            self.survey,
                            by_country[s, c, f],
                            given.valid_mass_SxCxFxQ[s, c, f],
                            None if drawn is None else drawn[:, s, c, f],
                            method=method,
                            name=name,
                            country="" if alike else country,
                            seed=seeds[s] if method in SEEDED else "",
                            presentation=presentation,
                        )

    def of_seed(self, s: int, methods: Sequence[str]) -> SurveyAnswers:
        """Return the answers of some methods under one seed, counted from 0."""
        chosen = {name: self.methods[name].of_seed(s) for name in methods}
        return dataclasses.replace(self, methods=chosen)

    def joined(self, others: SurveyAnswers) -> SurveyAnswers:
        """Return the answers with those of other methods to the same survey."""
        return dataclasses.replace(self, methods={**self.methods, **others.methods})


def reply_shares(survey: Survey, positions_NxxQ: np.ndarray, like_xQxO: np.ndarray) -> np.ndarray:
    """Return the share of the readable replies that name each option, float32 [..., Q, O].

    Uniform over an item's options where no reply names one.

    Args:
        survey: The survey.
        positions_NxxQ: The option that each of N replies names, negative for none.
        like_xQxO: An array with the shape of the result.
    """
    valid_QxO, _ = option_table(survey)
    options = np.arange(like_xQxO.shape[-1])
    # Answers may have more option columns than this survey's longest item.
    valid_QxO = np.pad(valid_QxO, ((0, 0), (0, len(options) - valid_QxO.shape[1])))
    uniform_QxO = valid_QxO / valid_QxO.sum(axis=-1, keepdims=True)
    # Marks of replies that name no option are negative and equal none.
    counts = (positions_NxxQ[..., None] == options).sum(axis=0)
    readable = counts.sum(axis=-1, keepdims=True)
    shares = np.where(readable > 0, counts / np.maximum(readable, 1), uniform_QxO)
    return shares.astype(np.float32)


def reply_counts(positions: np.ndarray) -> dict[str, int]:
    """Return how many replies there are, and how many of them name no option, by reason."""
    return {"replies": int(positions.size)} | {
        reason: int((positions == mark).sum()) for reason, mark in NOT_ANSWERS.items()
    }
