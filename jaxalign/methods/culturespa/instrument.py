"""What a run's answers say about the instrument that they were read with: `measure` of its result.

    validity                the gate, of the unchanged model under p1: do its personas' answers,
                            averaged over presentations, follow people's, and are they closer to
                            them than a uniform answer?
    validity_joint          the same of the joint model; null if it was not trained
    dispersion.METHOD       spread between personas against that of people, of p1, p2, joint,
                            specific and cct
    diversity.METHOD        how varied answers are (`stats.diversity`), of the same methods and of
                            people: spread, options, majority, coupling and structure, each with
                            mean, seed_interval (Student's, over seeds) and by_seed
    correlation.METHOD      item means in the first presentation with those in the second, of the
                            same methods; empty with one presentation
    constant.METHOD.A       the number or letter that is answered most often in a presentation, of
                            every method
    agreement.METHOD.A      how far the replies to a question agree in a presentation, of p1 and
                            joint; empty unless several replies are sampled

The values are the records of `jaxalign.stats`: `Validity`, `PersonaDispersion`, `Interval`,
`ConstantAnswers` and `ReplicateAgreement`; null where there is nothing to measure. Of several
seeds, probabilities are averaged, answers are pooled in `constant`, and `agreement` is that of the
first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.methods.base import JOINT, P1
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.measure import PERSONAS, Answers, Measured
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.stats.agreement import persona_dispersion, replicate_agreement
from jaxalign.stats.diversity import Diversity, diversity
from jaxalign.stats.intervals import seed_interval
from jaxalign.stats.presentations import constant_answers, form_correlation, item_positions
from jaxalign.stats.validity import validity_gate
from jaxalign.surveys.presentations import present


def measure_record(
    settings: CultureSPASettings, inputs: Inputs, measured: Measured
) -> dict[str, Any]:
    """Return the entry "measure" of `result.json`.

    Args:
        settings: The run's settings.
        inputs: What they name.
        measured: What every method answered.
    """
    resampling = {"seed": settings.first_seed, "resamples": settings.resamples}
    range_Q, names = inputs.tables.range_Q, inputs.presentations
    shares = {
        name: shares_RxFxCxQxO.mean(axis=0)
        for name, shares_RxFxCxQxO in measured.shares.items()
        if name in PERSONAS and name not in measured.unchanged
    }
    means = {
        name: item_positions(shares_FxCxQxO, range_Q) for name, shares_FxCxQxO in shares.items()
    }
    people_CxQ = item_positions(inputs.tables.truth_CxQxO, range_Q)

    def gate(method: str) -> dict[str, Any] | None:
        if method not in shares:
            return None
        replies = None
        if settings.reading == "sampled":
            seeds, runs = measured.answers[method].shape[:2]
            replies = seeds * runs
        found = validity_gate(shares[method], inputs.tables, names, replies=replies, **resampling)
        return found.record()

    alone = measured.by_presentation or {names[0]: measured.answers}
    record = {
        "validity": gate(P1.key),
        "validity_joint": gate(JOINT.key),
        "dispersion": {
            name: _record(persona_dispersion(means_FxCxQ.mean(axis=0), people_CxQ, **resampling))
            for name, means_FxCxQ in means.items()
        },
        "diversity": diversity_record(
            inputs,
            {
                name: shares
                for name, shares in measured.shares.items()
                if name in PERSONAS and name not in measured.unchanged
            },
        ),
        "correlation": {
            name: _record(form_correlation(means_FxCxQ[0], means_FxCxQ[1], **resampling))
            for name, means_FxCxQ in means.items()
            if len(means_FxCxQ) > 1
        },
        "constant": {
            name: {
                presentation: _constant(inputs, presentation, answers[name])
                for presentation, answers in alone.items()
            }
            for name in measured.answers
            if name not in measured.unchanged
        },
        "agreement": _agreement(settings, inputs, alone, set(shares)),
    }
    return finite_or_none(record)


def diversity_record(inputs: Inputs, shares: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return how varied the answers of people and of methods are.

    Args:
        inputs: What the run was given.
        shares: By method, probabilities of options by seed and presentation [R, F, C, Q, O].
    """
    range_Q, people_CxQxO = inputs.tables.range_Q, inputs.tables.truth_CxQxO
    found = {
        name: [
            diversity(shares_FxCxQxO.mean(axis=0), range_Q, people_CxQxO)
            for shares_FxCxQxO in shares_RxFxCxQxO
        ]
        for name, shares_RxFxCxQxO in shares.items()
    }
    found = {"people": [diversity(people_CxQxO, range_Q, people_CxQxO)]} | found
    return {
        name: {
            field.name: over_seeds([getattr(each, field.name) for each in by_seed])
            for field in dataclasses.fields(Diversity)
        }
        for name, by_seed in found.items()
    }


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean of a value over seeds with Student's interval; None where one is missing."""
    if any(value is None for value in values):
        return {"mean": None, "seed_interval": None, "by_seed": list(values)}
    interval = seed_interval(values) if np.ptp(values) > 0 else None
    return {
        "mean": float(np.mean(values)),
        "seed_interval": None if interval is None else interval.bounds,
        "by_seed": list(values),
    }


def _record(found: Any) -> dict[str, Any] | None:
    return None if found is None else found.record()


def _constant(inputs: Inputs, presentation: str, answers: Answers) -> dict[str, Any] | None:
    marks_Q = [present(item, presentation).option_marks for item in inputs.survey.items]
    return _record(constant_answers(np.nan_to_num(answers, nan=-1).astype(int), marks_Q))


def _agreement(
    settings: CultureSPASettings,
    inputs: Inputs,
    alone: Mapping[str, Mapping[str, Answers]],
    methods: set[str],
) -> dict[str, Any]:
    """Return how far repeated questionnaires agree, by method and presentation."""
    if settings.reading != "sampled" or settings.runs < 2:
        return {}
    groups = len(settings.countries)

    def agreement(answers_RxNxCxQ: Answers) -> dict[str, Any] | None:
        # The items of all groups side by side.
        first_NxCQ = answers_RxNxCxQ[0].reshape(answers_RxNxCxQ.shape[1], -1)
        return _record(replicate_agreement(first_NxCQ, np.tile(inputs.tables.range_Q, groups)))

    return {
        name: {presentation: agreement(answers[name]) for presentation, answers in alone.items()}
        for name in (P1.key, JOINT.key)
        if name in methods
    }
