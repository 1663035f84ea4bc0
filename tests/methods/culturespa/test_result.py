"""What a CultureSPA result says: paired differences, verdicts, the guard, missing answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.commands.reports.culturespa import guessing_sentences
from jaxalign.methods.culturespa.result import Scored, difference, guard_record, paired
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.pocket.society import held_out_survey
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.paired_scores import drawn_scores
from jaxalign.surveys.survey import Item
from jaxalign.surveys.tables import make_tables


def test_a_difference_is_over_the_items_that_both_answered():
    """Two seeds of a method that leaves out what it would get wrong, and one that leaves nothing
    out and cannot differ between seeds."""
    inputs = SimpleNamespace(tables=make_tables(held_out_survey(), ("USA", "CHN", "NGA", "SWE")))
    gold_CxQ = inputs.tables.gold_CxQ
    whole = np.zeros((1, 3, *gold_CxQ.shape), np.float32)
    some = np.repeat(np.where(whole == gold_CxQ, whole, np.nan), 2, axis=0)
    draws = count_draws(gold_CxQ.shape[1], 20, 0)
    a, b = paired(some, whole, inputs, draws)
    assert a.shape == b.shape == (21, 2, 4)
    assert difference(a, b)["value"] == 0
    apart = [drawn_scores(x[:, 0], inputs.tables, draws)[0].mean() for x in (some, whole)]
    assert apart[0] == 100 > apart[1] + 20, "each over its own items"


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([3.0], "higher, over questions only"),
        ([3.0, 3.1, 2.9], "higher"),
        ([-3.0], "lower, over questions only"),
        ([9.0, 0.1], "not told apart"),
        ([0.0], "identical"),
        ([0.0, 0.0], "identical"),
    ],
)
def test_the_verdict_says_where_there_is_no_interval_over_seeds(seeds, words):
    scores = np.tile(np.array(seeds)[None, :, None], (20, 1, 2))
    assert difference(scores, np.zeros_like(scores))["verdict"] == words


def test_intervals_are_wider_by_the_spread_over_presentations():
    """A gain under one presentation that is a loss under the other."""
    countries = ("USA", "CHN", "NGA", "SWE")
    survey = held_out_survey()
    inputs = SimpleNamespace(survey=survey, tables=make_tables(survey, countries))
    settings = CultureSPASettings(countries=countries, resamples=50, seeds=2)
    gold = np.tile(np.nan_to_num(inputs.tables.gold_CxQ), (2, 1, 1, 1))
    other = np.random.default_rng(0).integers(0, 2, gold.shape).astype(np.float32)
    answers = {"p1": other, "joint": gold}
    alone = {"A": {"p1": other, "joint": gold}, "B": {"p1": gold, "joint": other}}
    scored, once = Scored(settings, inputs, answers, alone), Scored(settings, inputs, answers)
    narrow, wide = once.difference("joint", "p1"), scored.difference("joint", "p1")
    assert wide["value"] == narrow["value"]
    assert wide["by_seed"] == narrow["by_seed"]
    assert narrow["verdict"] == "higher"
    assert wide["verdict"] == "not told apart"
    # d and -d have the standard deviation √2 d, and their mean d.
    half = 1.96 * narrow["value"]
    low, high = narrow["interval"]
    expected = narrow["value"] - np.hypot(narrow["value"] - low, half)
    assert wide["interval"][0] == pytest.approx(expected, rel=1e-3)
    assert wide["interval"][1] > high + 0.9 * half
    by_form = [one.difference("joint", "p1")["value"] for one in scored.alone.values()]
    assert by_form == [narrow["value"], -narrow["value"]]
    apart = {"A": {"joint": gold}, "B": {"joint": other}}
    assert Scored(settings, inputs, answers, apart).method("joint")["interval"][1] == 100
    same = Scored(settings, inputs, answers, {"A": answers, "B": answers})
    assert same.method("joint") == once.method("joint"), "what does not vary widens nothing"


def test_the_guard_speaks_of_the_mean_change():
    items = [Item("a", "?", ("x", "y"), (1, 2)), Item("b", "?", ("w", "x", "y", "z"), (1, 2, 3, 4))]
    right = {"before": [0.9], "joint": [0.9, 0.92], "cct": [0.8, 0.9]}
    record = guard_record(right, "test", items)
    assert (record["questions"], record["chance"]) == (2, 37.5)
    assert not guessing_sentences(record)
    assert record["change"]["joint"]["mean"] == pytest.approx(1.0)
    assert record["change"]["joint"]["within"] or record["change"]["joint"]["mean"] > 1
    assert not record["change"]["cct"]["within"]
    low, high = record["change"]["cct"]["seed_interval"]
    assert low < -5 < high


def test_a_guard_that_the_model_guesses_at_says_nothing():
    items = [Item("a", "?", ("w", "x", "y", "z"), (1, 2, 3, 4))] * 30
    record = guard_record({"before": [0.0], "joint": [0.0]}, "test", items)
    (sentence,) = guessing_sentences(record)
    assert "right in 0.0 % of the questions, and guessing in 25.0 %" in sentence
