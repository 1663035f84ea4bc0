"""The record of asking a survey: what is set beside what, and what is said of constant answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxalign.commands.reports.ask import ask_report, statements, verdict_notes
from jaxalign.lm.model import open_model
from jaxalign.methods.ask_survey.inputs import AskInputs, read_inputs
from jaxalign.methods.ask_survey.result import ByRow, analyses_of, make_record
from jaxalign.methods.ask_survey.settings import AskSettings
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.report.wording import NO_SIGNAL
from jaxalign.surveys.responses import UNREADABLE, Responses
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import make_tables
from tests.support.pages import check_report
from tests.support.report_samples import analysis_inputs

COUNTRIES = ("USA", "CHN", "IND")


@pytest.fixture(scope="module")
def survey() -> Survey:
    return analysis_inputs(COUNTRIES)[0]


def asked(survey: Survey, tmp_path, **fields) -> tuple[AskSettings, AskInputs]:
    """The inputs of a run that asks `survey`, with a soft prompt for CHN."""
    path = tmp_path / "chn.safetensors"
    SoftPrompt(np.zeros((2, 128), np.float32), group="CHN").save(path)
    fields = {"resamples": 50, "styles": ("unaware", "p1"), "countries": COUNTRIES} | fields
    settings = AskSettings(prompt=(str(path),), **fields)
    other = AskSettings(prompt=(str(path),), styles=settings.styles, countries=("USA", "CHN"))
    inputs = read_inputs(other, open_model())
    rows = tuple(
        dataclasses.replace(row, groups=COUNTRIES) if len(row.groups) > 1 else row
        for row in inputs.rows
    )
    return settings, dataclasses.replace(inputs, survey=survey, countries=COUNTRIES, rows=rows)


def answers_of(inputs: AskInputs, positions) -> ByRow:
    """Answers by row and group, as `positions(row, group)` has them: [runs, items]."""
    return {
        row.key: {
            group: Responses.from_positions(
                inputs.survey, (group or row.style,), np.asarray(positions(row, group))[:, None]
            )
            for group in row.groups
        }
        for row in inputs.rows
    }


def aware_and_constant(survey: Survey, tmp_path):
    """The personas answer as their country, the unaware model 1 throughout, two replies each."""
    settings, inputs = asked(survey, tmp_path, reading="sampled", runs=2)
    gold = dict(zip(COUNTRIES, make_tables(survey, COUNTRIES).gold_CxQ.astype(int), strict=True))
    ones = np.zeros((2, len(survey.items)), int)

    def positions(row, group):
        return ones if row.style == "unaware" else np.stack([gold[group]] * 2)

    responses = answers_of(inputs, positions)
    analyses = analyses_of(settings, inputs, responses)
    return make_record(settings, inputs, responses, analyses), analyses


def test_rows_are_paired_with_those_that_name_nobody(survey, tmp_path):
    record, analyses = aware_and_constant(survey, tmp_path)
    # The unaware model is in the analysis of the personas, and needs none of its own.
    assert list(analyses) == ["model-p1", "prompts-unaware", "prompts-p1"]
    rows = record["rows"]
    assert rows["model-p1"]["mean"] == {"value": 100, "low": 100, "high": 100}
    assert rows["model-unaware"]["analysis"] == "model-p1"
    assert rows["model-unaware"]["constant"][""]["code"] == 1
    assert rows["model-unaware"]["constant"][""]["share"] == 100
    assert list(rows["prompts-p1"]["scores"]) == ["CHN"]
    pairs = {(d["a"], d["b"]): d for d in record["differences"]}
    assert set(pairs) == {
        ("model-p1", "model-unaware"),
        ("prompts-unaware", "model-unaware"),
        ("prompts-p1", "model-unaware"),
        ("prompts-unaware", "model-p1"),
        ("prompts-p1", "model-p1"),
    }
    gap = pairs["model-p1", "model-unaware"]
    assert gap["verdict"] == "above"
    assert gap["value"] == pytest.approx(100 - rows["model-unaware"]["mean"]["value"], abs=1e-3)
    # The same numbers from the other bootstrap, against China alone.
    soft = pairs["prompts-unaware", "model-p1"]
    china = rows["model-unaware"]["scores"]["CHN"]["value"]
    assert soft["value"] == pytest.approx(china - 100, abs=1e-3)
    assert soft["verdict"] == "below"
    same = pairs["prompts-p1", "model-p1"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


@pytest.mark.long
def test_the_report_says_what_is_set_beside_what(survey, tmp_path):
    record, analyses = aware_and_constant(survey, tmp_path)
    ask_report(record | {"versions": {}}, analyses, tmp_path)
    check_report(tmp_path)
    said = " ".join(statements(record, analyses))
    assert "unaware answers 1 throughout" in said
    assert "culture-aware (P1) (1 of 3 countries)" in said
    assert "analyses/model-p1/report.html" in (tmp_path / "report.md").read_text("utf-8")


def test_where_the_gate_fails_no_difference_is_called_one(survey, tmp_path):
    """Of the report and of what the command prints, from the same record."""
    record, _ = aware_and_constant(survey, tmp_path)
    gate = record["measure"]["rows"]["model-p1"]["validity"]
    gate["passes"] = True
    said = " ".join(statements(record, {}))
    assert ", higher" in said
    assert NO_SIGNAL not in said
    gate["passes"] = False
    said = " ".join(statements(record, {}))
    assert NO_SIGNAL in said
    assert ", higher" not in said
    assert ", lower" not in said
    first = next(note for note in verdict_notes(record) if note.kind == "label")
    assert first.lead == "Validity gate: not passed."
    assert NO_SIGNAL in first.text


def test_replies_that_cannot_be_read_leave_nulls(survey, tmp_path):
    settings, inputs = asked(survey, tmp_path, reading="sampled", runs=1)
    items = len(survey.items)
    responses = answers_of(
        inputs,
        lambda row, group: np.full((1, items), UNREADABLE if row.style == "unaware" else 1),
    )
    record = make_record(settings, inputs, responses, analyses_of(settings, inputs, responses))
    unaware = record["rows"]["model-unaware"]
    assert unaware["mean"] is None
    assert unaware["constant"] == {"": None}
    assert unaware["valid_mass"] == 0
    assert unaware["replies"]["unreadable"] == unaware["replies"]["replies"] == items
    assert ("model-p1", "model-unaware") not in {(d["a"], d["b"]) for d in record["differences"]}
    ask_report(record, {}, tmp_path)
    head = (tmp_path / "report.md").read_text("utf-8").split("## ")[0]
    assert "Validity gate: " in head
    assert "Replies that gave no answer" in (tmp_path / "report.md").read_text("utf-8")
