"""Whether a survey file can be used, and everything that is wrong with it.

    python -m experiments.survey_check my_survey.json
    python -m experiments.survey_check my_survey.csv --distributions my_shares.csv
    python -m experiments.survey_check WVS_Cross-National_Wave_7_csv_v6_0.csv

Seconds on any machine. Of an instrument of one's own every fault is told, with line and column
(JSON) or row and column (CSV); of other formats the first. Exit code 0 when the file is right, 2
when something is wrong. The formats are listed in `jaxalign.surveys.formats`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import ChoiceTest, Format, read_survey, recognise
from jaxalign.surveys.formats.own import Problem, check_csv, check_json
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.wording import wordless

_MOST_SHOWN = 50
_PLURAL = {"topic": "topics", "country": "countries"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Say whether a survey file can be used, and everything that is wrong with it."""

    file: Annotated[Path, tyro.conf.Positional]
    """The file, or CultureSPA's folder."""
    format: Format = "auto"
    """What the file is; by itself where it can be told."""
    distributions: Path | None = None
    """For own-csv: the CSV with country, item, code and share."""


def run(config: Config) -> None:
    """Print a summary. Raises UserError when something is wrong."""
    format = recognise(config.file) if config.format == "auto" else config.format
    if config.distributions is not None and format != "own-csv":
        raise UserError(f"--distributions goes with own-csv; {config.file} is {format}")
    problems: list[Problem] = []
    survey: Survey | ChoiceTest | None = None
    if format == "own-json":
        problems, survey = check_json(config.file)
    elif format == "own-csv":
        problems, survey = check_csv(config.file, config.distributions)
    else:
        survey = read_survey(config.file, format)
    if survey is None:
        _show(problems)
        raise UserError(f"{config.file}: wrong in {len(problems)} place{'s'[: len(problems) > 1]}")
    print(summary(format, survey))


def _show(problems: list[Problem]) -> None:
    for problem in problems[:_MOST_SHOWN]:
        print(problem, file=sys.stderr)
    if len(problems) > _MOST_SHOWN:
        print(f"... and {len(problems) - _MOST_SHOWN} more", file=sys.stderr)


def summary(format: str, survey: Survey | ChoiceTest) -> str:
    """One paragraph: items, scales, topics, countries and hash."""
    if isinstance(survey, ChoiceTest):
        kind = (
            f"{len(set(survey.groups))} questions with a right answer in {len(survey.items)} rows"
        )
        places = {country for country in survey.countries if country}
    else:
        ordinal = sum(item.scale == "ordinal" for item in survey.items)
        kind = (
            f"{len(survey.items)} items ({ordinal} ordinal, {len(survey.items) - ordinal} nominal)"
        )
        places = set(survey.distributions)
    options = sorted({len(item.options) for item in survey.items})
    return (
        f"{survey.name} ({format}): {kind}; {options[0]} to {options[-1]} options; "
        f"{_listed('topic', {item.topic for item in survey.items if item.topic})}; "
        f"{_listed('country', places)}; sha256 {survey.sha256}. Nothing is wrong with it."
        f"{_note(survey)}"
    )


def _note(survey: Survey | ChoiceTest) -> str:
    if not isinstance(survey, Survey) or not (ids := wordless(survey)):
        return ""
    return (
        f" But {len(ids)} of its items have no wording: replies can be scored against it "
        "(experiments.score_replies), no model can be asked."
    )


def _listed(what: str, names: set[str], most: int = 8) -> str:
    """Such as "3 topics (a, b, c)"."""
    many = f"{len(names)} {what if len(names) == 1 else _PLURAL[what]}"
    some = sorted(names)[:most] + (["..."] if len(names) > most else [])
    return f"{many} ({', '.join(some)})" if names else f"no {what}"
