"""The analysis and the command line that ends in it, on a made-up folder and on the real one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxalign.commands import reports
from jaxalign.commands.score import Config, score_replies, summary
from jaxalign.core.errors import UserError
from jaxalign.core.files import plain
from jaxalign.report.words import NO_DIFFERENCE
from jaxalign.runs.console import main
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis import analyse
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.responses import NO_REPLY, Responses
from tests.support.culture_folder import (
    OPTIONS,
    first_code,
    reply_files,
    write,
    write_folder,
    write_replies,
)

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
KEYS = {
    "format", "instrument", "settings", "countries", "personas", "labels", "scores", "means",
    "intervals", "against_lines", "seeds", "identification", "dispersion", "long_items",
    "unreadable", "topics", "items", "alignment", "map",
}  # fmt: skip


def majority_texts(folder: Path, country: str) -> dict[str, str]:
    """The answers of a persona that knows its country perfectly."""
    survey = culturespa.read(folder)
    found = survey.majority(country)
    return {i: str(at + first_code(i)) for i, at in found.items()}


def run(config: Config) -> dict[str, Any]:
    """`score_replies` without its pictures; what it wrote as result.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "survey_report", lambda result, out: None)
        score_replies(config)
    return json.loads((config.out / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The USA persona is perfect, CHN's second run says nothing, unaware replies are all 1."""
    folder = write_folder(tmp_path_factory.mktemp("survey"))
    write_replies(folder, "aware_USA_0", majority_texts(folder, "USA"))
    for number in (0, 1):
        texts = {i: str(first_code(i) + number) for i in OPTIONS}
        write_replies(folder, f"aware_CHN_{number}", texts | {"Q1": "refused", "Q48": "77"})
    write_replies(folder, "unaware_0", "1")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    out = tmp_path_factory.mktemp("runs")
    files = reply_files(folder)
    return Config(folder, files, resamples=200, out=out / "a", json=out / "scores.json")


@pytest.fixture(scope="module")
def result(config: Config) -> dict[str, Any]:
    return run(config)


def test_it_has_the_documented_keys_and_is_plain(result: dict[str, Any]) -> None:
    assert result.keys() == KEYS
    assert plain(result) == result
    assert result["personas"] == ["USA", "CHN"]
    assert list(result["countries"]) == list(culturespa.COUNTRIES)
    assert set(result["scores"]["BOL"]["lines"]) == set(LINES) == set(result["labels"]["lines"])


def test_a_perfect_persona_scores_100_and_is_told_from_the_unaware(result) -> None:
    usa = result["scores"]["USA"]
    assert usa["aware"] == usa["aware_ordinal"] == 100
    assert usa["items"] == len(OPTIONS)
    assert result["intervals"]["aware"]["USA"]["alignment"] == {
        "value": 100, "low": 100, "high": 100,
    }  # fmt: skip
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


def test_a_score_on_few_items_says_so(folder: Path, tmp_path: Path, capsys) -> None:
    rows = json.loads((folder / "result/wvs_result_culture_aware_USA_0.json").read_text("utf-8"))
    write(few := tmp_path / "aware_USA_0.json", rows[:2])
    unaware = folder / "result/wvs_result_culture_unaware_0.json"
    score_replies(Config(folder, (few, unaware), resamples=50, out=tmp_path / "out"))
    assert "items in a score, of 12: USA 2, unaware 11 to 12" in capsys.readouterr().out
    said = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "rests on 2 of the survey's 12 questions" in said


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
    assert result["unreadable"]["aware"]["CHN"] == {
        "runs": 2, "replies": 24, "unreadable": 2, "out_of_range": 2, "items": ["Q1", "Q48"],
    }  # fmt: skip
    assert result["unreadable"]["total"] == {"replies": 48, "unreadable": 2, "out_of_range": 2}


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


def test_the_scores_file(config: Config, result: dict[str, Any]) -> None:
    scores = json.loads(config.json.read_text("utf-8"))
    assert scores["scores"]["USA"]["aware"] == 100
    assert scores["scores"]["CHN"]["aware"] == round(result["scores"]["CHN"]["aware"], 2)
    assert scores["unreadable"] == 4
    assert scores["unreadable_by"] == {"aware": {"USA": 0, "CHN": 4}, "unaware": 0}
    assert summary(result, config) == scores


def test_unaware_replies_alone(config: Config, folder: Path) -> None:
    alone = dataclasses.replace(
        config, replies=(folder / "result/wvs_result_culture_unaware_0.json",),
        out=config.out.parent / "b", json=None,
    )  # fmt: skip
    found = run(alone)
    assert found["personas"] == []
    assert all(t["aware"] == t["unaware"] == {} for t in found["topics"])
    assert found["means"]["all"]["unaware"] is not None
    assert found["against_lines"] == found["intervals"]["difference"] == {}
    assert found["dispersion"]["homogenising"] is None
    assert found["identification"]["rows"]["of"] == 0


BAD = {
    "is named twice": {"replies": lambda f: (f / "a", f / "a")},
    "name at least one file": {"replies": lambda f: ()},
    "give 1 to 1000000": {"resamples": lambda f: 0},
    "no such folder": {"json": lambda f: f / "absent" / "scores.json"},
    "a folder; name a file in it": {"json": lambda f: f},
    "no answer in 12 replies": {"replies": lambda f: (f / "silent.json",)},
    "holds the same replies as": {"replies": lambda f: (f / "copy.json", f / "again.json")},
    "country 'XXX' is not in the survey": {"country": lambda f: "XXX"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_leaves_nothing_behind(config, folder, tmp_path, message: str) -> None:
    rows = json.loads((folder / "result/wvs_result_culture_aware_USA_0.json").read_text("utf-8"))
    for name in ("copy", "again"):
        write(tmp_path / f"{name}.json", rows)
    write(tmp_path / "silent.json", [row | {"answer": "I cannot say."} for row in rows])
    wrong = dataclasses.replace(
        config, out=tmp_path / "out", json=tmp_path / "scores.json",
        replies=(tmp_path / "copy.json",), country="USA", mode="aware",
    )  # fmt: skip
    wrong = dataclasses.replace(wrong, **{k: v(tmp_path) for k, v in BAD[message].items()})
    with pytest.raises(UserError, match=message):
        score_replies(wrong)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "scores.json").exists()


def test_the_command_line_ends_with_2_and_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    args = ["--survey", str(folder), "--replies", str(tmp_path / "absent.json")]
    with pytest.raises(SystemExit) as leaving:
        main(score_replies, Config, [*args, "--mode", "unaware", "--out", str(tmp_path / "o")])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_personas_of_unknown_countries_and_no_replies_are_refused(folder: Path) -> None:
    survey = culturespa.read(folder)
    none = Responses.from_positions(survey, ["-"], np.zeros((1, 1, len(OPTIONS)), int))
    with pytest.raises(UserError, match="country 'XXX' is not in the survey"):
        analyse(survey, {"XXX": [none]})
    with pytest.raises(UserError, match="no replies to analyse"):
        analyse(survey, {})


if DATA:
    AWARE = {"USA": 71.12, "CHN": 66.54, "NGA": 61.96}
    UNAWARE = {"USA": 68.34, "CHN": 62.19, "NGA": 52.05}

    def test_the_figures_of_the_released_replies(tmp_path: Path) -> None:
        folder = Path(str(DATA))
        config = Config(folder, reply_files(folder), resamples=500,
                        out=tmp_path / "out", json=tmp_path / "scores.json")  # fmt: skip
        result = run(config)
        scores = json.loads(config.json.read_text("utf-8"))
        for country in AWARE:
            assert scores["scores"][country]["aware"] == AWARE[country]
            assert scores["scores"][country]["unaware"] == UNAWARE[country]
        assert scores["means"]["all"]["unaware"] == 62.36
        assert scores["unreadable"] == 10
        assert result["long_items"]["count"] == 51
        assert round(result["long_items"]["share_of_denominator"], 1) == 72.9
        assert round(result["dispersion"]["humans"]["agreement"], 1) == 61.9
        assert result["dispersion"]["homogenising"] is True
