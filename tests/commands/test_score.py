"""`jaxalign score`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jaxalign.commands import reports
from jaxalign.commands.score import Config, score, summary
from jaxalign.core.errors import UserError
from jaxalign.runs.console import main
from jaxalign.stats.analysis import score_replies
from jaxalign.stats.metrics import DEFAULT_METRICS
from tests.support.culture_folder import reply_files, write
from tests.support.scored_folder import write_scored_folder

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")


def run(config: Config) -> dict[str, Any]:
    """Run the command without its report; return what it wrote as result.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "survey_report", lambda result, out: None)
        score(config)
    return json.loads((config.out / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored_folder(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def config(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    out = tmp_path_factory.mktemp("runs")
    files = reply_files(folder)
    return Config(folder, files, resamples=200, out=out / "a", json=out / "scores.json")


@pytest.fixture(scope="module")
def result(config: Config) -> dict[str, Any]:
    return run(config)


def test_the_command_writes_what_the_function_returns(folder: Path, result) -> None:
    assert score_replies(folder, reply_files(folder), resamples=200) == result
    assert list(result["labels"]["metrics"]) == list(DEFAULT_METRICS)


def test_the_scores_file(config: Config, result: dict[str, Any]) -> None:
    scores = json.loads(config.json.read_text("utf-8"))
    assert scores["scores"]["USA"]["aware"] == 100
    assert scores["scores"]["CHN"]["aware"] == round(result["scores"]["CHN"]["aware"], 2)
    assert scores["unreadable"] == 4
    assert scores["unreadable_by"] == {"aware": {"USA": 0, "CHN": 4}, "unaware": 0}
    assert summary(result, config) == scores


@pytest.mark.long
def test_lists_of_options_and_runs_that_did_not_end_are_said(
    folder: Path, tmp_path: Path, capsys
) -> None:
    rows = json.loads((folder / "result/wvs_result_culture_aware_USA_0.json").read_text("utf-8"))
    texts = {row["Q_id"]: row["answer"] for row in rows}
    first = rows[0]
    texts[first["Q_id"]] = " ".join(f"{n} = {o}" for n, o in enumerate(first["option_lst"], 1))
    samples = [
        {"id": item, "epoch": 1, "output": {"completion": text, "choices": []}}
        for item, text in texts.items()
    ]
    log = {"version": 2, "status": "cancelled", "eval": {}, "samples": samples}
    write(tmp_path / "log_aware_USA_0.json", log)
    files = (tmp_path / "log_aware_USA_0.json",)
    score(Config(folder, files, resamples=50, out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "of these, 1 repeat the options and take none" in said
    assert "note: " in said
    assert "status cancelled" in said
    report = (tmp_path / "out/report.md").read_text("utf-8")
    assert "1 repeated the options without taking one" in report
    assert "inspect ended with status cancelled" in report
    result = json.loads((tmp_path / "out/result.json").read_text("utf-8"))
    assert result["unreadable"]["aware"]["USA"]["option_lists"] == 1


@pytest.mark.long
def test_a_score_on_few_items_says_so(folder: Path, tmp_path: Path, capsys) -> None:
    rows = json.loads((folder / "result/wvs_result_culture_aware_USA_0.json").read_text("utf-8"))
    write(few := tmp_path / "aware_USA_0.json", rows[:2])
    unaware = folder / "result/wvs_result_culture_unaware_0.json"
    score(Config(folder, (few, unaware), resamples=50, out=tmp_path / "out"))
    assert "items in a score, of 12: USA 2, unaware 11 to 12" in capsys.readouterr().out
    said = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "rests on 2 of the survey's 12 questions" in said


def test_metrics_are_chosen_by_name(config: Config, folder: Path) -> None:
    out = config.out.parent / "chosen"
    args = ["--survey", str(folder), "--replies", str(config.replies[0]), "--out", str(out)]
    args += ["--resamples", "20", "--metrics", "exact_match", "wasserstein"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "survey_report", lambda result, out: None)
        main(score, Config, args)
    labels = json.loads((out / "result.json").read_text("utf-8"))["labels"]["metrics"]
    assert list(labels) == ["alignment", "exact_match", "wasserstein"]


BAD = {
    "`replies`: .* is named twice": {"replies": lambda f: (f / "a", f / "a")},
    "`replies`: name at least one file": {"replies": lambda f: ()},
    "`resamples` 0: give 1 to 1000000": {"resamples": lambda f: 0},
    "`metrics` best: no such metric": {"metrics": lambda f: ("best",)},
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
    good = {
        "out": tmp_path / "out",
        "json": tmp_path / "scores.json",
        "replies": (tmp_path / "copy.json",),
        "country": "USA",
        "mode": "aware",
    }
    bad = {field: value(tmp_path) for field, value in BAD[message].items()}
    with pytest.raises(UserError, match=message):
        score(dataclasses.replace(config, **good | bad))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "scores.json").exists()


def test_the_command_line_ends_with_2_and_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    args = ["--survey", str(folder), "--replies", str(tmp_path / "absent.json")]
    with pytest.raises(SystemExit) as leaving:
        main(score, Config, [*args, "--mode", "unaware", "--out", str(tmp_path / "o")])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_results_are_written_whatever_the_terminal_shows(
    folder: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case S1: `PYTHONIOENCODING=latin-1` ended in a traceback, and nothing had been written."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr(reports, "survey_report", lambda result, out: None)
    files = [str(path) for path in reply_files(folder)]
    args = ["--survey", str(folder), "--replies", *files, "--resamples", "50"]
    main(score, Config, [*args, "--out", str(tmp_path / "o"), "--json", str(tmp_path / "s.json")])
    stream.flush()
    assert b"Cultural alignment score" in stream.buffer.getvalue()
    assert json.loads((tmp_path / "s.json").read_text("utf-8"))["scores"]["USA"]["aware"] == 100
    assert (tmp_path / "o/result.json").is_file()


def test_results_are_written_before_they_are_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(analysis: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(reports, "survey_report", lambda result, out: None)
    monkeypatch.setattr("jaxalign.commands.score.show", broken)
    config = Config(folder, reply_files(folder), resamples=50, out=tmp_path / "o")
    with pytest.raises(BrokenPipeError):
        score(config)
    assert (tmp_path / "o/result.json").is_file()


if DATA:

    def test_the_scores_file_of_the_released_replies(tmp_path: Path) -> None:
        folder = Path(str(DATA))
        out, scores = tmp_path / "out", tmp_path / "scores.json"
        run(Config(folder, reply_files(folder), resamples=500, out=out, json=scores))
        written = json.loads(scores.read_text("utf-8"))
        assert written["scores"]["USA"]["aware"] == 71.12
        assert written["scores"]["NGA"]["unaware"] == 52.05
        assert written["means"]["all"]["unaware"] == 62.36
        assert written["unreadable"] == 10
