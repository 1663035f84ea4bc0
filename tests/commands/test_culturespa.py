"""Tables, pictures and report of `jaxalign culturespa`, from results made up for the purpose."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.cli import run_command
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.culturespa_tables import prompting_sentences, show_result
from jaxalign.core.files import plain, write_json
from jaxalign.lm.model import open_model
from jaxalign.methods.culturespa import CultureSPAResult, CultureSPASettings
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.measure import TUNED, Measured
from jaxalign.methods.culturespa.prompting import OTHER_STYLES, Prompted, prompting_record
from jaxalign.methods.culturespa.result import SELECTION_MODELS, make_record
from jaxalign.methods.culturespa.styles import STYLES
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.survey import Item
from jaxalign.surveys.tables import make_tables

COUNTRIES = ("USA", "CHN", "NGA")
SETTINGS = CultureSPASettings(countries=COUNTRIES, seeds=2, reading="sampled", runs=3, resamples=20)
GUARD = ((Item("g", "2 + 2?", ("3", "4"), (1, 2)), 1),)
TOPICS = {"trust": {"questions": 4, "pairs": {"USA": 1, "CHN": 0, "NGA": 2}}}


def test_a_country_without_a_readable_answer_is_null_and_ends_no_run(tmp_path):
    """A small model sampled on a hard survey may say nothing that can be read."""
    settings = CultureSPASettings(countries=("USA", "CHN"), resamples=20, seeds=2)
    survey = held_out_survey()
    tables = make_tables(survey, settings.countries)
    inputs = SimpleNamespace(
        files=open_model(),
        survey=survey,
        tables=tables,
        guard_name="",
        guard=GUARD,
        presentations=("A",),
    )
    random = np.random.default_rng(0)
    shape = (2, 1, 2, len(survey.items))
    answers = {m: random.integers(0, 2, shape).astype(np.float32) for m in (*STYLES, *TUNED)}
    answers["unaware"][1, :, 0] = np.nan
    answers["joint"][:] = np.nan
    right = {"before": [0.9], "joint": [0.9, 0.9]}
    counts = {"asked_for": 1, "requests": 1, "parsed": 1, "left": 1, "removed": {}}
    measured = Measured(answers, right, counts={}, untrained={})
    selected = {0: {"pairs": {m: {} for m in SELECTION_MODELS.values()}, "topics": TOPICS}}
    result = make_record(settings, inputs, measured, {0: counts}, selected, {"simulated": True})
    write_json(tmp_path / "result.json", result)  # refuses NaN
    unaware = result["methods"]["unaware"]
    assert unaware["countries"]["USA"] is unaware["mean"] is unaware["interval"] is None
    assert unaware["countries"]["CHN"] > 0
    assert unaware["by_seed"][0] > 0
    assert unaware["by_seed"][1] is None
    assert result["differences"]["joint_minus_p1"]["verdict"] == "no answers"
    assert result["personas"]["joint"]["agreement"] is None
    show_result(result)
    write_plots(tmp_path, result)
    result["measure"]["validity"] = None
    write_culturespa_report(result, tmp_path)
    assert "Validity gate: not made." in (tmp_path / "report.md").read_text("utf-8")
    assert "joint − P1: no answers." in (tmp_path / "report.md").read_text("utf-8")
    text = str(CultureSPAResult(tmp_path, plain(result), {}, {})).splitlines()
    assert text[0].split() == ["method", "USA", "CHN", "mean"]
    assert text[1].split()[:2] == ["unaware", "–"]
    assert len({len(line) for line in text}) == 1


def test_a_report_tells_lost_replies_pairs_and_what_was_not_trained(tmp_path):
    whole = read_inputs(SETTINGS)
    small = whole.survey.subset({item.id for item in whole.survey.items[:6]})
    inputs = dataclasses.replace(whole, survey=small, tables=make_tables(small, COUNTRIES))
    random = np.random.default_rng(2)
    shape = (2, 3, len(COUNTRIES), 6)
    answers = {m: random.integers(0, 2, shape).astype(np.float32) for m in (*STYLES, *TUNED)}
    lost = {"unreadable": 5, "out_of_range": 7, "option_lists": 0}
    counts = {m: {"replies": 108} | lost for m in answers}
    counts["cct"] = {"replies": 0} | dict.fromkeys(lost, 0)
    same = {"cct": {"models": ["seed0 cct", "seed1 cct"], "all": True}}
    right = {"before": [0.9]} | {m: [0.9, 0.8] for m in TUNED}
    written = {"asked_for": 8, "requests": 9, "parsed": 8, "left": 8, "removed": {}}
    pairs = {"joint": {"USA": 31, "CHN": 10}, "rds": {"USA": 41}, "cds": {}, "cct": {}}
    result = make_record(
        SETTINGS,
        inputs,
        Measured(answers, right, counts, same),
        {s: written for s in (0, 1)},
        {s: {"pairs": pairs, "topics": TOPICS} for s in (0, 1)},
        inputs.facts(),
    )
    mass = {method: dict.fromkeys(OTHER_STYLES, 0.5) for method in ("joint", "specific")}
    lost = {m: dict.fromkeys(OTHER_STYLES, counts["p1"]) for m in mass}
    prompted = Prompted({m: {s: answers[s] for s in OTHER_STYLES} for m in mass}, mass, lost)
    result["prompting"] = prompting_record(SETTINGS, inputs, answers, prompted)
    assert result["replies"]["p1"] == counts["p1"]
    assert result["untrained"] == same
    assert "cct" not in result["methods"]
    assert "cct_minus_p2" not in result["differences"]
    result = plain(result | {"versions": {}})
    write_plots(tmp_path, result)
    report = write_culturespa_report(result, tmp_path)[0].read_text("utf-8")
    assert "CultureSPA CCT: untrained" in report
    assert "Validity gate: " in report.split("## ")[0]
    assert "| CultureSPA CCT" not in report
    assert any("CRQPC" in line and "| 82 |" in line for line in report.splitlines())
    assert any("P1" in line and "| 108 | 5 | 7 |" in line for line in report.splitlines())
    assert "| CultureSPA joint, P2 | 108 | 5 | 7 |" in report
    assert "joint under P2 − unchanged under P2 | 0.00" in report
    assert "| trust | 25.0 | 0.0 | 50.0 |" in report  # of 4 questions
    for name in ("methods", "selection", "countries", "pairs", "prompting"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_fine_tuning_adds_to_each_style_in_words():
    verdicts = {"p1": "higher", "p2": "lower", "p3": "higher", "p1p3": "lower, over questions only"}
    rows = {style: {"verdict": verdict} for style, verdict in verdicts.items()}
    assert prompting_sentences({"prompting": {"minus_base": {"joint": rows}}}) == [
        "joint beside the unchanged model under the same style: higher under P1, P3; lower under "
        "P2; lower under P1 + P3 (over questions only)."
    ]
    assert prompting_sentences({}) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("culturespa --countries USA", "--countries USA: give two or more"),
        ("culturespa --train.longest-example 10", "--train.longest-example 10: an example"),
        ("culturespa --examples leak_free --survey x.json", "name another survey, --source"),
        ("write-questions --attempts 0.5", "--attempts 0.5: give 1 to"),
        ("write-questions --max-new-tokens 5000", "lower --examples or --max-new-tokens"),
    ],
)
def test_the_command_line_names_its_flags(arguments, message, capsys, tmp_path):
    command, *rest = arguments.split()
    with pytest.raises(SystemExit) as leaving:
        run_command(command, [*rest, "--out", str(tmp_path / "run")])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
