"""Say whether a survey file can be used, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats import FORMATS, borrow_wording, choose_format
from jaxalign.surveys.groups import read_group
from jaxalign.surveys.options import NO_OPTIONS, SurveyOptions
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

_MOST_NAMES = 8  # topics or groups that a summary lists


@dataclasses.dataclass(frozen=True)
class SurveyCheck:
    """What checking a survey file found.

    Attributes:
        path: The file or folder.
        format: Name of the format it was read as.
        problems: One line for everything that is wrong, with row and column where there are any.
        survey: The survey, or the test with right answers; None if there are problems.
    """

    path: Path
    format: str
    problems: tuple[str, ...]
    survey: Survey | ChoiceTest | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the file."""
        return self.survey is not None

    @property
    def can_be_asked(self) -> bool:
        """Whether a model can be asked every item."""
        if isinstance(self.survey, Survey):
            return not self.survey.items_without_wording()
        return self.survey is not None

    @property
    def has_answers(self) -> bool:
        """Whether it says how groups of people answered."""
        return isinstance(self.survey, Survey) and bool(self.survey.distributions)

    def __str__(self) -> str:
        """Return a paragraph on what is in the file and lines on what is left out of it; or else a
        line for each problem."""
        if self.survey is None:
            return "\n".join(self.problems)
        return _summary(self.format, self.survey)


def check_survey(
    path: Path | str,
    distributions: Path | str | None = None,
    *,
    format: str = "auto",
    options: SurveyOptions = NO_OPTIONS,
) -> SurveyCheck:
    """Check a survey file, and find all that is wrong with it.

    Every problem of a survey of your own (JSON or CSV) is found; of other formats the first one.

    Args:
        path: The file, or the folder that CultureSPA was released with.
        distributions: For a CSV of your own: the CSV with how groups answered.
        format: Name of the format; "auto" recognises it by the file's content.
        options: The wording to borrow, and the groups to make.

    Raises:
        UserError: The format is not recognised, or takes no `distributions`.

    Examples:
        >>> from pathlib import Path
        >>> from jaxalign.surveys import check_survey
        >>> _ = Path("mine.csv").write_text("id,text,options\\nq1,,1=never|often\\n")
        >>> check = check_survey("mine.csv")
        >>> check.ok
        False
        >>> print(check)
        mine.csv, row 2, column 'text': the cell is empty
        mine.csv, row 2, column 'options': 'often' is not code=label with a whole number for a code
    """
    name, chosen = choose_format(path, format, distributions, "distributions", {}, options)
    try:
        problems, survey = FORMATS[name]().check(Path(path), **chosen)
        if survey is not None:
            survey = borrow_wording(survey, str(path), options)
        if isinstance(survey, Survey):
            option_table(survey)  # what reading allows and no command could count with
    except UserError as error:
        problems, survey = [str(error)], None
    return SurveyCheck(Path(path), name, tuple(problems), survey)


def _summary(format: str, survey: Survey | ChoiceTest) -> str:
    """Return one paragraph: items, scales, topics, groups and hash."""
    if isinstance(survey, ChoiceTest):
        kind = (
            f"{len(set(survey.groups))} questions with a right answer in {len(survey.items)} rows"
        )
        groups = {country for country in survey.countries if country}
    else:
        ordinal = sum(item.scale == "ordinal" for item in survey.items)
        kind = (
            f"{len(survey.items)} items ({ordinal} ordinal, {len(survey.items) - ordinal} nominal)"
        )
        groups = set(survey.distributions)
    within = any(read_group(name) is not None for name in groups)
    noun = ("group", "groups") if within else ("country", "countries")
    options = sorted({len(item.options) for item in survey.items})
    topics = {item.topic for item in survey.items if item.topic}
    return (
        f"{survey.name} ({format}): {kind}; {options[0]} to {options[-1]} options; "
        f"{_listed('topic', 'topics', topics)}; {_listed(*noun, groups)}; "
        f"sha256 {survey.sha256}. Nothing is wrong with it.{_note(survey)}"
    )


def _note(survey: Survey | ChoiceTest) -> str:
    """Return what the survey cannot be used for, then a line for each thing that is left out."""
    if isinstance(survey, ChoiceTest):
        return f" But {'; '.join(survey.notes)}." if survey.notes else ""
    text = ""
    if ids := survey.items_without_wording():
        text = (
            f" But {len(ids)} of its items have no wording: replies can be scored against it "
            "(jaxalign score), but no model can be asked."
        )
    if not survey.distributions:
        text += (
            " But it does not say how any country answered: a model can be asked, and there is "
            "nothing to compare its answers with."
        )
    return "\n- ".join([text, *survey.notes])


def _listed(singular: str, plural: str, names: set[str]) -> str:
    """Return such as "3 topics (a, b, c)"."""
    count = f"{len(names)} {singular if len(names) == 1 else plural}"
    first = sorted(names)[:_MOST_NAMES] + (["..."] if len(names) > _MOST_NAMES else [])
    return f"{count} ({', '.join(first)})" if names else f"no {singular}"
