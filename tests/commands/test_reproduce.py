"""`jaxalign reproduce`: the published numbers, the pages, and what is public computed again."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from jaxalign.commands import COMMANDS, load
from jaxalign.commands.reproduce import replay as replay_module
from jaxalign.commands.reproduce.command import ReproduceSettings, compare_with_paper
from jaxalign.commands.reproduce.jobs import GUARD, JOBS, shortest_items
from jaxalign.commands.reproduce.page import NOT_PUBLISHED, _Cells
from jaxalign.commands.reproduce.published import read_paper
from jaxalign.commands.reproduce.replay import Replayed, replay
from jaxalign.commands.reproduce.runs import find_runs
from jaxalign.core.errors import UserError
from jaxalign.methods.cultural_bench import Settings as BenchSettings
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.soft_prompt import Settings
from jaxalign.runs import Run, settings_of
from jaxalign.surveys.survey import Item, vsm
from tests.support.report_samples import soft_prompt_sample

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
PAPERS = ("soft-prompt-de", "culturespa")


def finished(path: Path, settings: Any, result: dict[str, Any]) -> Path:
    """Write a finished run."""
    with Run.create(path, settings, {}) as run:
        run.write("result.json", {"settings": settings_of(settings), **result})
    return path


def score(mean: float, **countries: float) -> dict[str, Any]:
    bounds = {country: [value - 1, value + 1] for country, value in countries.items()}
    return {
        "mean": mean,
        "interval": [mean - 1, mean + 1],
        "seed_interval": None,
        "countries": countries,
        "country_intervals": bounds,
    }


def culturespa_result() -> dict[str, Any]:
    """A made-up result, as far as the page reads it."""
    pairs = {"USA": 1, "CHN": 3}
    return {
        "measure": {"validity": None},
        "presentations": {"averaged": ["A"]},
        "methods": {
            "p1": score(70.0, USA=80.0, CHN=60.0),
            "joint": score(72.5, USA=82.0, CHN=63.0),
        },
        "selection": {"crqpc": score(72.5), "rds": score(69.0), "cds": score(68.0)},
        "differences": {"joint_minus_p1": {"value": 2.5, "interval": [1.0, 4.0]}},
        "guard": {
            "before": 60.0,
            "after": {"joint": {"mean": 59.0}},
            "test": "mmlu 1f",
            "questions": 9,
        },
        "questions": {"parsed": 100, "removed": {"duplicates": 7, "undefined_scales": 2}},
        "selected": {"seed0": {"topics": {"trust": {"pairs": pairs}}, "pairs": {"joint": pairs}}},
        "lines": {"midpoint": {"mean": 50.0}},
        "survey": {"items": 82},
    }


@pytest.mark.parametrize("name", PAPERS)
def test_every_published_number_has_a_source(name: str) -> None:
    paper = read_paper(name)
    for table in paper.tables:
        keys = [row.key for row in table.rows]
        assert len(set(keys)) == len(keys), table.key
        for row in table.rows:
            assert (row.value is None) == (row.source == ""), row
            assert not row.source or row.source in paper.sources, row
    keys = [check.key for check in paper.replay]
    assert len(set(keys)) == len(keys)
    assert all(check.tolerance >= 0 for check in paper.replay)


@pytest.mark.parametrize(("paper", "model"), [(p, m) for p in PAPERS for m in JOBS[p]])
def test_the_jobs_are_command_lines(paper: str, model: str) -> None:
    for job in JOBS[paper][model]:
        arguments = job.arguments.format(survey="s.json", countries="USA CHN", guard=GUARD)
        config = tyro.cli(load(COMMANDS[job.command])[1], args=shlex.split(arguments))
        assert config.model == (None if model == "pocket" else model)


def test_a_small_survey_has_the_shortest_items_of_every_topic() -> None:
    def item(name: str, topic: str, text: str) -> Item:
        return Item(name, text, ("yes", "no"), (1, 2), topic=topic)

    items = (item("a", "work", "long question"), item("b", "work", "short"), item("c", "god", "x"))
    survey = dataclasses.replace(vsm(), name="three", items=items)
    assert [i.id for i in shortest_items(survey).items] == ["b", "c"]
    assert [i.id for i in shortest_items(survey, 2).items] == ["a", "b", "c"]


def test_a_page_of_the_first_paper_links_what_was_measured_and_names_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"), signal=False)
    result.pop("settings")
    search = {"elitism": True, "num_diff": 1, "crossover_rate": 0.9}
    search |= {"differential_weight_min": 0.5, "differential_weight_max": 1.0}
    result["facts"] = {"search": search}
    run = finished(tmp_path / "runs/real", Settings(model="/x/smollm2"), result)
    (run / "report.html").write_text("a report")
    out = tmp_path / "page"
    counts = compare_with_paper(
        ReproduceSettings("soft-prompt-de", (tmp_path / "runs",), out=out), {}
    )
    page = (out / "report.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if "|" in line}
    loss = result["countries"]["USA"]["naive"]["expected"]["loss"]
    linked = f"[{loss:,.1f}](../runs/real/report.html)"
    assert rows["USA, Naive"].split("|")[2:5] == [
        f" {NOT_PUBLISHED} ",
        " command 1 ",
        f" {linked} ",
    ]
    assert (out / "../runs/real/report.html").exists()
    assert "instrument without signal" in rows["DE is below Naive, in countries"]
    assert "| best/1/bin" in rows["Variant of DE"].replace("[", " ").replace("  ", " ")
    # SAU was not asked of this model; the command that is named asks all four.
    (number,) = re.findall(r"command (\d+) \|$", rows["SAU, Naive"])
    assert f"| command {number} | jaxalign soft-prompt --model smollm2 --countries SAU" in page
    assert counts.measured + counts.missing == 2 * counts.rows
    assert "“3” to every item, USA, C = 0: loss" in capsys.readouterr().out
    html = (out / "report.html").read_text("utf-8")
    assert f'<a href="../runs/real/report.html">{loss:,.1f}</a>' in html
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    assert json.loads((out / "result.json").read_text())["checks"]["all_middle_0"]["within"]


def test_a_page_of_the_second_paper_takes_values_from_runs_and_their_studies(
    tmp_path: Path,
) -> None:
    settings = CultureSPASettings(countries=("USA", "CHN", "NLD"), seeds=1, per_topic=2)
    run = finished(tmp_path / "one", settings, culturespa_result())
    correlation = {"pearson": {"mean": 0.5, "seed_interval": None}}
    (run / "matrices.json").write_text(json.dumps({"methods": {"p1": correlation}}))
    bench = BenchSettings(easy=Path("easy.csv"))  # a run that this paper takes nothing from
    finished(tmp_path / "bench", bench, {"sets": {}})
    cells = _Cells("culturespa", find_runs([tmp_path]), ["pocket model"])

    def shown(table: str, row: str) -> Any:
        cell = cells.cell("pocket model", table, row, tmp_path)
        return (
            (getattr(cell.value, "mean", cell.value), cell.target)
            if hasattr(cell, "target")
            else cell
        )

    assert shown("countries", "p1.CHN") == (60.0, "one/result.json")
    assert shown("main", "joint") == (72.5, "one/result.json")
    assert shown("cultures", "culture.CHN")[0] == 75.0
    assert shown("cultures", "culture.NLD")[0] == 0.0  # a country without a pair
    assert shown("selection", "crqpc")[0] == 2.5
    assert shown("selection", "rds")[0] == -1.0
    assert shown("correlations", "p1") == (0.5, "one/matrices.json")
    assert shown("questions", "left")[0] == 91
    assert shown("setup", "guard")[0] == "9: mmlu"
    missing = [shown(*key) for key in (("main", "joint.p2"), ("quantity", "share.0.1"))]
    missing += [shown("countries", f"p1.{country}") for country in ("BRA", "KEN")]
    commands = dict(zip(cells.commands.values(), cells.commands, strict=True))
    assert missing == [f"command {n}" for n in (1, 2, 3, 4)]
    assert commands[1] == f"python -m experiments.culturespa.prompting {run}"
    assert commands[2] == f"python -m experiments.culturespa.studies.fractions {run}"
    assert "BRA" in commands[3]
    assert "--survey" not in commands[3]
    assert "--survey CULTURESPA_FOLDER" in commands[4]


def test_runs_are_made_once_and_studied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, studied = [], []

    def run_command(command: str, words: list[str]) -> None:
        made.append((command, words))
        out = Path(words[words.index("--out") + 1])
        finished(out, CultureSPASettings(countries=("USA", "CHN"), seeds=1), culturespa_result())

    def study(path: Path) -> None:
        studied.append(path)
        (path / "matrices.json").write_text("{}")

    monkeypatch.setattr("jaxalign.commands.reproduce.jobs._run_command", run_command)
    monkeypatch.delenv("JAXALIGN_CULTURESPA_DATA", raising=False)
    settings = ReproduceSettings("culturespa", models=("pocket",), out=tmp_path / "page")
    for _ in range(2):
        compare_with_paper(settings, {"matrices.json": study})
    assert [command for command, _ in made] == ["culturespa"]
    assert studied == [tmp_path / "page/pocket"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    def said(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            compare_with_paper(ReproduceSettings("culturespa", **changes), {})
        return str(error.value)

    (tmp_path / "empty").mkdir()
    run = finished(tmp_path / "run", CultureSPASettings(), {"methods": {}})
    assert "holds no finished run" in said(runs=(tmp_path / "empty",))
    assert "no such folder" in said(runs=(tmp_path / "none",))
    assert "is the directory of a run" in said(out=run)
    assert "no wvs_questions.json" in said(data=tmp_path / "empty", out=tmp_path / "page")
    assert "of another version" in said(runs=(run,), out=tmp_path / "page")
    assert not (tmp_path / "page/report.md").exists()


def test_a_check_is_within_its_tolerance_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = read_paper("soft-prompt-de")
    assert [found.within for found in replay(paper, None, None)] == [True, True]
    monkeypatch.setattr(replay_module, "_all_middle", lambda constant: 333.002)
    assert [found.within for found in replay(paper, None, None)] == [False, False]
    assert Replayed(paper.replay[0]).within is None


if DATA:

    def test_the_released_files_give_what_was_computed_from_them() -> None:
        """Of 18 countries' replies a folder may hold a few; the mean of all is then not claimed."""
        found = {r.check.key: r for r in replay(read_paper("culturespa"), Path(DATA), None)}
        computed = {key for key, r in found.items() if r.value is not None}
        assert all(found[key].within for key in computed)
        assert {"unaware", "p1.USA", "p1.CHN", "p1.NGA", "similarity", "own_mean"} <= computed
        for key in ("p1", "written"):
            assert key in computed or found[key].missing.startswith(
                ("no replies of", "questions on")
            )
