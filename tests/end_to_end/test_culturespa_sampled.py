"""CultureSPA with sampled replies: several runs of a question, several seeds, replies lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.culturespa.studies import selection
from experiments.culturespa.studies.finished import Finished
from jaxalign.answering.batch import OUT_OF_RANGE, UNREADABLE
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.core.files import plain
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa import CultureSPASettings, answer
from jaxalign.methods.culturespa.inputs import Experiment, Inputs, read_inputs
from jaxalign.methods.culturespa.measure import (
    TUNED,
    Measured,
    prompted_answers,
    untrained_models,
)
from jaxalign.methods.culturespa.result import (
    difference,
    make_record,
    method_record,
    paired,
    run_scores,
)
from jaxalign.methods.culturespa.styles import STYLES
from jaxalign.pocket.society import held_out_survey
from jaxalign.stats.bootstrap import count_draws
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA")
SETTINGS = CultureSPASettings(countries=COUNTRIES, seeds=2, reading="sampled", runs=3, resamples=20)


def small_inputs(items: int = 12) -> SimpleNamespace:
    survey = held_out_survey()
    survey = survey.subset({item.id for item in survey.items[:items]})
    return SimpleNamespace(survey=survey, tables=make_tables(survey, COUNTRIES))


def random_answers(seeds: int, runs: int, items: int = 12) -> np.ndarray:
    random = np.random.default_rng(seeds)
    return random.integers(-1, 2, (seeds, runs, len(COUNTRIES), items))


def as_floats(answers: np.ndarray) -> np.ndarray:
    return np.where(answers < 0, np.nan, answers).astype(np.float32)


def selection_of(out: Path, monkeypatch, methods: dict[str, np.ndarray]) -> dict[str, Any]:
    """`selection.json` of a finished run whose models answered so."""
    text = json.dumps({"methods": {m: a.tolist() for m, a in methods.items()}})
    (out / "answers.json").write_text(text, "utf-8")
    finished = Finished(out, {"settings": {"countries": COUNTRIES}, "untrained": {}}, {}, {})
    monkeypatch.setattr(selection, "read_finished", lambda _: finished)
    monkeypatch.setattr(selection, "read_settings", lambda _: (SETTINGS, small_inputs()))
    selection.run(selection.SelectionSettings(out))
    return json.loads((out / "selection.json").read_text("utf-8"))


def test_the_study_of_selection_scores_sampled_runs_as_the_run_did(tmp_path, monkeypatch):
    """Each run of replies by itself, then their mean; not the replies' mean."""
    methods = {m: random_answers(2, 3) for m in ("joint", "rds", "cds", "p1")}
    found = selection_of(tmp_path, monkeypatch, methods)["strategies"]
    inputs = small_inputs()
    draws = count_draws(len(inputs.survey.items), SETTINGS.resamples, SETTINGS.first_seed)
    for name, method in (("crqpc", "joint"), ("rds", "rds"), ("cds", "cds"), ("p1", "p1")):
        its_own = method_record(COUNTRIES, run_scores(as_floats(methods[method]), inputs, draws))
        assert found[name] == plain(its_own | {"pairs": 0})


def test_the_study_of_selection_compares_over_what_both_answered(tmp_path, monkeypatch):
    """A model that leaves out what it would get wrong is not the better for it; and what the run's
    own result says of two methods, the study says too."""
    inputs, random = small_inputs(), random_answers(2, 3)
    gold_CxQ = inputs.tables.gold_CxQ.astype(int)
    wrong_Q = np.arange(gold_CxQ.shape[1]) < 4
    rds = np.broadcast_to(np.where(wrong_Q, gold_CxQ == 0, gold_CxQ), random.shape)
    methods = {"joint": np.where(wrong_Q, -1, rds), "rds": rds, "cds": random[::-1], "p1": random}
    found = selection_of(tmp_path, monkeypatch, methods)
    apart = [found["strategies"][name]["mean"] for name in ("crqpc", "rds")]
    assert apart[0] == 100 > apart[1] + 20, "each over its own items"
    assert found["differences"]["crqpc_minus_rds"]["value"] == 0
    draws = count_draws(len(inputs.survey.items), SETTINGS.resamples, SETTINGS.first_seed)
    for a, b, said in (
        ("joint", "p1", found["minus_p1"]["crqpc"]),
        ("cds", "p1", found["minus_p1"]["cds"]),
        ("rds", "cds", found["differences"]["rds_minus_cds"]),
    ):
        its_own = paired(as_floats(methods[a]), as_floats(methods[b]), inputs, draws)
        assert said == plain(difference(*its_own)), f"{a} - {b}"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """What the settings name, cut down to a few items."""
    whole = read_inputs(SETTINGS)
    small = whole.survey.subset({item.id for item in whole.survey.items[:6]})
    return dataclasses.replace(whole, survey=small, tables=make_tables(small, COUNTRIES))


