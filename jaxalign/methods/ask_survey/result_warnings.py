"""What a reader of the answers must know before any number: `warnings` in `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.methods.ask_survey.inputs import AskInputs
from jaxalign.methods.ask_survey.settings import AskSettings
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.presentations import ConstantAnswers, constant_answers
from jaxalign.surveys.presentations import show
from jaxalign.surveys.responses import Responses

ByGroup = Mapping[str | None, Responses]


def warnings_of(
    settings: AskSettings, inputs: AskInputs, responses: Mapping[str, ByGroup]
) -> list[dict[str, Any]]:
    """Return the warnings of a run.

    Args:
        settings: The run's settings.
        inputs: What they name.
        responses: The answers by a row's key and group.
    """
    titles = {row.key: row.title for row in inputs.rows}
    return warn.warning_records(
        [
            warn.quick_look(settings.limit, f"{len(inputs.survey.items)} items were asked"),
            _simulated(inputs),
            warn.no_option({titles[key]: _valid_mass(by) for key, by in responses.items()}),
            warn.one_option(_constants(settings, inputs, responses, titles)),
            *_identical(responses, titles),
            warn.few_items(len(inputs.survey.items), "test" if inputs.test else "survey")
            if inputs.has_answers or inputs.test
            else None,
            *_unread(settings, responses, titles),
        ]
    )


def _simulated(inputs: AskInputs) -> warn.ResultWarning | None:
    if inputs.survey.simulated:
        return warn.ResultWarning("simulated", warn.SIMULATED)
    return warn.ResultWarning("simulated", warn.POCKET) if inputs.files.is_pocket else None


def _valid_mass(by_group: ByGroup) -> float | None:
    masses = np.concatenate([answers.valid_mass.ravel() for answers in by_group.values()])
    known = masses[~np.isnan(masses)]
    return float(known.mean()) if len(known) else None


def _constants(
    settings: AskSettings,
    inputs: AskInputs,
    responses: Mapping[str, ByGroup],
    titles: Mapping[str, str],
) -> dict[str, dict[str, ConstantAnswers | None]]:
    """Return the mark that is answered most often, by way of asking and group."""
    if settings.answer != "number":
        return {}
    asked = show(inputs.survey.items, inputs.presentations)
    found: dict[str, dict[str, ConstantAnswers | None]] = {}
    for key, by_group in responses.items():
        for group, answers in by_group.items():
            name = f"{titles[key]}, {group}" if group else titles[key]
            found[name] = {}
            for presentation, shown_Q in zip(asked.names, asked.index_FxQ, strict=True):
                alone = answers.by_presentation
                positions = (answers if alone is None else alone[presentation]).answers()
                marks = [
                    [asked.shown[s].reply_of(o) for o in range(len(asked.shown[s].order))]
                    for s in shown_Q
                ]
                found[name][presentation] = constant_answers(
                    np.nan_to_num(positions, nan=-1).astype(int), marks
                )
    return found


def _identical(
    responses: Mapping[str, ByGroup], titles: Mapping[str, str]
) -> list[warn.ResultWarning | None]:
    """Compare ways of asking that speak as the same groups, and those that name none."""
    by_groups: dict[tuple[str | None, ...], dict[str, np.ndarray]] = {}
    for key, by_group in responses.items():
        answers = np.concatenate([found.answers() for found in by_group.values()], axis=1)
        by_groups.setdefault(tuple(by_group), {})[titles[key]] = answers
    nobody = by_groups.pop((None,), {})
    found = [warn.identical(nobody | rows) for rows in by_groups.values()]
    return found or [warn.identical(nobody)]


def _unread(
    settings: AskSettings, responses: Mapping[str, ByGroup], titles: Mapping[str, str]
) -> list[warn.ResultWarning | None]:
    if settings.reading != "sampled":
        return []
    found = []
    for key, by_group in responses.items():
        counts = [answers.counts() for answers in by_group.values()]
        replies = sum(count["replies"] for count in counts)
        lost = sum(n for count in counts for name, n in count.items() if name != "replies")
        found.append(warn.unread(titles[key], replies - lost, replies))
    return found
