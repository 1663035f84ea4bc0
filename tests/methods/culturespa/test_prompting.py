"""The fine-tuned models under every prompt style, without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.core.files import plain
from jaxalign.methods.culturespa import CultureSPASettings, prompting
from jaxalign.methods.culturespa.inputs import Experiment, read_inputs
from jaxalign.methods.culturespa.prompting import (
    OTHER_STYLES,
    Prompted,
    ask_in_other_styles,
    prompting_record,
)
from jaxalign.methods.culturespa.styles import STYLES
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN")
SETTINGS = CultureSPASettings(
    countries=COUNTRIES, seeds=2, resamples=30, block_tokens=2048, p3_choice="topics"
)


@pytest.fixture(scope="module")
def inputs():
    whole = read_inputs(SETTINGS)
    survey = whole.survey.subset({item.id for item in whole.survey.items[:8]})
    return dataclasses.replace(whole, survey=survey, tables=make_tables(survey, COUNTRIES))


def answer_of(name: str, style: str) -> int:
    """The position that a made-up model answers to every item."""
    return (sum(map(ord, name)) + STYLES.index(style)) % 2


def fake_ask(experiment, lm, name, asked, seed, on_progress):
    on_progress(SimpleNamespace(done=1, total=1))
    survey = experiment.inputs.survey
    return (
        {
            style: Responses.from_positions(
                survey,
                groups,
                np.full((1, len(groups), len(survey.items)), answer_of(name, style), np.int8),
            )
            for style, groups in asked.rows
        },
    )


def test_every_model_is_asked_in_the_styles_it_was_not_trained_with(inputs, monkeypatch):
    monkeypatch.setattr(prompting, "ask", fake_ask)
    asked_of, events = [], []
    names = [(0, "joint"), (0, "cct"), (0, "specific-USA"), (1, "specific-CHN")]
    adapters = {
        name: SimpleNamespace(attach=lambda lm, name=name: asked_of.append(name)) for name in names
    }
    experiment = Experiment(SETTINGS, inputs, None, Path(), events.append)
    Q = len(inputs.survey.items)
    base = {style: np.full((1, 1, 2, Q), 7, np.float32) for style in STYLES}
    found = ask_in_other_styles(experiment, adapters, base)
    assert asked_of == [(0, "joint"), (0, "specific-USA"), (1, "specific-CHN")]
    assert events[-1].done == events[-1].total == (9 + 5 + 5) * Q
    assert set(found.answers) == {"joint", "specific"}
    for style in OTHER_STYLES:
        joint, specific = (found.answers[method][style] for method in ("joint", "specific"))
        assert joint.shape == specific.shape == (2, 1, 2, Q)
        # "unaware" is asked once and counts for every country.
        assert (joint[0] == answer_of("seed0 joint", style)).all()
        assert (specific[0, :, 0] == answer_of("seed0 specific-USA", style)).all()
        assert (specific[1, :, 1] == answer_of("seed1 specific-CHN", style)).all()
        # The unchanged model takes the place of models that there is no adapter for.
        assert (joint[1] == 7).all()
        assert (specific[0, :, 1] == 7).all()
        assert (specific[1, :, 0] == 7).all()
    assert found.counts["specific"]["p2"]["replies"] == 2 * Q


def made_up(inputs) -> tuple[dict[str, np.ndarray], Prompted]:
    """A joint model that answers as the majority under P2, and as the unchanged one elsewhere."""
    random, Q = np.random.default_rng(0), len(inputs.survey.items)
    answers = {s: random.integers(0, 2, (1, 1, 2, Q)).astype(np.float32) for s in STYLES}
    twice = {s: np.repeat(a, 2, axis=0) for s, a in answers.items()}
    gold = np.broadcast_to(inputs.tables.gold_CxQ, twice["p2"].shape).astype(np.float32)
    answers |= {"joint": twice["p1"], "specific": twice["p1"]}
    joint = {s: gold if s == "p2" else twice[s] for s in OTHER_STYLES}
    specific = {s: twice[s] for s in OTHER_STYLES}
    mass = {method: dict.fromkeys(OTHER_STYLES, 0.5) for method in ("joint", "specific")}
    return answers, Prompted({"joint": joint, "specific": specific}, mass, counts={})


def test_styles_are_compared_with_the_unchanged_model_and_with_p1(inputs):
    answers, prompted = made_up(inputs)
    record = plain(prompting_record(SETTINGS, inputs, answers, prompted))
    scores = record["scores"]
    assert list(scores) == ["base", "joint", "specific"]
    assert all(list(by_style) == list(STYLES) for by_style in scores.values())
    assert scores["joint"]["p2"]["mean"] == 100
    minus_base = record["minus_base"]["joint"]
    assert minus_base["p2"]["value"] == pytest.approx(100 - scores["base"]["p2"]["mean"], abs=1e-4)
    assert minus_base["p2"]["verdict"].startswith("higher")
    assert {minus_base[style]["value"] for style in STYLES if style != "p2"} == {0}
    minus_p1 = record["minus_p1"]
    assert "p1" not in minus_p1["joint"]
    gained = scores["joint"]["p2"]["mean"] - scores["joint"]["p1"]["mean"]
    assert minus_p1["joint"]["p2"]["value"] == pytest.approx(gained, abs=1e-4)
    specific, base = ([row["value"] for row in minus_p1[m].values()] for m in ("specific", "base"))
    assert specific == base


def test_a_method_that_nothing_changed_is_left_out(inputs):
    answers, prompted = made_up(inputs)
    record = prompting_record(SETTINGS, inputs, answers, prompted, frozenset({"joint"}))
    assert list(record["scores"]) == ["base", "specific"]
    assert list(record["minus_base"]) == list(record["valid_mass"]) == ["specific"]
