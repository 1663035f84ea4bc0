"""The simulated society: how the people of each country answer, so that the truth is known.

A culture is a point: six dimension scores (0...100) and a small offset for each item. Its answers
are a fixed function of that point. With z = (scores - 50) / 25:

    ordinal   expected code = base_q + loadings_q . z + offset_cq; the shares are those of a
              logistic distribution, cut at the half codes, with exactly that expectation
    nominal   shares = softmax(base_qo + loadings_qo . z + offset_cqo)

The loadings of the values module have the least norm with which the formulas of VSM 2013 at C = 50
give back a country's six published scores; its offsets do not change those scores. The loadings of
other items are signs chosen by hand (`drivers` in `data/`) plus small random numbers.

Nobody was asked anything. Country scores are published figures (hofstede.csv names their source).
All answers are simulated, and no number derived from them is a finding about people.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.pocket.responses import (
    Culture,
    Response,
    driven_response,
    level,
    shares_NxO,
    stream,
    values_responses,
)
from jaxalign.stats.vsm import FORMULAS
from jaxalign.surveys.hofstede import DIMENSIONS, edition_scores
from jaxalign.surveys.names import country_name
from jaxalign.surveys.survey import Item, Survey, from_json, vsm

__all__ = [
    "DIMENSIONS",
    "PERSONA_COUNTRIES",
    "Culture",
    "Response",
    "adherence",
    "countries",
    "country_name",
    "culture",
    "held_out_survey",
    "home",
    "level",
    "question_bank",
    "responses",
    "shares_NxO",
    "society_values_module",
]

_PERSONA_COUNTRIES = """
USA CAN BRA BOL MEX GBR NLD DEU FRA SWE UKR RUS CHN IND THA JPN SAU NGA AUS NZL
"""
# Countries that persona lines name half of the time. All others are trained on as well.
PERSONA_COUNTRIES = tuple(_PERSONA_COUNTRIES.split())
_OFFSET = 0.10  # standard deviation of the offsets, in fifths of a scale


def _values_offsets(country: str) -> dict[str, np.ndarray]:
    """Return a country's offsets on the values module, which leave its six scores unchanged.

    Both items of a pair move together, and the two pairs of a dimension against each other in the
    ratio of their weights.
    """
    offsets = {}
    for d, (first, second) in FORMULAS.items():
        random = stream("own", country, d)
        against = random.normal(0, _OFFSET) / np.hypot(first[0], second[0])
        for (_, plus, minus), gap in ((first, second[0] * against), (second, -first[0] * against)):
            both = random.normal(0, _OFFSET)
            offsets[f"m{plus:02d}"] = np.array([both + gap / 2])
            offsets[f"m{minus:02d}"] = np.array([both - gap / 2])
    return offsets


def _held_out_offsets(country: str) -> dict[str, np.ndarray]:
    """Return a country's offsets on the items of the held-out survey."""
    offsets = {}
    for item, response in responses().items():
        if item not in values_responses():
            unit = 2.0 if response.nominal else (response.options - 1) / 4
            random = stream("own", country, item)
            offsets[item] = unit * random.normal(0, _OFFSET, len(response.base))
    return offsets


@functools.cache
def _survey_fields() -> dict[str, Any]:
    path = resources.files("jaxalign.pocket").joinpath("data/held_out_survey.json")
    return json.loads(path.read_text("utf-8"))


@functools.cache
def responses() -> dict[str, Response]:
    """Return the responses of the values module and the held-out survey, by item id."""
    out = dict(values_responses())
    for row in _survey_fields()["items"]:
        out[row["id"]] = driven_response(row["id"], len(row["options"]), row["drivers"])
    return out


@functools.cache
def countries() -> dict[str, np.ndarray]:
    """Return scores [6] by ISO code, of countries with all six in the default edition."""
    return {
        iso3: np.array([row[d] for d in DIMENSIONS])
        for iso3, row in edition_scores().items()
        if len(row) == len(DIMENSIONS)
    }


@functools.cache
def culture(iso3: str) -> Culture:
    """Return a country's point; UserError if it is not in the simulated society."""
    if iso3 not in countries():
        raise UserError(f"country {iso3!r}: not in the simulated society; {sorted(countries())}")
    offsets = _values_offsets(iso3) | _held_out_offsets(iso3)
    return Culture((countries()[iso3] - 50) / 25, offsets)


def _with_answers(instrument: Survey) -> Survey:
    """Return the survey with the answers of every country."""
    table = [responses()[item.id] for item in instrument.items]
    answers = {}
    for country in countries():
        point = culture(country)
        levels = [level(r, point, i.id) for r, i in zip(table, instrument.items, strict=True)]
        rows = shares_NxO(table, levels)
        answers[country] = {
            item.id: tuple(rows[q, : len(item.options)].tolist())
            for q, item in enumerate(instrument.items)
        }
    return dataclasses.replace(instrument, distributions=answers, simulated=True)


@functools.cache
def society_values_module() -> Survey:
    """Return the values module with the answers of every country of the simulated society."""
    return _with_answers(vsm())


@functools.cache
def held_out_survey() -> Survey:
    """Return the held-out survey, 82 items on 13 topics, with every country's answers."""
    return _with_answers(from_json(_survey_fields(), "held_out_survey.json"))


@functools.cache
def question_bank() -> tuple[tuple[Item, Response], ...]:
    """Return questions like those that a model writes, with their responses.

    They combine every frame with every subject of `data/question_bank.json`.
    """
    path = resources.files("jaxalign.pocket").joinpath("data/question_bank.json")
    bank = json.loads(path.read_text("utf-8"))
    out = []
    for s, subject in enumerate(bank["subjects"]):
        for f, frame in enumerate(bank["frames"]):
            n = len(frame["options"])
            drivers = {d: frame["direction"] * v for d, v in subject["drivers"].items()}
            item = Item(
                id=f"bank{s:03d}{f}",
                text=frame["text"].format(x=subject["about"]),
                options=tuple(frame["options"]),
                codes=tuple(range(1, n + 1)),
                topic=subject["topic"],
            )
            out.append((item, driven_response(subject["about"], n, drivers)))
    return tuple(out)


@functools.cache
def home() -> Culture:
    """Return the culture that the model answers from when it is told nothing.

    It is the USA, moved 15% of the way to the mean of the persona countries: models trained on the
    web answer near the USA, but not exactly like it.
    """
    others = [culture(c) for c in PERSONA_COUNTRIES]
    ids = others[0].offsets
    offsets = {i: np.mean([o.offsets[i] for o in others], axis=0) for i in ids}
    middle = Culture(np.mean([o.z_6 for o in others], axis=0), offsets)
    return culture("USA").toward(middle, 0.15)


def adherence(examples: int, persona: float = 0.0) -> float:
    """Return the share of the way from home to a country that answers are taught to move.

    The share is n / (n + 1) for n examples. A persona line counts as two examples, and one that
    also names similar and different cultures as three. A persona alone thus moves the answers two
    thirds of the way: less than to the real people, and equally for all countries.

    Args:
        examples: Number of the country's answers shown before.
        persona: Number of examples that the persona line is worth.
    """
    evidence = examples + persona
    return evidence / (evidence + 1)
