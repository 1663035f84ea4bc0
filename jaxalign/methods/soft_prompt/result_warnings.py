"""What a reader of a soft-prompt run must know before its numbers: `warnings` in `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.methods.base import soft_prompt_methods
from jaxalign.methods.soft_prompt.method_answers import SurveyAnswers
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.presentations import ConstantAnswers, constant_answers

_SAME = 1e-6  # probabilities that differ by less are equal but for the rounding of other programs


def warnings_of(
    problem: Problem, tuned: SurveyAnswers, held_out: SurveyAnswers
) -> list[dict[str, Any]]:
    """Return the warnings of a run.

    Args:
        problem: What was searched.
        tuned: The answers to the tuned survey.
        held_out: The answers to the held-out survey.
    """
    settings = problem.settings
    # Methods are called as in the report's legends.
    known = soft_prompt_methods(settings.strategy.algorithm, settings.reading)
    titles = {name: known[name].title for name in tuned.methods}
    return warn.warning_records(
        [
            warn.quick_look(
                settings.limit,
                f"{settings.generations} generations, {len(held_out.survey.items)} held-out items",
            ),
            _simulated(problem),
            warn.no_option({title: _valid_share(tuned, name) for name, title in titles.items()}),
            warn.one_option(_constants(tuned, settings.countries, titles)),
            warn.identical({title: _rounded(tuned, name) for name, title in titles.items()}),
            warn.few_items(len(held_out.survey.items), "held-out survey"),
            warn.few_countries(len(settings.countries)),
            *_unread(tuned, titles),
        ]
    )


def _simulated(problem: Problem) -> warn.ResultWarning | None:
    if problem.model.is_pocket:
        return warn.ResultWarning("simulated", warn.POCKET)
    if problem.simulated:
        return warn.ResultWarning("simulated", warn.SIMULATED_HELD_OUT)
    return None


def _valid_share(answers: SurveyAnswers, method: str) -> float:
    """Return the mean probability of an option, over the presentations that were tuned on."""
    # Seeds, countries and items weigh alike, as in `valid_mass` of the result.
    mass_SxCxFxQ = answers.methods[method].valid_mass_SxCxFxQ
    return float(mass_SxCxFxQ[:, :, list(answers.tuned)].mean())


def _constants(
    answers: SurveyAnswers, countries: Sequence[str], titles: dict[str, str]
) -> dict[str, dict[str, ConstantAnswers | None]]:
    """Return the mark that is answered most often, for each method and country.

    A method that answers every country alike, as the plain question does, is named once.
    """
    if answers.asked.answer != "number":
        return {}
    found = {}
    for method, title in titles.items():
        # The most likely option, in published order; its mark depends on the presentation.
        positions_SxCxFxQ = answers.methods[method].log_probs_SxCxFxQxO.argmax(axis=-1)
        alike = bool((positions_SxCxFxQ == positions_SxCxFxQ[:, :1]).all())
        for c, country in enumerate(countries[:1] if alike else countries):
            found[title if alike else f"{title}, {country}"] = {
                answers.names[f]: constant_answers(positions_SxCxFxQ[:, c, f], answers.marks(f))
                for f in answers.tuned
            }
    return found


def _rounded(answers: SurveyAnswers, method: str) -> np.ndarray:
    """Return a method's probabilities in the tuned presentations, rounded, [S, C, F, Q, O]."""
    log_probs = answers.methods[method].log_probs_SxCxFxQxO[:, :, list(answers.tuned)]
    return np.round(np.exp(log_probs) / _SAME)


def _unread(answers: SurveyAnswers, titles: dict[str, str]) -> list[warn.ResultWarning | None]:
    found = []
    for method, title in titles.items():
        # None where no replies were drawn: exact answers are always read.
        positions = answers.methods[method].positions_NxSxCxFxQ
        if positions is not None:
            found.append(warn.unread(f"the {title}", int((positions >= 0).sum()), positions.size))
    return found
