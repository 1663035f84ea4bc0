"""The report of a survey analysis: well-formed, complete, and right about what it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.commands.reports import survey_report
from jaxalign.commands.reports.survey_tables import metrics_table
from jaxalign.report.wording import NO_DIFFERENCE, NO_SIGNAL
from tests.support.pages import HOSTILE, check_markdown, check_page, check_report
from tests.support.report_samples import analysis_sample


@pytest.fixture(scope="module")
def survey_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("survey")
    survey_report(analysis_sample(("USA", "CHN", HOSTILE)), out)
    return out


def test_page_and_markdown(survey_run: Path) -> None:
    check_report(survey_run)


def test_survey_labels_and_statements(survey_run: Path) -> None:
    text = (survey_run / "report.html").read_text("utf-8")
    assert text.index('class="warning"') < text.index("Nobody was asked") < text.index("<h2>")
    for words in (
        "A persona is nearest to its own country in",
        "Two personas score",
        NO_DIFFERENCE,
        "8 baselines that need no model",
        "ten options or more",
        "held no number",
        "topic 2",
    ):
        assert words in text


def test_means_set_side_by_side_are_over_the_same_countries() -> None:
    analysis = analysis_sample(("USA", "CHN", "IND"), personas=2)
    rows = {row[0]: row for row in metrics_table(analysis).rows}
    for _, aware, unaware, difference, _ in rows.values():
        assert aware.mean - unaware.mean == pytest.approx(difference.mean, abs=0.01)


@pytest.mark.long
def test_one_persona_is_a_mean_over_one_country(tmp_path: Path) -> None:
    survey_report(analysis_sample(("USA", "CHN"), personas=1), tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Mean score over 1 country:" in text
    assert "1 countries" not in text


def test_a_survey_without_personas(tmp_path: Path) -> None:
    survey_report(analysis_sample(("USA", "CHN", "IND"), personas=0), tmp_path)
    check_page(tmp_path / "report.html")
    text = check_markdown(tmp_path / "report.md")
    assert "A model without a persona" in text
    assert "persona is nearest" not in text


def test_without_signal_no_verdict_says_anything_else(tmp_path: Path) -> None:
    survey_report(analysis_sample(("USA", "CHN", "IND"), signal=False), tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    head = text.split("## ")[0]
    assert "Validity gate: not passed." in head
    assert NO_SIGNAL in head
    assert NO_DIFFERENCE not in text
    assert "more alike than people are" not in text
