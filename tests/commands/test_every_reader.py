"""What `check` calls right, every command that takes a survey can use, or `check` said why not.

Each kind of file is checked, and then read by the reader of each command, up to where the work
would begin.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pyreadstat
import pytest

from jaxalign.commands import filter_questions, write_questions
from jaxalign.commands.plan import experiments
from jaxalign.commands.plan.planning import PlanSettings
from jaxalign.core.errors import UserError
from jaxalign.lm.model import open_model
from jaxalign.methods.ask_survey.inputs import read_inputs as read_ask
from jaxalign.methods.ask_survey.settings import AskSettings, check_settings
from jaxalign.methods.culturespa.inputs import read_guard
from jaxalign.methods.culturespa.inputs import read_inputs as read_culturespa
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.soft_prompt import Settings as SoftPromptSettings
from jaxalign.methods.soft_prompt.problem import check_comparison, read_problem
from jaxalign.stats import analysis
from jaxalign.surveys import ChoiceTest, SurveyCheck, check_survey
from jaxalign.surveys.options import SurveyOptions
from tests.support.cultural_bench_files import sets
from tests.support.culture_folder import write_folder


@dataclasses.dataclass(frozen=True)
class File:
    """A file to check, with what goes with it."""

    path: Path
    distributions: Path | None = None
    options: SurveyOptions = SurveyOptions()

    def named(self, name: str) -> dict[str, Any]:
        """Return the settings of a command that calls the file `name`."""
        shares = "distributions" if name == "survey" else f"{name}_distributions"
        return {name: self.path, shares: self.distributions} | self.options.survey_options()


# -- the files ------------------------------------------------------------------------------------

QUESTIONS = ("family", "friends", "work")


def respondents(folder: Path, people: int = 240) -> Path:
    """Write the respondents of a World Values Survey file as CSV."""
    names = ("B_COUNTRY_ALPHA", "W_WEIGHT", "Q260", "Q262", "Q1", "Q2", "Q3")
    with open(folder / "wvs.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        for i in range(people):
            codes = (1 + i % 4, 1 + i % 3, 1 + i % 2)
            out.writerow(
                [("USA", "CHN")[i // 120], 1 + i % 2, 1 + i // 60 % 2, 20 + i % 60, *codes]
            )
    return folder / "wvs.csv"


def statistics_file(folder: Path, suffix: str) -> Path:
    table = pyarrow.csv.read_csv(respondents(folder)).to_pydict()
    path = folder / f"wvs{suffix}"
    if suffix == ".dta":
        table = {name.lower(): values for name, values in table.items()}
        pyreadstat.write_dta(_frame(table), str(path))
    else:
        pyreadstat.write_sav(_frame(table), str(path), compress=suffix == ".zsav")
    return path


def _frame(table: dict[str, list[Any]]) -> Any:
    import pandas

    return pandas.DataFrame(table)


def words(folder: Path) -> Path:
    labels = "1=very|2=rather|3=not very|4=not at all"
    rows = [f"Q{n},How important is {q}?,{labels},values" for n, q in enumerate(QUESTIONS, 1)]
    path = folder / "words.csv"
    path.write_text("\n".join(["id,text,options,topic", *rows]) + "\n")
    return path


def own_shares(folder: Path) -> Path:
    rows = [f"{c},Q{n},{k},{0.25}" for c in ("USA", "CHN") for n in (1, 2, 3) for k in range(1, 5)]
    path = folder / "shares.csv"
    path.write_text("\n".join(["country,item,code,share", *rows]) + "\n")
    return path


def worded(path: Path, **options: Any) -> File:
    return File(path, options=SurveyOptions(wording=words(path.parent), **options))


def as_semicolons(folder: Path) -> Path:
    path = respondents(folder)
    path.write_text("sep=;\r\n" + path.read_text().replace(",", ";"))
    return path


def opinions(folder: Path) -> Path:
    shares = "{{'United States': [0.7, 0.3], 'China': [0.{n}, 0.{m}]}}"
    rows = [
        [f"Is thing {n} right?", shares.format(n=n, m=9 - n), "['Yes', 'No']", "GAS"]
        for n in range(1, 5)
    ]
    with open(folder / "opinions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "selections", "options", "source"], *rows])
    return folder / "opinions.csv"


def multiple_choice(folder: Path, layout: str) -> Path:
    rows = [
        {"question": f"Is it {n}?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "B"}
        for n in range(3)
    ]
    path = folder / f"mmlu.{layout}"
    if layout == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])
    elif layout == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif layout == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    return path


def bench(folder: Path, which: int, cut: int | None = None) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps(sets(topics=2)[which][:cut]))
    return path


def own_json(folder: Path) -> Path:
    from jaxalign.surveys.formats import read_survey
    from jaxalign.surveys.survey import to_json

    survey = read_survey(words(folder), own_shares(folder))
    path = folder / "own.json"
    path.write_text(json.dumps(to_json(survey)))
    return path


KINDS: dict[str, Callable[[Path], File]] = {
    "WVS text, codes alone": lambda f: File(respondents(f)),
    "WVS .sav, codes alone": lambda f: File(statistics_file(f, ".sav")),
    "WVS text, worded": lambda f: worded(respondents(f)),
    "WVS from a spreadsheet, worded": lambda f: worded(as_semicolons(f)),
    "WVS .sav, worded": lambda f: worded(statistics_file(f, ".sav")),
    "WVS .zsav, worded": lambda f: worded(statistics_file(f, ".zsav")),
    "WVS .dta, worded": lambda f: worded(statistics_file(f, ".dta")),
    "WVS by sex": lambda f: worded(respondents(f), by=("sex",)),
    "WVS .sav by age": lambda f: worded(statistics_file(f, ".sav"), by=("age",), min_respondents=9),
    "CultureSPA's folder": lambda f: File(write_folder(f)),
    "CultureSPA's folder in other words": lambda f: File(
        write_folder(f), options=SurveyOptions(wording=write_folder(f))
    ),
    "GlobalOpinionQA": lambda f: File(opinions(f)),
    "own JSON": lambda f: File(own_json(f)),
    "own CSV": lambda f: File(words(f), own_shares(f)),
    "own CSV without shares": lambda f: File(words(f)),
    "MMLU as CSV": lambda f: File(multiple_choice(f, "csv")),
    "MMLU as JSON": lambda f: File(multiple_choice(f, "json")),
    "MMLU as JSON lines": lambda f: File(multiple_choice(f, "jsonl")),
    "MMLU as parquet": lambda f: File(multiple_choice(f, "parquet")),
    "CulturalBench Easy": lambda f: File(bench(f, 0)),
    "CulturalBench Hard": lambda f: File(bench(f, 1)),
    "CulturalBench Hard, cut": lambda f: File(bench(f, 1, -1)),
}


# -- the commands ---------------------------------------------------------------------------------


def ask(file: File, groups: tuple[str, ...], folder: Path) -> None:
    settings = AskSettings(**file.named("survey") | {"survey": str(file.path)})
    check_settings(settings)
    read_ask(settings, open_model())


def score(file: File, groups: tuple[str, ...], folder: Path) -> None:
    replies = folder / "replies.jsonl"
    item = getattr(check_survey(file.path).survey, "items", None)
    doc = {
        "Q_id": item[0].id if item else "Q1",
        "country": groups[0] if groups else "USA",
        "mode": "aware",
    }
    replies.write_text(json.dumps({"doc": doc, "resps": [["1"]]}) + "\n")
    options = file.options.survey_options()
    analysis.score_replies(file.path, [replies], distributions=file.distributions, **options)


def culturespa(file: File, groups: tuple[str, ...], folder: Path) -> None:
    read_culturespa(CultureSPASettings(**file.named("survey"), countries=groups or ("USA", "CHN")))


def held_out(file: File, groups: tuple[str, ...], folder: Path) -> None:
    groups = groups or ("USA", "CHN")
    edition = folder / "scores.csv"
    rows = [f"{group},50,50,50,50,50,50" for group in groups]
    edition.write_text("\n".join(["group,pdi,idv,mas,uai,lto,ivr", *rows]) + "\n")
    settings = SoftPromptSettings(
        **file.named("held_out"), countries=groups, edition=str(edition), icl_examples=1
    )
    check_comparison(read_problem(settings))


def write(file: File, groups: tuple[str, ...], folder: Path) -> None:
    settings = write_questions.Settings(survey=file.path, **file.options.survey_options())
    write_questions.read_inputs(settings)


def seeds(file: File, groups: tuple[str, ...], folder: Path) -> None:
    if file.options.wording is not None:
        pytest.skip("the words themselves are the seeds")
    filter_questions.read_seeds(file.path)


def plan(file: File, groups: tuple[str, ...], folder: Path) -> None:
    if file.distributions is not None:
        pytest.skip("a plan takes a survey in one file")
    settings = PlanSettings(survey=file.path, countries=("2",), **file.options.survey_options())
    assert len(experiments._countries(settings)) == 2


def guard(file: File, groups: tuple[str, ...], folder: Path) -> None:
    read_guard(file.path)


# What a command needs of a survey: its wording, groups' answers; or right answers.
COMMANDS = {
    ask: {"wording"},
    score: {"answers"},
    culturespa: {"wording", "answers"},
    held_out: {"wording", "answers"},
    write: {"wording"},
    plan: {"wording", "answers"},
    seeds: {"wording"},
    guard: {"key"},
}


def reason_against(check: SurveyCheck, needs: set[str]) -> str:
    """Return what the command must say if it refuses the file; "" if it must take it."""
    is_test = isinstance(check.survey, ChoiceTest)
    if "key" in needs:
        return "" if is_test else "a survey; give questions with one right answer"
    if is_test:
        return "" if needs == {"wording"} else "one right answer"
    if "answers" in needs and not check.has_answers:
        assert "does not say how any country answered" in str(check)
        return "does not say how"
    if "wording" in needs and not check.can_be_asked:
        assert "no model can be asked" in str(check)
        return "no wording"
    return ""


def refusal(command: Any, *args: Any) -> str | None:
    """Return how a command refuses a file, "" if it takes it, None where it cannot be tried."""
    try:
        command(*args)
    except UserError as error:
        return str(error)
    except pytest.skip.Exception:
        return None
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_check_calls_right_every_command_can_use(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(analysis, "analyse", lambda *_, **__: {})
    caplog.set_level(logging.INFO, "jaxalign")
    file = KINDS[kind](tmp_path)
    check = check_survey(file.path, file.distributions, options=file.options)
    assert check.ok, check
    groups = () if not check.has_answers else tuple(check.survey.distributions)[:2]
    for command, needs in COMMANDS.items():
        caplog.clear()
        why_not = reason_against(check, needs)
        if command in (write, seeds) and isinstance(check.survey, ChoiceTest):
            why_not = "one right answer"
        said = refusal(command, file, groups, tmp_path)
        if said is None:
            continue
        assert bool(said) == bool(why_not), (command.__name__, said, why_not)
        if said:
            assert why_not in said
        elif command in (ask, culturespa, held_out, write):
            for note in check.survey.notes:
                assert any(note in line for line in caplog.messages), (command.__name__, note)