def test_every_seed_samples_anew(inputs, monkeypatch, tmp_path):
    """Prompting has a value for each seed where replies are drawn, one where they are exact."""
    lm = LM(inputs.files, {}, None)

    def drawn(config, params, prompts, sampling, stop, seed, ids, *_, **__):
        return [lm.tokenizer.encode(str(1 + (seed + id) % 2)) for id in ids]

    monkeypatch.setattr(answer, "generate", drawn)
    questions = {seed: inputs.survey for seed in SETTINGS.seed_numbers}
    experiment = Experiment(SETTINGS, inputs, lm, tmp_path)
    survey = answer.answer_survey(experiment)
    written = answer.answer_written(experiment, questions)
    answers = prompted_answers(COUNTRIES, survey)
    for style in ("unaware", "p1", "p2p3"):
        assert answers[style].shape == (2, 3, len(COUNTRIES), 6)
        assert (answers[style][0] != answers[style][1]).all()
    positions = [written[seed]["p1"].position_NxCxQ for seed in SETTINGS.seed_numbers]
    assert (positions[0] != positions[1]).all()
    scores = run_scores(answers["p1"], inputs, count_draws(6, 20, 0))
    assert len(method_record(COUNTRIES, scores)["by_seed"]) == 2
    exact = dataclasses.replace(SETTINGS, reading="exact")
    assert exact.seed_groups == (SETTINGS.seed_numbers,)


def test_lost_replies_are_counted_by_kind():
    position = np.array([0, 1, UNREADABLE, OUT_OF_RANGE, OUT_OF_RANGE, 0]).reshape(1, 2, 3)
    assert answer.Replies(None, position).counts == {
        "replies": 6, "unreadable": 1, "out_of_range": 2
    }  # fmt: skip


def adapter(value: float) -> Adapter:
    weights = {"layers": {"q_a": np.ones((2, 2)), "q_b": np.full((2, 2), value)}}
    return Adapter(weights, SETTINGS.lora, None, "")


def test_models_that_nothing_changed_are_named(inputs, tmp_path):
    """Without data there is no adapter; one that took no step adds nothing."""
    adapters = {(0, "joint"): adapter(0.1), (1, "joint"): adapter(0.0)}
    adapters |= {(s, f"specific-{c}"): adapter(0.1) for s in (0, 1) for c in COUNTRIES[:2]}
    adapters |= {(s, "rds"): adapter(0.1) for s in (0, 1)}
    experiment = Experiment(SETTINGS, inputs, None, tmp_path)
    found = untrained_models(experiment, adapters)
    assert found["joint"] == {"models": ["seed1 joint"], "all": False}
    assert found["specific"] == {
        "models": ["seed0 specific-NGA", "seed1 specific-NGA"], "all": False
    }  # fmt: skip
    assert found["cct"]["all"]
    assert "rds" not in found


def test_a_report_tells_lost_replies_pairs_and_what_was_not_trained(inputs, tmp_path):
    answers = {m: random_answers(2, 3, 6).clip(0).astype(np.float32) for m in (*STYLES, *TUNED)}
    counts = {m: {"replies": 108, "unreadable": 5, "out_of_range": 7} for m in answers}
    counts["cct"] = {"replies": 0, "unreadable": 0, "out_of_range": 0}
    same = {"cct": {"models": ["seed0 cct", "seed1 cct"], "all": True}}
    right = {"before": [0.9]} | {m: [0.9, 0.8] for m in TUNED}
    written = {"asked_for": 8, "requests": 9, "parsed": 8, "left": 8, "removed": {}}
    pairs = {"joint": {"USA": 31, "CHN": 10}, "rds": {"USA": 41}, "cds": {}, "cct": {}}
    result = make_record(
        SETTINGS, inputs, Measured(answers, right, counts, same),
        {s: written for s in (0, 1)}, {s: {"pairs": pairs} for s in (0, 1)}, inputs.facts(),
    )  # fmt: skip
    assert result["replies"]["p1"] == counts["p1"]
    assert result["untrained"] == same
    assert "cct" not in result["methods"]
    assert "cct_minus_p2" not in result["differences"]
    result = plain(result | {"versions": {}})
    write_plots(tmp_path, result)
    report = write_culturespa_report(result, tmp_path)[0].read_text("utf-8")
    assert "cct: untrained" in report
    assert "| CultureSPA CCT" not in report
    assert any("CRQPC" in line and "| 82 |" in line for line in report.splitlines())
    assert any("P1" in line and "| 108 | 5 | 7 |" in line for line in report.splitlines())
