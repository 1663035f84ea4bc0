"""Studies of a finished CultureSPA run, without running one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.culturespa.studies import selection, topics
from experiments.culturespa.studies.finished import Finished
from experiments.culturespa.studies.matrices import correlations, mantel
from jaxalign.core.files import plain
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.result import difference, method_record, paired, run_scores
from jaxalign.pocket.society import held_out_survey
from jaxalign.stats.bootstrap import count_draws
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA")
SETTINGS = CultureSPASettings(countries=COUNTRIES, seeds=2, reading="sampled", runs=3, resamples=20)


def test_mantel_counts_the_orders_that_do_as_well():
    b = np.array([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]], float)
    assert mantel(b, b) == pytest.approx(1 / 24)  # only the identity maps b onto itself
    assert mantel(-b, b) == pytest.approx(1.0)
    assert mantel(np.ones((4, 4)), b) is None
    unknown = np.where(b == 6, np.nan, b)
    assert mantel(unknown, b) is None
    found = correlations(np.stack([unknown, unknown]), b)
    assert found["pearson"]["mean"] is found["mantel_p"] is None


def test_intervals_of_shares_end_where_shares_do():
    bounds = topics._estimate(np.array([25.0, 50.0]))
    assert (bounds["low"], bounds["mean"], bounds["high"]) == (0, 37.5, 100)


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
