"""What a cell's prompt answers: losses in every presentation, and the held-out score.

The main job measures its prompts in the same way (`jaxalign.methods.soft_prompt.result`): by
`methods.ask`, in all presentations that are reported. Each prompt is asked by itself, so that its
last bits do not depend on the cells beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.lm.model import LM
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Persona, Plain
from jaxalign.methods.soft_prompt.answers import BothSurveys, ask_conditions
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.stats.held_out import similarity_by_item
from jaxalign.stats.lines import similarity_lines
from jaxalign.stats.objectives import Objective
from jaxalign.stats.validity import validity_gate
from jaxalign.stats.vsm import READINGS
from jaxalign.surveys.tables import make_tables

_ASKED = "asked"  # the one method of `ask_conditions`


def answer_record(
    problem: Problem, lm: LM, objective: Objective, condition: Condition, country: str
) -> dict[str, Any]:
    """Return what a condition's answers are worth for a country.

    Returns:
        `loss` and, for "vsm", `scores` by reading, under the presentations that are tuned on;
        `presentations`, the losses under each presentation; `tuned_presentations`, the names of
        those that are tuned on; `untuned`, those of the others'
        average (None if there are none); `valid_mass`; and `held_out`, the similarity to the
        country's people for each held-out item (None if the survey does not have the country).
    """
    return _record(problem, objective, ask_conditions(problem, lm, [condition]), country)


def naive_records(problem: Problem, lm: LM, objective: Objective) -> dict[str, dict[str, Any]]:
    """Return by country what the plain question's answers are worth, as `answer_record` does."""
    answers = ask_conditions(problem, lm, [Plain()])
    countries = problem.settings.countries
    return {country: _record(problem, objective, answers, country) for country in countries}


def gate_record(problem: Problem, lm: LM) -> dict[str, Any] | None:
    """Return the validity gate (`jaxalign.stats.validity`) of the model's personas.

    They answer the held-out survey, in all presentations that are reported. None where that survey
    has none of the countries.
    """
    survey = problem.held_out_survey
    countries = [c for c in problem.settings.countries if c in survey.distributions]
    if not countries:
        return None
    personas = [Persona(country, problem.group_name(country)) for country in countries]
    _, held_out = ask_conditions(problem, lm, personas)
    tables = make_tables(held_out.survey, countries)
    log_probs_FxCxQxO = np.moveaxis(held_out.by_presentation(_ASKED)[0], 1, 0)
    shares = np.exp(log_probs_FxCxQxO)[..., : tables.valid_QxO.shape[1]]
    return validity_gate(shares, tables, held_out.names).record()


def _record(
    problem: Problem, objective: Objective, answers: BothSurveys, country: str
) -> dict[str, Any]:
    tuned, held_out = answers
    group = problem.settings.countries.index(country)
    drawn = tuned.methods[_ASKED].positions_NxSxCxFxQ is not None
    readings = (*READINGS, "sampled") if drawn else READINGS

    def under(presentations: Sequence[int]) -> dict[str, dict[str, Any]]:
        found = {}
        for reading in readings:
            log_probs_QxO = tuned.log_probs(_ASKED, presentations, reading)[0, 0]
            # Shares of replies are read as probabilities are.
            as_read = objective.with_reading("expected" if reading == "sampled" else reading)
            measured = as_read.measure(log_probs_QxO, group)
            found[reading] = {name: np.asarray(value).tolist() for name, value in measured.items()}
        return found

    def losses(presentations: Sequence[int]) -> dict[str, dict[str, float]]:
        measured = under(presentations)
        return {"loss": {reading: measured[reading]["loss"] for reading in readings}}

    measured = under(tuned.tuned)
    items_Q = None
    if country in held_out.survey.distributions:
        log_probs_1xQxO = held_out.log_probs(_ASKED)[0]
        items_Q = similarity_by_item(held_out.survey, [country], log_probs_1xQxO)[0, 0].tolist()
    mass_FxQ = tuned.methods[_ASKED].valid_mass_SxCxFxQ[0, 0]
    record = {
        "loss": {reading: measured[reading]["loss"] for reading in readings},
        "scores": {reading: measured[reading].get("scores") for reading in readings},
        "presentations": {name: losses([f]) for f, name in enumerate(tuned.names)},
        "tuned_presentations": [tuned.names[f] for f in tuned.tuned],
        "untuned": losses(tuned.untuned) if tuned.untuned else None,
        "valid_mass": float(mass_FxQ[list(tuned.tuned)].mean()),
        "held_out": items_Q,
    }
    return finite_or_none(record)


def line_records(problem: Problem, objective: Objective) -> dict[str, dict[str, Any]]:
    """Return by country what answers that need no model are worth: `loss` and `held_out` by name.

    A line without a value is None; a country that the held-out survey does not have, has none.
    """
    countries, survey = problem.settings.countries, problem.held_out_survey
    asked = [country for country in countries if country in survey.distributions]
    found = similarity_lines(make_tables(survey, asked)) if asked else {}
    held_out = {
        country: {name: _mean(values_CxQ[c]) for name, values_CxQ in found.items()}
        for c, country in enumerate(asked)
    }
    return {
        country: {
            "loss": dict(objective.group_record(group)["trivial"]),
            "held_out": held_out.get(country, {}),
        }
        for group, country in enumerate(countries)
    }


def _mean(values_Q: np.ndarray) -> float | None:
    known = values_Q[~np.isnan(values_Q)]
    return float(known.mean()) if len(known) else None
