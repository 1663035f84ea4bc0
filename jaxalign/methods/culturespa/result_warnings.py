"""What a reader of a CultureSPA run must know before its numbers: `warnings` in `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.methods.base import METHODS
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.measure import Measured
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.presentations import ConstantAnswers, constant_answers
from jaxalign.surveys.presentations import present


def warnings_of(
    settings: CultureSPASettings,
    inputs: Inputs,
    measured: Measured,
    written: Mapping[int, Mapping[str, Any]],
    selected: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the warnings of a run.

    Args:
        settings: The run's settings.
        inputs: What they name.
        measured: What every method answered.
        written: The counts of step 1 by seed.
        selected: The counts of step 3 by seed.
    """
    titles = {name: METHODS[name].title for name in measured.answers}
    changed = [name for name in titles if name not in measured.unchanged]
    return warn.warning_records(
        [
            warn.quick_look(
                settings.limit,
                f"{sum(count['left'] for count in written.values()):,} questions were trained on",
            ),
            _simulated(inputs),
            _toy_guard(settings, inputs),
            warn.no_option({titles[name]: measured.valid_mass.get(name) for name in titles}),
            warn.one_option(_constants(settings, inputs, measured, titles)),
            # A model that nothing was selected for is the unchanged one, and is named as that.
            warn.identical({titles[name]: measured.answers[name] for name in changed}),
            warn.few_items(len(inputs.survey.items)),
            warn.few_pairs(_pairs(selected)),
            _written(written),
            *_unread(settings, measured, titles),
        ]
    )


def _simulated(inputs: Inputs) -> warn.ResultWarning | None:
    if inputs.survey.simulated:
        return warn.ResultWarning("simulated", warn.SIMULATED)
    return warn.ResultWarning("simulated", warn.POCKET) if inputs.files.is_pocket else None


def _toy_guard(settings: CultureSPASettings, inputs: Inputs) -> warn.ResultWarning | None:
    """Warn where a real model's general abilities were measured by the pocket model's tasks."""
    if inputs.files.is_pocket or settings.guard is not None or settings.guard_tasks:
        return None
    return warn.ResultWarning("toy_guard", warn.TOY_GUARD)


def _constants(
    settings: CultureSPASettings, inputs: Inputs, measured: Measured, titles: Mapping[str, str]
) -> dict[str, dict[str, ConstantAnswers | None]]:
    """Return the mark that is answered most often, for each method and country."""
    names, found = inputs.presentations, {}
    by_presentation = measured.by_presentation or {names[0]: measured.answers}
    marks = {
        name: [present(item, name).option_marks for item in inputs.survey.items] for name in names
    }
    for method, title in titles.items():
        answers = {
            name: np.nan_to_num(alone[method], nan=-1).astype(int)
            for name, alone in by_presentation.items()
        }
        # A style that names no country is asked once, for all of them.
        alike = all((positions == positions[:, :, :1]).all() for positions in answers.values())
        for c, country in enumerate(settings.countries[:1] if alike else settings.countries):
            found[title if alike else f"{title}, {country}"] = {
                name: constant_answers(positions[:, :, c], marks[name])
                for name, positions in answers.items()
            }
    return found


def _pairs(selected: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of pairs that each model was trained on, the least over seeds."""
    by_seed = []
    for counts in selected.values():
        sizes = {
            METHODS[name].title: sum(by_country.values())
            for name, by_country in counts["pairs"].items()
        }
        specific = counts["pairs"]["joint"].items()
        by_seed.append(sizes | {f"specific {country}": count for country, count in specific})
    return {name: min(sizes[name] for sizes in by_seed) for name in by_seed[0]} if by_seed else {}


def _written(written: Mapping[int, Mapping[str, Any]]) -> warn.ResultWarning | None:
    requests, parsed = (sum(row[key] for row in written.values()) for key in ("requests", "parsed"))
    return warn.unread("writing questions", parsed, requests)


def _unread(
    settings: CultureSPASettings, measured: Measured, titles: Mapping[str, str]
) -> list[warn.ResultWarning | None]:
    if settings.reading != "sampled":
        return []
    return [
        warn.unread(
            titles[name],
            counts["replies"] - sum(n for key, n in counts.items() if key != "replies"),
            counts["replies"],
        )
        for name, counts in measured.counts.items()
        if name in titles
    ]
