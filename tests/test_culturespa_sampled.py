"""CultureSPA with sampled replies: several runs of a question, several seeds, replies lost."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.culturespa.finished import Finished
from experiments.culturespa.result import method_record, run_scores
from experiments.culturespa.selection import own_scores
from experiments.culturespa.study import Config
from jaxalign.culturespa.measure import question_draws
from jaxalign.pocket.society import held_out_survey
from jaxalign.survey.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA")
CONFIG = dataclasses.replace(
    Config(), countries=COUNTRIES, seeds=2, reading="sampled", runs=3, resamples=20
)


def small_study(items: int = 12) -> SimpleNamespace:
    survey = held_out_survey()
    survey = survey.subset({item.id for item in survey.items[:items]})
    return SimpleNamespace(survey=survey, tables=make_tables(survey, COUNTRIES))


def random_answers(seeds: int, runs: int, items: int = 12) -> np.ndarray:
    random = np.random.default_rng(seeds)
    return random.integers(-1, 2, (seeds, runs, len(COUNTRIES), items))


def test_the_study_of_selection_scores_sampled_runs_as_the_run_did(tmp_path):
    """Each run of replies by itself, then their mean; not the replies' mean."""
    methods = {m: random_answers(2, 3) for m in ("joint", "rds", "cds", "p1")}
    text = json.dumps({"methods": {m: a.tolist() for m, a in methods.items()}})
    (tmp_path / "answers.json").write_text(text, "utf-8")
    study, finished = small_study(), Finished(tmp_path, {}, {}, {})
    draws = question_draws(len(study.survey.items), CONFIG.resamples, CONFIG.first_seed)
    found = own_scores(CONFIG, study, finished)
    for name, method in (("crqpc", "joint"), ("rds", "rds"), ("cds", "cds"), ("p1", "p1")):
        answers = np.where(methods[method] < 0, np.nan, methods[method]).astype(np.float32)
        its_own = method_record(CONFIG, run_scores(answers, study, draws))
        assert method_record(CONFIG, found[name])["mean"] == pytest.approx(its_own["mean"])
        assert method_record(CONFIG, found[name]) == its_own
