"""Readers of real survey files: one format a file, one front door.

`read_survey(path)` recognises the format by what is in the file. Questionnaires with answers by
country come back as an `Survey`, questions with one right answer as a `ChoiceTest`. Whatever
is wrong with a file is one UserError that names file, row and column.

    wvs                    World Values Survey 7, .csv, .sav or .dta
    culturespa             the folder that CultureSPA was released with
    opinion-qa             GlobalOpinionQA
    cultural-bench-easy    CulturalBench, four options
    cultural-bench-hard    CulturalBench, four true-or-false rows a question
    multiple-choice        MMLU-style CSV or JSON lines
    own-json, own-csv      an instrument of the user's own
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.formats.cultural_bench import (
    EASY_COLUMNS,
    HARD_COLUMNS,
    read_cultural_bench_easy,
    read_cultural_bench_hard,
)  # fmt: skip
from jaxalign.surveys.formats.files import DELIMITERS, bad, check_encoding, header_of, shown
from jaxalign.surveys.formats.multiple_choice import ChoiceTest, is_headerless, read_multiple_choice
from jaxalign.surveys.formats.opinion_qa import COLUMNS as OPINION_QA_COLUMNS
from jaxalign.surveys.formats.opinion_qa import read_opinion_qa
from jaxalign.surveys.formats.own import COLUMNS as OWN_COLUMNS
from jaxalign.surveys.formats.own import read_own_csv, read_own_json
from jaxalign.surveys.formats.wvs import is_wvs_header, read_wvs
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.wording import check_wording

__all__ = [
    "ChoiceTest", "Format", "read_answered", "read_questionnaire", "read_survey",
    "read_with_shares", "recognise",
]  # fmt: skip

Format = Literal[
    "auto", "wvs", "culturespa", "opinion-qa", "cultural-bench-easy", "cultural-bench-hard",
    "multiple-choice", "own-json", "own-csv",
]  # fmt: skip

_START_BYTES = 1 << 20  # enough for any header
_BY_COLUMNS: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("opinion-qa", OPINION_QA_COLUMNS),
    ("cultural-bench-easy", EASY_COLUMNS),
    ("cultural-bench-hard", HARD_COLUMNS),
    ("own-csv", OWN_COLUMNS),
    ("multiple-choice", ("question", "A", "B", "answer")),
)


def read_survey(path: Path | str, format: Format = "auto", **options: Any) -> Survey | ChoiceTest:
    """Whatever survey or test is in `path`; `options` go to the format's own reader."""
    path = Path(path)
    if format not in get_args(Format):
        raise bad(path, f"format={shown(format)}; one of {', '.join(get_args(Format))}")
    return _readers()[recognise(path) if format == "auto" else format](path, **options)


def read_with_shares(
    path: Path | str, distributions: Path | None, option: str = "--distributions"
) -> Survey | ChoiceTest:
    """What is in `path`; of a CSV of one's own, countries' answers come from `distributions`, which
    a refusal calls `option`."""
    if distributions is None:
        return read_survey(path)
    if (format := recognise(path)) != "own-csv":
        raise UserError(
            f"{option} {distributions}: goes with a CSV of your own; {path} is {format}, "
            "which holds countries' answers itself; leave the option out"
        )
    return read_survey(path, format, distributions=distributions)


def read_questionnaire(path: Path, option: str) -> Survey:
    """A questionnaire whose items a model can be asked. UserError that names `option` else."""
    return _asked(read_survey(path), f"{option} {path}")


def read_answered(path: Path, option: str, shares: Path | None, shares_option: str) -> Survey:
    """A questionnaire that a model can be asked and that says how countries answered it, for a CSV
    of one's own in `shares`. UserError that names the options else."""
    survey = read_with_shares(path, shares, shares_option)
    if not isinstance(survey, Survey) or not survey.distributions:
        raise UserError(
            f"{option} {path}: it does not say how any country answered; give a survey that does, "
            f"or with a CSV of your own {shares_option}"
        )
    return _asked(survey, f"{option} {path}")


def _asked(survey: Survey | ChoiceTest, where: str) -> Survey:
    if not isinstance(survey, Survey):
        raise UserError(f"{where}: questions with one right answer; give a questionnaire")
    check_wording(survey, where)
    return survey


def recognise(path: Path | str) -> Format:
    """The format of a file or folder. Raises UserError where it is none that is known."""
    path = Path(path)
    if path.is_dir():
        if culturespa.is_folder(path):
            return "culturespa"
        raise bad(path, f"a folder without {culturespa.QUESTIONS}; name a file")
    if path.suffix.lower() in (".sav", ".dta"):
        return "wvs"
    start = _start(path)
    if start.lstrip().startswith(("{", "[")):
        is_test = _is_json_lines(path, start) or _is_json_list_of_answers(start)
        return "multiple-choice" if is_test else "own-json"
    headers = [header_of(start, delimiter) for delimiter in DELIMITERS]
    for header in headers:
        if is_wvs_header(header):
            return "wvs"
        for format, columns in _BY_COLUMNS:
            if set(columns) <= set(header):
                return format
    if path.suffix.lower() == ".json":
        return "own-json"
    if is_headerless(start):
        return "multiple-choice"
    header = ", ".join(max(headers, key=len))
    raise bad(path, f"the format is not recognised: the first row reads {shown(header)}; name it "
              f"(--format), one of {', '.join(get_args(Format)[1:])}")  # fmt: skip


def _readers() -> dict[Format, Callable[..., Survey | ChoiceTest]]:
    return {
        "wvs": read_wvs,
        "culturespa": culturespa.read,
        "opinion-qa": read_opinion_qa,
        "cultural-bench-easy": read_cultural_bench_easy,
        "cultural-bench-hard": read_cultural_bench_hard,
        "multiple-choice": read_multiple_choice,
        "own-json": read_own_json,
        "own-csv": read_own_csv,
    }


def _start(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except (OSError, ValueError) as error:
        raise bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not start.strip():
        raise bad(path, "the file is empty")
    check_encoding(path, start)
    return start.decode("utf-8-sig", errors="replace")


def _is_json_list_of_answers(start: str) -> bool:
    return start.lstrip().startswith("[") and '"answer"' in start


def _is_json_lines(path: Path, start: str) -> bool:
    if path.suffix.lower() == ".jsonl":
        return True
    try:
        fields = json.loads(start.lstrip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and "question" in fields
