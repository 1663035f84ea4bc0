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

import logging
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.base import FORMATS
from jaxalign.surveys.formats.files import FileStart, bad, read_start, shown
from jaxalign.surveys.options import NO_OPTIONS, SurveyOptions
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.wording import add_wording

_log = logging.getLogger("jaxalign")

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
    read = read_any(path, format, distributions, quiet=True, **options)
    return _questionnaire(read, str(path))


def read_any(
    path: Path | str,
    format: str = "auto",
    distributions: Path | str | None = None,
    *,
    parameter: str = "distributions",
    options: SurveyOptions = NO_OPTIONS,
    is_main: bool = True,
    quiet: bool = False,
    **reader_options: Any,
) -> Survey | ChoiceTest:
    """Read the survey, or the test with right answers, in a file of any known format.

    This is the one place where every command reads its surveys. What the file holds that is not in
    the survey is a note of the logger `jaxalign`.

    Args:
        path: The file or folder.
        format: Name of the format; "auto" recognises it by the file's content.
        distributions: As for `read_survey`.
        parameter: What messages call `distributions`.
        options: The wording to borrow, and the groups to make.
        is_main: Whether `options` are about this file above all. A second survey of the same
            command takes from them what it can use.
        quiet: Whether to keep the notes to the survey's own `notes`.
        reader_options: Further arguments of the format's own reader.

    Raises:
        UserError: As for `read_survey`; also for options that do not go with the file.
    """
    name, chosen = choose_format(
        path, format, distributions, parameter, reader_options, options, is_main
    )
    survey = FORMATS[name]().read(Path(path), **chosen)
    survey = borrow_wording(survey, str(path), options, is_main)
    if not quiet:
        for note in survey.notes:
            _log.info(f"{path}: {note}")
    return survey


def choose_format(
    path: Path | str,
    format: str,
    distributions: Path | str | None,
    parameter: str,
    reader_options: dict[str, Any],
    options: SurveyOptions = NO_OPTIONS,
    is_main: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Return the name of the format to read with, and all options of its reader.

    Raises:
        UserError: The format is unknown, or takes no `distributions`, `by` or `min_respondents`
            where some are given.
    """
    check_path(path, "survey")
    if options.format is not None and is_main:
        format = options.format
    name = recognise(path) if format == "auto" else format
    if name not in FORMATS:
        known = ", ".join(["auto", *FORMATS.names()])
        raise bad(path, f"`format` {shown(format)}: choose from {known}")
    reader_options = dict(reader_options)
    for option in ("by", "min_respondents"):
        value = getattr(options, option)
        if value is None or value == ():
            continue
        if FORMATS[name].has_respondents:
            reader_options[option] = value
        elif is_main:
            value = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(
                f"`{option}` {value}: goes with a file of respondents, as the World Values Survey "
                f"has; {path} is {name}; leave the option out"
            )
    if distributions is None:
        return name, reader_options
    if not FORMATS[name].takes_distributions:
        raise UserError(
            f"`{parameter}` {distributions}: goes with a CSV of your own; {path} is {name}, "
            "which holds groups' answers itself; leave the option out"
        )
    return name, {**reader_options, "distributions": Path(distributions)}


def borrow_wording(
    survey: Survey | ChoiceTest, path: str, options: SurveyOptions, is_main: bool = True
) -> Survey | ChoiceTest:
    """Return a survey with the wording that the options name, or as it is if they name none.

    Raises:
        UserError: The wording does not fit, or the file is a test with right answers.
    """
    if options.wording is None:
        return survey
    if not isinstance(survey, Survey):
        if not is_main:
            return survey
        raise UserError(
            f"`wording` {options.wording}: goes with a survey; {path} holds questions with one "
            "right answer; leave the option out"
        )
    if not is_main and not survey.items_without_wording():
        return survey
    words = _questionnaire(read_any(options.wording, quiet=True), f"`wording` {options.wording}")
    return add_wording(survey, _worded(words, f"`wording` {options.wording}"))


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


def read_questionnaire(
    path: Path | str,
    parameter: str,
    options: SurveyOptions = NO_OPTIONS,
    *,
    is_main: bool = True,
    quiet: bool = False,
) -> Survey:
    """Read a survey whose items a model can be asked.

    Args:
        path: The file or folder.
        parameter: What messages call `path`.
        options: As for `read_any`.
        is_main: As for `read_any`.
        quiet: As for `read_any`.

    Raises:
        UserError: As for `read_survey`, and if items have no wording.
    """
    where = f"`{parameter}` {path}"
    survey = read_any(path, options=options, is_main=is_main, quiet=quiet)
    return _worded(_questionnaire(survey, where), where)


def read_answered(
    path: Path | str,
    parameter: str,
    distributions: Path | str | None = None,
    distributions_parameter: str = "distributions",
    *,
    worded: bool = True,
    options: SurveyOptions = NO_OPTIONS,
    is_main: bool = True,
    quiet: bool = False,
) -> Survey:
    """Read a survey that says how groups of people answered it.

    Args:
        path: The file or folder.
        parameter: What messages call `path`.
        distributions: As for `read_survey`.
        distributions_parameter: What messages call `distributions`.
        worded: Whether a model is to be asked, so that every item needs its wording.
        options: As for `read_any`.
        is_main: As for `read_any`.
        quiet: As for `read_any`.

    Raises:
        UserError: As for `read_survey`; also if the survey does not say how anybody answered, or
            if items have no wording where they need it.
    """
    where = f"`{parameter}` {path}"
    survey = read_any(
        path,
        distributions=distributions,
        parameter=distributions_parameter,
        options=options,
        is_main=is_main,
        quiet=quiet,
    )
    survey = _questionnaire(survey, where)
    if not survey.distributions:
        raise UserError(
            f"{where}: it does not say how any country answered; give a survey that does, "
            f"or with a CSV of your own `{distributions_parameter}`"
        )
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
            "alone); give as `wording` CultureSPA's folder, or your own JSON or CSV that has the "
            "questions"
        )
    return survey
