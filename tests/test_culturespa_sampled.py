"""CultureSPA with sampled replies: several runs of a question, several seeds, replies lost."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.culturespa import ask
from experiments.culturespa.__main__ import answer
from experiments.culturespa.finished import Finished
from experiments.culturespa.measure import prompted_answers
from experiments.culturespa.result import method_record, run_scores
from experiments.culturespa.selection import own_scores
from experiments.culturespa.study import Config, Study, read_study
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


@pytest.fixture(scope="module")
def study() -> Study:
    """The pocket Llama's study, of a few items."""
    whole = read_study(CONFIG)
    small = whole.survey.subset({item.id for item in whole.survey.items[:6]})
    return dataclasses.replace(whole, survey=small)


def test_every_seed_samples_anew(study, monkeypatch, tmp_path):
    """Prompting has a value for each seed where replies are drawn, one where they are exact."""

    def drawn(llama, params, prompts, sampling, stop, seed, ids, *_, **__):
        return [study.tokens.encode(str(1 + (seed + id) % 2)) for id in ids]

    monkeypatch.setattr(ask, "generate", drawn)
    questions = {seed: study.survey for seed in CONFIG.seed_numbers}
    run = SimpleNamespace(out=tmp_path)
    survey, written = answer(CONFIG, study, {}, run, questions)
    answers = prompted_answers(CONFIG, survey)
    for style in ("unaware", "p1", "p2p3"):
        assert answers[style].shape == (2, 3, len(COUNTRIES), 6)
        assert (answers[style][0] != answers[style][1]).all()
    positions = [written[seed]["p1"].position_NxCxQ for seed in CONFIG.seed_numbers]
    assert (positions[0] != positions[1]).all()
    tables = make_tables(study.survey, COUNTRIES)
    scores = run_scores(answers["p1"], SimpleNamespace(tables=tables), question_draws(6, 20, 0))
    assert len(method_record(CONFIG, scores)["by_seed"]) == 2
    assert dataclasses.replace(CONFIG, reading="exact").seed_groups == (CONFIG.seed_numbers,)
