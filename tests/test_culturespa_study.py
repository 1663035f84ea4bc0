"""What `experiments.culturespa` refuses before it works, and what it needs to find unchanged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.culturespa.study import Config, Study, read_study
from jaxalign.errors import UserError
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.survey.instrument import Instrument, to_json


def write(path: Path, survey: Instrument) -> Path:
    path.write_text(json.dumps(to_json(survey)), "utf-8")
    return path


def study(**settings) -> Study:
    return read_study(dataclasses.replace(Config(), **settings))


def test_the_survey_whose_answers_are_shown_is_a_fact(tmp_path):
    """A run that goes on after --source was edited would mix two sources."""
    other = society_values_module()
    source = write(tmp_path / "source.json", other)
    first = study(examples="leak_free", source=source).facts()
    write(source, other.subset({item.id for item in other.items[:-1]}))
    assert first != study(examples="leak_free", source=source).facts()
    assert study().facts()["shown_sha256"] == held_out_survey().sha256


def test_made_up_answers_are_not_shown_for_a_survey_of_ones_own(tmp_path):
    survey = write(tmp_path / "mine.json", held_out_survey())
    with pytest.raises(
        UserError, match=r"--examples leak_free with --survey .*mine.json.* --source"
    ):
        study(survey=survey, examples="leak_free")


def test_a_source_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--source other.json: .* --examples leak_free"):
        study(source=Path("other.json"))
