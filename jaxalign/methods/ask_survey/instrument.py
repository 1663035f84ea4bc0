"""What a run's answers say about the instrument that they were read with: `measure` of its result.

    answer, presentations  what named an option, and the forms in which items were shown
    rows.KEY:
        .validity       the gate, of a row that speaks as two countries or more: do its answers,
                        averaged over presentations, follow people's, and are they closer to them
                        than a uniform answer?
        .dispersion     spread between its personas against that of people
        .correlation    item means in the first presentation with those in the second: first,
                        second, mean, low, high
        .spread         the mean score over presentations, and how far it varies between them
        .presentations.NAME:
            .mean, .scores   alignment in points over the countries spoken as, and by COUNTRY
            .valid_mass      probability that a reply begins with an option
            .constant        the number, letter or text that is answered most often
            .agreement       how far repeated replies agree, if several are sampled

The values are the records of `jaxalign.stats`: `Validity`, `PersonaDispersion`, `Interval`,
`FormSpread`, `ConstantAnswers` and `ReplicateAgreement`; null where there is nothing to measure.
With one presentation it stands alone in `presentations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.methods.ask_survey.inputs import AskInputs, Row
from jaxalign.methods.ask_survey.settings import AskSettings
from jaxalign.stats.agreement import persona_dispersion, replicate_agreement
from jaxalign.stats.paired_scores import drawn_scores
from jaxalign.stats.presentations import (
    constant_answers,
    form_correlation,
    item_positions,
    spread_over_forms,
)
from jaxalign.stats.validity import validity_gate
from jaxalign.surveys.presentations import Shown, ShownItems, show
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.tables import Tables, make_tables

ByGroup = Mapping[str | None, Responses]


def measure_record(
    settings: AskSettings, inputs: AskInputs, responses: Mapping[str, ByGroup]
) -> dict[str, Any]:
    """Return the entry "measure" of `result.json`.

    Args:
        settings: The run's settings.
        inputs: What they name.
        responses: The answers by a row's key and group.
    """
    reply = "mark" if settings.answer == "number" else "label"
    found = show(inputs.survey.items, inputs.presentations, reply)
    tables = make_tables(inputs.survey, inputs.countries) if inputs.has_answers else None
    record = {
        "answer": settings.answer,
        "presentations": list(found.names),
        "rows": {
            row.key: _row(settings, inputs, found, tables, row, responses[row.key])
            for row in inputs.rows
        },
    }
    return finite_or_none(record)


def _row(
    settings: AskSettings,
    inputs: AskInputs,
    asked: ShownItems,
    tables: Tables | None,
    row: Row,
    by_group: ByGroup,
) -> dict[str, Any]:
    alone = {
        name: {group: _alone(answers, name) for group, answers in by_group.items()}
        for name in asked.names
    }
    each = {
        name: _presentation(settings, [asked.shown[s] for s in shown_Q], tables, row, alone[name])
        for name, shown_Q in zip(asked.names, asked.index_FxQ, strict=True)
    }
    record: dict[str, Any] = dict.fromkeys(("validity", "dispersion", "correlation", "spread"))
    record["presentations"] = each
    resampling = {"seed": settings.seed, "resamples": settings.resamples}
    shares_FxGxQxO = np.stack(
        [np.concatenate([a.distributions() for a in part.values()]) for part in alone.values()]
    )
    range_Q = np.array([len(item.options) - 1 for item in inputs.survey.items], np.float32)
    means_FxGxQ = item_positions(shares_FxGxQxO, range_Q)
    if len(alone) > 1:
        found = form_correlation(means_FxGxQ[0], means_FxGxQ[1], **resampling)
        if found is not None:
            first, second = asked.names[:2]
            record["correlation"] = {"first": first, "second": second} | found.record()
        scores_F = [part["mean"] for part in each.values()]
        if tables is not None and not np.isnan(scores_F).any():
            record["spread"] = spread_over_forms(
                np.array(scores_F), list(each), **resampling
            ).record()
    groups = tuple(by_group)
    if tables is not None and len(groups) > 1:
        spoken = make_tables(inputs.survey, groups)
        gate = validity_gate(shares_FxGxQxO, spoken, asked.names, **resampling)
        record["validity"] = gate.record()
        people_CxQ = item_positions(spoken.truth_CxQxO, range_Q)
        dispersion = persona_dispersion(means_FxGxQ.mean(axis=0), people_CxQ, **resampling)
        record["dispersion"] = _record(dispersion)
    return record


def _alone(answers: Responses, presentation: str) -> Responses:
    """Return the responses under one presentation."""
    if answers.by_presentation is None:
        return answers
    return answers.by_presentation[presentation]


def _presentation(
    settings: AskSettings,
    shown_Q: Sequence[Shown],
    tables: Tables | None,
    row: Row,
    by_group: ByGroup,
) -> dict[str, Any]:
    """Return what is known of a row under one presentation."""
    replies_Q = [[s.reply_of(o) for o in range(len(s.order))] for s in shown_Q]
    # [N, G, Q] -> the items of all groups side by side.
    positions_NxGxQ = np.nan_to_num(
        np.concatenate([answers.answers() for answers in by_group.values()], axis=1), nan=-1
    )
    masses = np.concatenate([answers.valid_mass.ravel() for answers in by_group.values()])
    masses = masses[~np.isnan(masses)]
    record = {
        "mean": np.nan,
        "scores": {},
        "valid_mass": float(masses.mean()) if len(masses) else None,
        "constant": _record(constant_answers(positions_NxGxQ.astype(int), replies_Q)),
        "agreement": None,
    }
    if settings.reading == "sampled" and settings.runs > 1:
        groups = positions_NxGxQ.shape[1]
        range_Q = [len(shown.order) - 1 for shown in shown_Q]
        record["agreement"] = _record(
            replicate_agreement(
                positions_NxGxQ.reshape(len(positions_NxGxQ), -1), np.tile(range_Q, groups)
            )
        )
    if tables is not None:
        scores = _scores(by_group, tables)
        spoken = scores if row.groups == (None,) else {g: scores[g] for g in row.groups}
        record |= {"mean": float(np.mean(list(spoken.values()))), "scores": spoken}
    return record


def _scores(by_group: ByGroup, tables: Tables) -> dict[str, float]:
    """Return the alignment score by country, in points, the mean over repeated replies."""
    answers = {group: found.answers()[:, 0] for group, found in by_group.items()}
    nobody = np.full_like(next(iter(answers.values())), np.nan)
    everyone = answers.get(None, nobody)
    positions_NxCxQ = np.stack([answers.get(c, everyone) for c in tables.countries], axis=1)
    every_item = np.ones((1, positions_NxCxQ.shape[-1]), np.float32)
    scores_C = drawn_scores(positions_NxCxQ, tables, every_item)[0].mean(axis=0)
    return dict(zip(tables.countries, scores_C.tolist(), strict=True))


def _record(found: Any) -> dict[str, Any] | None:
    return None if found is None else found.record()
