"""What answers say about the instrument, for models whose answers are made up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.core.files import plain
from jaxalign.methods.culturespa.instrument import measure_record
from jaxalign.methods.culturespa.measure import PERSONAS, Measured
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA", "SWE")
SURVEY = held_out_survey()
TABLES = make_tables(SURVEY, COUNTRIES)


def people() -> np.ndarray:
    """How people answered, as if a model answered so in both presentations [F, C, Q, O]."""
    return np.stack([TABLES.truth_CxQxO] * 2)


def number_one() -> np.ndarray:
    """A model that says 1, whatever stands behind it: the first option in A and the last in B."""
    first, last = np.zeros((2, *TABLES.truth_CxQxO.shape), np.float32)
    first[..., 0] = 1
    for q, item in enumerate(SURVEY.items):
        last[:, q, len(item.options) - 1] = 1
    return np.stack([first, last])


def record(personas_FxCxQxO, presentations=("A", "B"), **changes) -> dict:
    inputs = SimpleNamespace(survey=SURVEY, tables=TABLES, presentations=presentations)
    settings = CultureSPASettings(countries=COUNTRIES, resamples=200, seeds=1, **changes)
    shares = personas_FxCxQxO[None, : len(presentations)]

    def answers(share_RxCxQxO):
        return share_RxCxQxO.argmax(-1).astype(np.float32)[:, None]

    measured = Measured(
        answers=dict.fromkeys(PERSONAS, answers(shares.mean(axis=1))),
        right={},
        counts={},
        untrained={"cct": {"models": [], "all": True}},
        by_presentation={
            name: dict.fromkeys(PERSONAS, answers(shares[:, f]))
            for f, name in enumerate(presentations)
        }
        if len(presentations) > 1
        else {},
        shares=dict.fromkeys(PERSONAS, shares),
    )
    return plain(measure_record(settings, inputs, measured))


def test_personas_that_answer_as_people_do_pass_the_gate():
    found = record(people())
    assert found["validity"]["passes"] is found["validity_joint"]["passes"] is True
    assert found["validity"]["correlation"]["mean"] == pytest.approx(1)
    assert found["validity"]["presentations"] == ["A", "B"]
    assert found["dispersion"]["p1"]["ratio"]["mean"] == pytest.approx(1)
    assert found["correlation"]["joint"]["mean"] == pytest.approx(1)
    assert "cct" not in found["dispersion"], "no model of it was changed"
    assert list(found["diversity"]) == ["people", *(p for p in PERSONAS if p != "cct")]
    assert found["diversity"]["joint"]["structure"]["mean"] == pytest.approx(1)
    for name, of_people in found["diversity"]["people"].items():
        assert found["diversity"]["p1"][name]["mean"] == pytest.approx(of_people["mean"]), name
    assert "cct" not in found["constant"]
    assert found["agreement"] == {}


def test_a_model_that_says_one_number_does_not():
    found = record(number_one())
    assert found["validity"]["passes"] is False
    assert "do not differ between countries" in found["validity"]["sentence"]
    assert found["dispersion"]["p1"]["ratio"]["mean"] == 0
    varied = {name: found["diversity"]["p1"][name]["mean"] for name in ("spread", "options")}
    assert varied == {"spread": 0, "options": 2}, "the first option in A, the last in B"
    assert found["diversity"]["p1"]["coupling"]["mean"] is None
    assert found["correlation"]["p1"] is None, "answers do not vary"
    said = found["constant"]["p1"]
    assert [said[name]["sentence"] for name in ("A", "B")] == ["answers 1 throughout"] * 2


def test_one_presentation_has_nothing_to_correlate():
    found = record(people(), ("A",))
    assert found["correlation"] == {}
    assert list(found["constant"]["p1"]) == ["A"]
    assert found["validity"]["passes"] is True


def test_sampled_replies_are_compared_with_each_other():
    """Replies that never differ agree fully; with one reply there is nothing to compare."""
    inputs = SimpleNamespace(survey=SURVEY, tables=TABLES, presentations=("A",))
    settings = CultureSPASettings(
        countries=COUNTRIES, resamples=50, seeds=1, reading="sampled", runs=3
    )
    answers = np.stack([people().argmax(-1)[0].astype(np.float32)] * 3)[None]
    shares = dict.fromkeys(PERSONAS, people()[None, :1])
    measured = Measured(dict.fromkeys(PERSONAS, answers), {}, {}, {}, shares=shares)
    agreement = measure_record(settings, inputs, measured)["agreement"]
    assert list(agreement) == ["p1", "joint"]
    assert agreement["p1"]["A"]["flips"] == 0
    assert agreement["p1"]["A"]["icc"]["mean"] == pytest.approx(1)
    assert agreement["p1"]["A"]["items"] == len(COUNTRIES) * len(SURVEY.items)
