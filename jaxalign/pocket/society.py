"""The simulated society: how the people of each country answer, so that every claim has a truth.

A culture is a point: six dimension scores (0...100) and a small part of its own per item. Its
answers are a fixed function of that point. With z = (scores - 50) / 25:

    ordinal   expected code = base_q + loadings_q . z + own_cq; the shares are a logistic
              distribution cut at the half codes whose location gives exactly that expectation
    nominal   shares = softmax(base_qo + loadings_qo . z + own_cqo)

The values module's loadings are the least-norm ones that return a country's six published scores
through the formulas of VSM 2013 with C = 50; its own parts lie where those formulas cannot see.
The other items' loadings are hand-chosen signs (`drivers` in `data/`) plus seeded small ones.

Nobody was asked anything. Country scores are published figures (hofstede.csv names their source);
every answer here is simulated, and no number that follows from it is a finding about people.
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
from jaxalign.surveys.hofstede import DIMENSIONS, country_name, edition_scores
from jaxalign.surveys.survey import Item, Survey, from_json, vsm

__all__ = [
    "DIMENSIONS", "PERSONA_COUNTRIES", "Culture", "Response", "adherence", "countries",
    "country_name", "culture", "held_out_survey", "home", "level", "question_bank", "responses",
    "shares_NxO", "society_values_module",
]  # fmt: skip

# Countries that a persona line names. All others are answered for too, and also trained on.
PERSONA_COUNTRIES = (
    "USA", "CAN", "BRA", "BOL", "MEX", "GBR", "NLD", "DEU", "FRA", "SWE",
    "UKR", "RUS", "CHN", "IND", "THA", "JPN", "SAU", "NGA", "AUS", "NZL",
)  # fmt: skip
_OWN = 0.10  # deviation of the own part, in fifths of a scale


def _values_own(country: str) -> dict[str, np.ndarray]:
    """A country's own part where its six scores do not see it: both items of a pair move
    together, and the two pairs of a dimension against each other in the ratio of the weights."""
    own = {}
    for d, (first, second) in FORMULAS.items():
        random = stream("own", country, d)
        against = random.normal(0, _OWN) / np.hypot(first[0], second[0])
        for (_, plus, minus), gap in ((first, second[0] * against), (second, -first[0] * against)):
            both = random.normal(0, _OWN)
            own[f"m{plus:02d}"] = np.array([both + gap / 2])
            own[f"m{minus:02d}"] = np.array([both - gap / 2])
    return own


def _held_out_own(country: str) -> dict[str, np.ndarray]:
    own = {}
    for item, response in responses().items():
        if item not in values_responses():
            unit = 2.0 if response.nominal else (response.options - 1) / 4
            own[item] = unit * stream("own", country, item).normal(0, _OWN, len(response.base))
    return own


@functools.cache
def _survey_fields() -> dict[str, Any]:
    path = resources.files("jaxalign.pocket").joinpath("data/held_out_survey.json")
    return json.loads(path.read_text("utf-8"))


@functools.cache
def responses() -> dict[str, Response]:
    """Item id -> response, for the values module and the held-out survey."""
    out = dict(values_responses())
    for row in _survey_fields()["items"]:
        out[row["id"]] = driven_response(row["id"], len(row["options"]), row["drivers"])
    return out


@functools.cache
def countries() -> dict[str, np.ndarray]:
    """ISO3 -> scores [6] of every country with all six published in the default edition."""
    return {
        iso3: np.array([row[d] for d in DIMENSIONS])
        for iso3, row in edition_scores().items()
        if len(row) == len(DIMENSIONS)
    }


@functools.cache
def culture(iso3: str) -> Culture:
    """A country's point."""
    if iso3 not in countries():
        raise UserError(f"country {iso3!r}: not in the simulated society; {sorted(countries())}")
    own = _values_own(iso3) | _held_out_own(iso3)
    return Culture((countries()[iso3] - 50) / 25, own)


def _with_answers(instrument: Survey) -> Survey:
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
    """The values module as every country of the simulated society answers it."""
    return _with_answers(vsm())


@functools.cache
def held_out_survey() -> Survey:
    """The held-out survey, 82 items on 13 topics, as every simulated country answers it."""
    return _with_answers(from_json(_survey_fields(), "held_out_survey.json"))


@functools.cache
def question_bank() -> tuple[tuple[Item, Response], ...]:
    """Questions like those a model writes: every frame with every subject, and their responses."""
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
    """The culture a model that is told nothing answers from: the USA, 15% of the way to the mean
    of the persona countries. Models trained on the web answer near the USA, not exactly as it."""
    others = [culture(c) for c in PERSONA_COUNTRIES]
    ids = others[0].own
    own = {i: np.mean([o.own[i] for o in others], axis=0) for i in ids}
    middle = Culture(np.mean([o.z_6 for o in others], axis=0), own)
    return culture("USA").toward(middle, 0.15)


def adherence(examples: int, persona: float = 0.0) -> float:
    """Share of the way from home to a country: n / (n + 1), where the persona line counts as two
    examples and one that also names similar and different cultures as three. So a persona alone
    moves the answers two thirds of the way: weaker than real people, and alike for all."""
    evidence = examples + persona
    return evidence / (evidence + 1)
