"""A run is continued with what its directory holds, and listed with how far it has come."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tyro

from jaxalign.commands import COMMANDS, load
from jaxalign.commands import report as report_module
from jaxalign.commands.list import ListSettings, list_runs, show
from jaxalign.commands.report import write_report_of
from jaxalign.commands.resume import ResumeSettings, command_of, resume
from jaxalign.core.errors import UserError
from jaxalign.core.seals import seal_of
from jaxalign.methods.ask_survey import AskSettings
from jaxalign.methods.cultural_bench import Settings as BenchSettings
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import Run, settings_of
from jaxalign.runs.settings import arguments_of

RUNS = {
    "soft-prompt": Settings(
        countries=("USA", "CHN"),
        prompt=SoftPromptConfig(length=3, text="{demonym} -- and 'quoted' words"),
        strategy=Strategy("SNES", population=6, options=(("std_init", -0.5), ("x", 1e-9))),
        seeds=(3, 4),
        anchor=(),
        presentations=("A", "B"),
        report_sampled=True,
        gradient_rate=1e-05,
    ),
    "culturespa": CultureSPASettings(
        countries=("USA", "CHN"), questions=(Path("a b.json"),), prompting=False, seeds=2
    ),
    "ask": AskSettings(model="smollm2"),
    "cultural-bench": BenchSettings(easy=Path("easy.csv")),
}


@pytest.mark.parametrize("name", RUNS)
def test_recorded_settings_are_read_back_from_the_command_line(name):
    """Whatever a command records, its own command line gives again: paths, pairs, texts, None."""
    recorded = json.loads(json.dumps(settings_of(RUNS[name])))
    config_class = load(COMMANDS[name])[1]
    assert command_of(Path("run"), recorded) == name
    again = tyro.cli(config_class, args=arguments_of(config_class, recorded))
    assert again == RUNS[name]


def test_a_run_is_continued_by_the_command_that_began_it(tmp_path, monkeypatch):
    out = tmp_path / "run"
    settings = dataclasses.replace(RUNS["soft-prompt"], out=out, quiet=False)
    Run.create(out, settings, {}).close()
    called = []
    monkeypatch.setattr(
        "jaxalign.commands.resume.load",
        lambda command: (called.append, load(command)[1]),
    )
    resume(ResumeSettings(out, quiet=True))
    assert called == [dataclasses.replace(settings, resume=True, quiet=True)]


def test_what_cannot_be_continued_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run is there"):
        resume(ResumeSettings(tmp_path / "none"))
    with pytest.raises(UserError, match="no run is there"):
        resume(ResumeSettings(tmp_path))
    with pytest.raises(UserError, match="a sweep is continued by giving its file again"):
        command_of(tmp_path, {"strategies": [], "prompt_lengths": []})
    with pytest.raises(UserError, match="the setting colour of this run is unknown"):
        arguments_of(Settings, {"colour": 1})


def test_runs_are_listed_the_latest_first(tmp_path, capsys):
    for name, settings in RUNS.items():
        with Run.create(tmp_path / name, settings, {}) as run:
            if name == "soft-prompt":
                run.log({"generation": 7, "USA": {}})
            if name == "ask":
                run.write("result.json", {})
    for name, year in (("soft-prompt", 2025), ("ask", 2026)):
        path = tmp_path / name / "config.json"
        fields = json.loads(path.read_text()) | {"started": f"{year}-01-02T03:04:05Z"}
        path.write_text(json.dumps(fields))
        seal_of(path).unlink(missing_ok=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    found = {run.name: run for run in list_runs(tmp_path)}
    assert found.keys() == RUNS.keys()
    assert all(run.command == name for name, run in found.items())
    assert (found["soft-prompt"].state, found["ask"].state) == ("generation 7", "done")
    assert (found["ask"].model, found["culturespa"].model) == ("smollm2", "pocket")
    assert list(found)[-1] == "soft-prompt"
    show(ListSettings(tmp_path))
    said = capsys.readouterr().out
    assert "2025-01-02 03:04:05" in said
    assert f"jaxalign resume {tmp_path}/NAME" in said
    with pytest.raises(UserError, match="no such folder"):
        list_runs(tmp_path / "none")


def test_a_report_is_written_anew_from_a_finished_run(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with Run.create(out, RUNS["soft-prompt"], {}) as run:
        with pytest.raises(
            UserError, match=f"is not finished; continue it with jaxalign resume {out}"
        ):
            write_report_of(out)
        run.write("result.json", {"a": 1})
    with pytest.raises(UserError, match="is of another version"):
        write_report_of(out)
    written = []

    def writer(result, run):
        written.append((result, run))
        return run / "report.md", run / "report.html"

    monkeypatch.setitem(report_module._WRITERS, "soft-prompt", writer)
    assert write_report_of(out) == (out / "report.md", out / "report.html")
    assert written == [({"a": 1}, out)]
    with pytest.raises(UserError, match="no run is there"):
        write_report_of(tmp_path)
