"""A run that starts from questions in files, in the place of written ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa import pipeline
from jaxalign.methods.culturespa.existing import read_existing
from jaxalign.methods.culturespa.inputs import Experiment, read_inputs
from jaxalign.methods.culturespa.questions import Question, to_survey, with_ids
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.formats import culturespa as cs
from jaxalign.surveys.survey import to_json

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
SURVEY = held_out_survey()


def released(path: Path, topic: str, count: int = 4) -> Path:
    """Write questions in the form that CultureSPA released, and two entries that are none."""
    rows = [
        {
            "Q_id": f"Q{n}",
            "question": f"Do you think that {topic} matters, {n}?",
            "option_lst": ["1. Yes", "2. No"],
            "class": topic.title(),
        }
        for n in range(count)
    ]
    bad = [{"question": "", "option_lst": ["a", "b"]}, {"question": "a?", "option_lst": ["b"]}]
    path.write_text(json.dumps([*rows, *bad]))
    return path


def test_released_files_are_joined_and_spelled_as_the_survey_does(tmp_path):
    paths = [released(tmp_path / f"{t}.json", t) for t in ("trust", "weather")]
    existing = read_existing(paths, SURVEY)
    assert [q.topic for q in existing.questions] == ["trust"] * 4 + ["Weather"] * 4
    assert existing.questions[0].id == "trust-0001"
    assert existing.refused == {"an empty text": 2, "fewer than 2 options": 2}
    line = existing.describe()
    assert line.startswith("questions: 8 in 2 files (trust 4, Weather 4); 4 entries refused")
    assert line.endswith("the survey has no topic Weather")
    again = read_existing(paths, SURVEY)
    assert again.sha256 == existing.sha256
    assert read_existing(paths[::-1], SURVEY).sha256 != existing.sha256
    look = existing.first(3)  # a quick look
    assert [q.id for q in look.questions] == [
        q.id for n, q in enumerate(existing.questions) if n % 4 < 3
    ]


def test_a_survey_is_read_and_copies_of_the_tested_one_are_left_out(tmp_path):
    own = [
        Question("Is this a new question?", ("Yes", "No"), "trust"),
        Question(SURVEY.items[0].text, ("Yes", "No"), "trust"),
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(to_json(to_survey(with_ids(own), "mine", "test"))))
    existing = read_existing([path], SURVEY)
    assert [q.question for q in existing.questions] == [q.question for q in own]
    path.write_text(json.dumps(to_json(SURVEY)))
    with pytest.raises(UserError, match=r"`questions` .*: the filters leave none of"):
        read_existing([path], SURVEY)


def test_step_1_takes_them_for_every_seed_and_a_resumed_run_keeps_them(tmp_path):
    file = released(tmp_path / "trust.json", "trust")
    settings = CultureSPASettings(questions=(file,), countries=("USA", "CHN"), seeds=2)
    found = read_inputs(settings)
    assert found.facts()["questions_sha256"] == found.existing.sha256
    experiment = Experiment(settings, found, LM(found.files, {}, None), tmp_path / "run")
    experiment.out.mkdir()
    questions, counts = pipeline.write_all(experiment)
    assert questions[0] == questions[1]
    assert [item.options for item in questions[0].items] == [("Yes", "No")] * 4
    assert counts[0]["asked_for"] == 6
    assert counts[0]["requests"] == 0
    assert counts[0]["parsed"] == counts[0]["left"] == 4
    assert counts[0]["changed"]["option_numbers"] == 4
    assert not (experiment.out / "seed0" / "replies.jsonl").exists()
    file.unlink()
    assert pipeline.write_all(experiment) == (questions, counts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"per_topic": 5}, "`per_topic`: nothing is written with `questions`"),
        ({"constrain": True}, "`constrain`: nothing is written with `questions`"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(tmp_path, change, said):
    file = released(tmp_path / "trust.json", "trust")
    with pytest.raises(UserError, match=said):
        read_inputs(CultureSPASettings(questions=(file,), countries=("USA", "CHN"), **change))


if DATA:

    def test_the_released_topic_is_read_and_filtered_as_published():
        survey = cs.read(Path(DATA))
        file = Path(DATA) / "generated_questions_topic_3_from_all_seed.json"
        existing = read_existing([file], survey)
        assert len(existing.questions) == 1000
        assert {q.topic for q in existing.questions} == {"economic values"}
        assert not existing.unknown_topics
        assert not existing.refused
