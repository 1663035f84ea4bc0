"""Asking a model in several styles: sampled replies, seeds and runs; and several presentations."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxalign.lm.model import LM
from jaxalign.methods import ask as asking
from jaxalign.methods.culturespa import CultureSPASettings, answer
from jaxalign.methods.culturespa.inputs import Experiment, read_inputs
from jaxalign.methods.culturespa.measure import prompted_answers, readers, shares_FxCxQxO
from jaxalign.methods.culturespa.result import method_record, run_scores
from jaxalign.stats.bootstrap import count_draws
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA")
SETTINGS = CultureSPASettings(countries=COUNTRIES, seeds=2, reading="sampled", runs=3, resamples=20)


def test_every_seed_samples_anew(monkeypatch, tmp_path):
    """Prompting has a value for each seed where replies are drawn, one where they are exact."""
    whole = read_inputs(SETTINGS)
    small = whole.survey.subset({item.id for item in whole.survey.items[:6]})
    inputs = dataclasses.replace(whole, survey=small, tables=make_tables(small, COUNTRIES))
    lm = LM(inputs.files, {}, None)

    def sampler(lm, sampling, seed, batch_size, extra_ExD, is_complete):
        def sample(requests, replies, longest):
            for key, _, id in requests:
                yield key, lm.tokenizer.encode(str(1 + (seed + id) % 2))

        return sample

    monkeypatch.setattr(asking, "model_sampler", sampler)
    questions = {seed: inputs.survey for seed in SETTINGS.seed_numbers}
    experiment = Experiment(SETTINGS, inputs, lm, tmp_path)
    survey = answer.answer_survey(experiment)
    written = answer.answer_written(experiment, questions)
    answers = prompted_answers(COUNTRIES, survey)
    for style in ("unaware", "p1", "p2p3"):
        assert answers[style].shape == (2, 3, len(COUNTRIES), 6)
        assert (answers[style][0] != answers[style][1]).all()
    positions = [written[seed]["p1"].positions for seed in SETTINGS.seed_numbers]
    assert (positions[0] != positions[1]).all()
    scores = run_scores(answers["p1"], inputs, count_draws(6, 20, 0))
    assert len(method_record(COUNTRIES, scores)["by_seed"]) == 2
    exact = dataclasses.replace(SETTINGS, reading="exact")
    assert exact.seed_groups == (SETTINGS.seed_numbers,)


def test_a_model_that_says_one_number_answers_the_middle_of_two_presentations(
    monkeypatch, tmp_path
):
    """It names the first option in A and the last in B, whatever they are."""
    settings = dataclasses.replace(SETTINGS, seeds=1, presentations=("A", "B"))
    whole = read_inputs(settings)
    assert whole.presentations == ("A", "B")
    small = whole.survey.subset({item.id for item in whole.survey.items[:6]})
    inputs = dataclasses.replace(whole, survey=small, tables=make_tables(small, COUNTRIES))
    lm = LM(inputs.files, {}, None)

    def sampler(lm, sampling, seed, batch_size, extra_ExD, is_complete):
        def sample(requests, replies, longest):
            for key, *_ in requests:
                yield key, lm.tokenizer.encode("1")

        return sample

    monkeypatch.setattr(asking, "model_sampler", sampler)
    experiment = Experiment(settings, inputs, lm, tmp_path)
    (survey,) = answer.answer_survey(experiment)
    last_Q = np.array([len(item.options) - 1 for item in small.items])
    for style, groups in (("unaware", 1), ("p1", 3), ("p1p3", 3)):
        alone = survey[style].by_presentation
        assert list(alone) == ["A", "B"]
        assert (alone["A"].most_likely_positions() == 0).all()
        assert (alone["B"].most_likely_positions() == last_Q).all()
        shares = survey[style].distributions()
        assert shares.shape[:2] == (groups, 6)
        assert (shares[..., 0] == 0.5).all()
    answers = prompted_answers(COUNTRIES, [survey])
    assert answers["unaware"].shape == (1, 6, 3, 6)  # seeds, replies under both, groups, items
    found = {name: prompted_answers(COUNTRIES, [survey], r) for name, r in readers(inputs).items()}
    assert found["A"]["p2"].shape == (1, 3, 3, 6)
    assert (found["A"]["p2"] == 0).all()
    assert (found["B"]["p2"] == last_Q).all()
    assert shares_FxCxQxO(survey["p1"]).shape[:3] == (2, 3, 6)
