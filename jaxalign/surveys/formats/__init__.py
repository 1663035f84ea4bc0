"""Read survey files of any known format: one module a format, one front door.

`read_survey(path)` recognises the format by what is in the file. Whatever is wrong with a file is
one UserError that names file, row and column.

    wvs                    World Values Survey 7, .csv, .sav or .dta
    culturespa             the folder that CultureSPA was released with
    opinion-qa             GlobalOpinionQA
    cultural-bench-easy    CulturalBench, four options
    cultural-bench-hard    CulturalBench, four true-or-false rows a question
    multiple-choice        MMLU-style CSV, JSON or parquet
    own-json, own-csv      a survey of the user's own

To add a format, add a module to this package: see `jaxalign.surveys.formats.base.Format`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.base import FORMATS
from jaxalign.surveys.formats.files import FileStart, bad, read_start, shown
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.wording import add_wording

__all__ = ["FORMATS", "read_answered", "read_any", "read_questionnaire", "read_survey", "recognise"]


def read_survey(
    path: Path | str,
    distributions: Path | str | None = None,
    *,
    format: str = "auto",
    **options: Any,
) -> Survey:
    """Read a survey from a file of any known format.

    Args:
        path: The file, or the folder that CultureSPA was released with.
        distributions: For a CSV of your own: the CSV with how groups answered (columns `country`,
            `item`, `code` and `share`). Other formats hold this themselves.
        format: Name of the format; "auto" recognises it by the file's content.
        options: Further arguments of the format's own reader, such as `min_respondents` of the
            World Values Survey.

    Returns:
        The survey, with how each group answered where the file says so.

    Raises:
        UserError: The file cannot be read, its format is unknown, or something in it is wrong; the
            message names file, row and column. Also for tests with one right answer a question,
            which `jaxalign.surveys.formats.read_any` reads.

    Examples:
        >>> from pathlib import Path
        >>> from jaxalign.surveys import read_survey
        >>> rows = ["id,text,options", "q1,How often do you read?,1=never|2=sometimes|3=often"]
        >>> _ = Path("mine.csv").write_text("\\n".join(rows))
        >>> shares = ["country,item,code,share", "readers,q1,2,0.25", "readers,q1,3,0.75"]
        >>> _ = Path("shares.csv").write_text("\\n".join(shares))
        >>> survey = read_survey("mine.csv", "shares.csv")
        >>> survey.items[0].options, survey.distributions["readers"]["q1"]
        (('never', 'sometimes', 'often'), (0.0, 0.25, 0.75))
    """
    return _questionnaire(read_any(path, format, distributions, **options), str(path))


def read_any(
    path: Path | str,
    format: str = "auto",
    distributions: Path | str | None = None,
    *,
    parameter: str = "distributions",
    **options: Any,
) -> Survey | ChoiceTest:
    """Read the survey, or the test with right answers, in a file of any known format.

    Args:
        path: The file or folder.
        format: Name of the format; "auto" recognises it by the file's content.
        distributions: As for `read_survey`.
        parameter: What messages call `distributions`.
        options: Further arguments of the format's own reader.

    Raises:
        UserError: As for `read_survey`.
    """
    name, options = choose_format(path, format, distributions, parameter, options)
    return FORMATS[name]().read(Path(path), **options)


def choose_format(
    path: Path | str,
    format: str,
    distributions: Path | str | None,
    parameter: str,
    options: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Return the name of the format to read with, and all options of its reader.

    Raises:
        UserError: The format is unknown, or takes no `distributions` where some are given.
    """
    name = recognise(path) if format == "auto" else format
    if name not in FORMATS:
        known = ", ".join(["auto", *FORMATS.names()])
        raise bad(path, f"`format` {shown(format)}: choose from {known}")
    if distributions is None:
        return name, options
    if not FORMATS[name].takes_distributions:
        raise UserError(
            f"`{parameter}` {distributions}: goes with a CSV of your own; {path} is {name}, "
            "which holds groups' answers itself; leave the option out"
        )
    return name, {**options, "distributions": Path(distributions)}


def recognise(path: Path | str) -> str:
    """Return the name of the format of a file or folder.

    Raises:
        UserError: The file cannot be read, or no format, or more than one, recognises it.
    """
    path = Path(path)
    start = FileStart(path)
    for fallback in (False, True):
        matches = [
            name
            for name in FORMATS.names()
            if FORMATS[name].fallback == fallback and FORMATS[name]().recognises(start)
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise bad(path, f"may be {' or '.join(matches)}; choose one with `format`")
    if path.is_dir():
        raise bad(path, "a folder without the files of a known format; name a file")
    read_start(path)  # raises the reason where the file has no readable text at all
    header = ", ".join(max(start.headers, key=len))
    raise bad(
        path,
        f"the format is not recognised: the first row reads {shown(header)}; name it with "
        f"`format`, one of {', '.join(FORMATS.names())}",
    )


def read_questionnaire(path: Path | str, parameter: str) -> Survey:
    """Read a survey whose items a model can be asked.

    Args:
        path: The file or folder.
        parameter: What messages call `path`.

    Raises:
        UserError: As for `read_survey`, and if items have no wording.
    """
    where = f"`{parameter}` {path}"
    return _worded(_questionnaire(read_any(path), where), where)


def read_answered(
    path: Path | str,
    parameter: str,
    distributions: Path | str | None = None,
    distributions_parameter: str = "distributions",
    *,
    worded: bool = True,
    wording: Path | str | None = None,
) -> Survey:
    """Read a survey that says how groups of people answered it.

    Args:
        path: The file or folder.
        parameter: What messages call `path`.
        distributions: As for `read_survey`.
        distributions_parameter: What messages call `distributions`.
        worded: Whether a model is to be asked, so that every item needs its wording.
        wording: A file or folder that words the items, joined by id; see `add_wording`.

    Raises:
        UserError: As for `read_survey`; also if the survey does not say how anybody answered, or
            if items have no wording where they need it.
    """
    where = f"`{parameter}` {path}"
    survey = read_any(path, distributions=distributions, parameter=distributions_parameter)
    if not isinstance(survey, Survey) or not survey.distributions:
        raise UserError(
            f"{where}: it does not say how any country answered; give a survey that does, "
            f"or with a CSV of your own `{distributions_parameter}`"
        )
    if wording is not None:
        survey = add_wording(survey, read_questionnaire(wording, "wording"))
    return _worded(survey, where) if worded else survey


def _questionnaire(survey: Survey | ChoiceTest, where: str) -> Survey:
    if not isinstance(survey, Survey):
        raise UserError(f"{where}: questions with one right answer; give a questionnaire")
    return survey


def _worded(survey: Survey, where: str) -> Survey:
    """Return `survey`. Raise UserError unless a model can be asked every item."""
    if ids := survey.items_without_wording():
        raise UserError(
            f"{where}: {len(ids)} of {len(survey.items)} items have no wording, such as "
            f"{ids[0]!r}, so there is nothing to ask a model (World Values Survey files hold codes "
            "alone); give CultureSPA's folder, or your own JSON or CSV that has the questions"
        )
    return survey
