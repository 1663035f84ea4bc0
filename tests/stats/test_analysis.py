"""The analysis of replies, on a made-up folder and on the released one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.files import plain
from jaxalign.report.wording import NO_DIFFERENCE
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis import analyse, score_replies
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.responses import NO_REPLY, Responses
from tests.support.culture_folder import OPTIONS, reply_files, write
from tests.support.scored_folder import write_scored_folder

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
KEYS = [
    "format",
    "warnings",
    "instrument",
    "settings",
    "countries",
    "personas",
    "labels",
    "scores",
    "means",
    "intervals",
    "against_lines",
    "seeds",
    "identification",
    "dispersion",
    "long_items",
    "constant",
    "unreadable",
    "topics",
    "items",
    "alignment",
    "map",
    "validity",
    "presentations",
    "notes",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored_folder(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return score_replies(folder, reply_files(folder), resamples=200)


def test_it_has_the_documented_keys_and_is_plain(result: dict[str, Any]) -> None:
    assert list(result) == KEYS
    assert json.loads(json.dumps(plain(result))) == plain(result) == result
    assert result["personas"] == ["USA", "CHN"]
    assert list(result["countries"]) == list(culturespa.COUNTRIES)
    assert set(result["scores"]["BOL"]["lines"]) == set(LINES) == set(result["labels"]["lines"])


def test_a_perfect_persona_scores_100_and_is_told_from_the_unaware(result) -> None:
    usa = result["scores"]["USA"]
    assert usa["aware"] == usa["aware_ordinal"] == 100
    assert usa["items"] == len(OPTIONS)
    certain = {"value": 100, "low": 100, "high": 100}
    assert result["intervals"]["aware"]["USA"]["alignment"] == certain
    difference = result["intervals"]["difference"]["USA"]["alignment"]
    assert difference["verdict"] == "above"
    np.testing.assert_allclose(difference["value"], 100 - usa["unaware"], atol=1e-3)
    assert result["against_lines"]["USA"]["midpoint"]["verdict"] == "above"
    assert result["identification"]["rows"]["nearest"]["USA"] == "USA"


def test_a_difference_inside_its_interval_is_called_that(result) -> None:
    tables = [result["intervals"]["difference"], result["against_lines"]]
    found = [row for table in tables for by in table.values() for row in by.values()]
    for row in found:
        inside = row["low"] <= 0 <= row["high"]
        assert (row["verdict"] == NO_DIFFERENCE) == inside
        assert (row["verdict"] == "above") == (row["low"] > 0)
    assert {row["verdict"] for row in found} >= {NO_DIFFERENCE, "above"}


def test_runs_are_averaged_and_have_a_seed_interval(result) -> None:
    seeds = result["seeds"]["aware"]
    assert (seeds["USA"]["runs"], seeds["USA"]["mean"]) == (1, None)
    china = seeds["CHN"]
    assert china["runs"] == 2
    np.testing.assert_allclose(china["mean"], result["scores"]["CHN"]["aware"], atol=1e-3)
    assert china["low"] < china["mean"] < china["high"]


def test_a_difference_is_over_the_items_that_both_answered(folder: Path) -> None:
    """Leaving out what one would get wrong must not make a persona better than the unaware."""
    survey = culturespa.read(folder)
    everywhere = np.zeros(len(OPTIONS), int)
    gold = np.array([survey.majority("USA")[i] for i in OPTIONS])
    some = np.where(gold == 0, everywhere, NO_REPLY)
    aware, unaware = (
        Responses.from_positions(survey, ["-"], a[None, None]) for a in (some, everywhere)
    )
    found = analyse(survey, {"USA": [aware]}, [unaware], resamples=50)
    assert found["scores"]["USA"]["aware"] == 100 > found["scores"]["USA"]["unaware"]
    assert found["intervals"]["difference"]["USA"]["alignment"]["value"] == 0
    assert found["scores"]["USA"]["items"] == (gold == 0).sum()
    assert found["scores"]["USA"]["unaware_items"] == len(OPTIONS)


def test_countries_without_a_persona_have_none(result) -> None:
    assert result["scores"]["BOL"]["aware"] is None
    assert result["scores"]["BOL"]["unaware"] is not None
    assert "BOL" not in result["intervals"]["aware"]
    assert result["means"]["all"]["aware"] is None  # 2 of 18 are no mean over 18
    both = [result["scores"][p]["aware"] for p in ("USA", "CHN")]
    np.testing.assert_allclose(result["means"]["personas"]["aware"], np.mean(both), atol=1e-3)
    mean = result["intervals"]["aware"]["mean"]["alignment"]["value"]
    np.testing.assert_allclose(mean, np.mean(both), atol=1e-3)


def test_unreadable_replies_are_counted(result) -> None:
    counts = {"runs": 2, "replies": 24, "unreadable": 2, "out_of_range": 2, "option_lists": 0}
    assert result["unreadable"]["aware"]["CHN"] == counts | {"items": ["Q1", "Q48"]}
    total = {"replies": 48, "unreadable": 2, "out_of_range": 2, "option_lists": 0}
    assert result["unreadable"]["total"] == total


def test_tables_cover_every_topic_and_item_once(result) -> None:
    assert sum(t["items"] for t in result["topics"]) == len(result["items"]) == len(OPTIONS)
    assert sum(t["long_items"] for t in result["topics"]) == result["long_items"]["count"] == 4
    rows = {row["id"]: row for row in result["items"]}
    assert rows["Q111"]["error"] == {"USA": None, "CHN": None}
    assert rows["Q94"]["aware"]["CHN"] == 0.5  # the mean of codes 0 and 1
    assert rows["Q1"]["aware"]["CHN"] is None
    assert rows["Q1"]["unaware"] == 1
    assert rows["Q2"]["majority"]["CHN"] is None
    assert rows["Q241"]["error"]["USA"] == 0


def test_matrix_and_map(result) -> None:
    values = np.array(result["alignment"]["countries"]["values"])
    assert values.shape == (18, 18)
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(np.diag(values), 100)
    assert result["alignment"]["personas"]["rows"] == ["USA", "CHN"]
    points = {(p["kind"], p["label"]): (p["x"], p["y"]) for p in result["map"]["points"]}
    assert len(points) == 18 + 2 + 1
    usa, persona = points["country", "USA"], points["persona", "USA persona"]
    np.testing.assert_allclose(usa, persona, atol=1e-5)


def test_unaware_replies_alone(folder: Path) -> None:
    file = folder / "result/wvs_result_culture_unaware_0.json"
    found = score_replies(folder, [file], resamples=200)
    assert found["personas"] == []
    assert all(t["aware"] == t["unaware"] == {} for t in found["topics"])
    assert found["means"]["all"]["unaware"] is not None
    assert found["against_lines"] == found["intervals"]["difference"] == {}
    assert found["dispersion"]["homogenising"] is None
    assert found["identification"]["rows"]["of"] == 0


def test_personas_of_unknown_countries_and_no_replies_are_refused(folder: Path) -> None:
    survey = culturespa.read(folder)
    none = Responses.from_positions(survey, ["-"], np.zeros((1, 1, len(OPTIONS)), int))
    with pytest.raises(UserError, match="country 'XXX' is not in the survey"):
        analyse(survey, {"XXX": [none]})
    with pytest.raises(UserError, match="no replies to analyse"):
        analyse(survey, {})


def test_a_survey_may_be_read_before_and_replies_named_by_the_caller(folder, tmp_path) -> None:
    rows = json.loads((folder / "result/wvs_result_culture_aware_USA_0.json").read_text("utf-8"))
    write(tmp_path / "any.json", rows)
    survey = culturespa.read(folder)
    found = score_replies(
        survey, [tmp_path / "any.json"], country="CHN", mode="aware", resamples=20, metrics=[]
    )
    assert found["personas"] == ["CHN"]
    assert list(found["labels"]["metrics"]) == ["alignment"]


def test_presentations_widen_intervals_and_change_no_score(folder: Path) -> None:
    survey, items = culturespa.read(folder), len(OPTIONS)
    gold = {c: np.array([survey.majority(c).get(i, 0) for i in OPTIONS]) for c in ("USA", "CHN")}

    def answers(positions_FxQ: np.ndarray) -> Responses:
        """Exact answers that are certain of a position in each presentation."""
        shares = np.zeros((items, max(len(item.options) for item in survey.items)))
        forms = {}
        for name, positions_Q in zip("AB", positions_FxQ, strict=True):
            certain = shares.copy()
            certain[np.arange(items), positions_Q] = 1
            with np.errstate(divide="ignore"):
                forms[name] = Responses(survey, ("-",), np.log(certain, dtype=np.float32)[None])
        return Responses.from_presentations(forms)

    last = np.array([len(item.options) - 1 for item in survey.items])
    aware = {c: [answers(np.stack([g, last - g]))] for c, g in gold.items()}
    unaware = [answers(np.stack([np.zeros(items, int), last]))]
    alone = {
        name: (
            {c: [runs[0].by_presentation[name]] for c, runs in aware.items()},
            [unaware[0].by_presentation[name]],
        )
        for name in "AB"
    }
    arguments = {"countries": ["USA", "CHN"], "resamples": 200}
    plain = analyse(survey, aware, unaware, **arguments)
    found = analyse(survey, aware, unaware, **arguments, by_presentation=alone)
    assert found["scores"] == plain["scores"]
    first, second = (x["intervals"]["aware"]["USA"]["alignment"] for x in (plain, found))
    assert first["value"] == second["value"]
    by_form = found["presentations"]["aware"]["USA"]
    # Two presentations alone: s² / 2 is the square of half their difference.
    half = 1.959964 * abs(by_form["A"] - by_form["B"]) / 2
    low = first["value"] - np.hypot(first["value"] - first["low"], half)
    assert second["low"] == pytest.approx(low, abs=1e-2)
    assert by_form["A"] == 100
    # Their numbers stand the other way round in B, and so do their answers.
    correlation = found["presentations"]["correlation"]
    assert correlation["unaware"] is None, "the first option throughout does not vary"
    assert correlation["aware"]["value"] < 0
    assert (plain["presentations"], plain["validity"]["presentations"]) == (None, ["A"])
    assert found["validity"]["presentations"] == ["A", "B"]
    assert found["validity"]["countries"] == 2


def test_the_gate_opens_an_analysis_of_personas(result, folder) -> None:
    gate = result["validity"]
    assert gate["countries"] == 2
    assert gate["sentence"].endswith(".")
    file = folder / "result/wvs_result_culture_unaware_0.json"
    assert score_replies(folder, [file], resamples=20)["validity"] is None


if DATA:
    AWARE = {"USA": 71.12, "CHN": 66.54, "NGA": 61.96}
    UNAWARE = {"USA": 68.34, "CHN": 62.19, "NGA": 52.05}

    def test_the_figures_of_the_released_replies() -> None:
        folder = Path(str(DATA))
        result = score_replies(folder, reply_files(folder), resamples=500)
        for country in AWARE:
            assert round(result["scores"][country]["aware"], 2) == AWARE[country]
            assert round(result["scores"][country]["unaware"], 2) == UNAWARE[country]
        assert round(result["means"]["all"]["unaware"], 2) == 62.36
        total = result["unreadable"]["total"]
        assert total["unreadable"] + total["out_of_range"] == 10
        # One reply each of Llama-3-8B-Instruct, as published, passes the gate, if not by much.
        gate = result["validity"]
        assert gate["passes"]
        assert gate["replies"] == 1
        assert gate["correlation"]["mean"] == pytest.approx(0.213, abs=1e-3)
        assert gate["over_uniform"]["mean"] == pytest.approx(0.092, abs=2e-3)
        assert result["long_items"]["count"] == 51
        assert round(result["long_items"]["share_of_denominator"], 1) == 72.9
        assert round(result["dispersion"]["humans"]["agreement"], 1) == 61.9
        assert result["dispersion"]["homogenising"] is True
