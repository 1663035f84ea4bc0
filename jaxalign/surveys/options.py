"""What a command may be told about the survey files that it reads, besides their paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.groups import variables_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyOptions:
    """How survey files are read. The settings of every command that takes a survey extend this."""

    wording: Path | None = None
    """Wording of the items of a World Values Survey file, which holds codes alone: a CultureSPA
    data folder, or a JSON or CSV file of your own with the same item ids."""
    by: tuple[str, ...] | None = None
    """Variables that divide the countries of a World Values Survey file into groups: sex, age,
    age6, education, income, settlement, marital, region, or the columns of its codebook, such as
    Q260 or X003R2. Groups are called USA:female:30-49 and the like."""
    min_respondents: int | None = None
    """Fewest respondents of a group, and fewest answers of a group to an item, in a World Values
    Survey file; default: 50. What has fewer is left out by name."""
    format: str | None = None
    """Name of the survey file's format, such as wvs or own-csv; default: it is recognised by its
    content."""

    def __post_init__(self) -> None:
        """Take a string for a path, and a path for a name, as Python programs give them."""
        take_as_declared(self)

    def survey_options(self) -> dict[str, Any]:
        """Return these options by name, for the settings of another command."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(SurveyOptions)}


def take_as_declared(settings: Any) -> None:
    """Turn strings into paths, and paths into strings, where a field of settings wants the other.

    Args:
        settings: A frozen dataclass whose annotations are texts; its fields are replaced.
    """
    for field in dataclasses.fields(settings):
        kind, value = str(field.type), getattr(settings, field.name)
        if kind.startswith("Path") and isinstance(value, str):
            object.__setattr__(settings, field.name, Path(value))
        elif kind.startswith("str") and isinstance(value, Path):
            object.__setattr__(settings, field.name, str(value))


def check_options(options: SurveyOptions, given: Mapping[str, bool]) -> None:
    """Raise UserError for options that cannot be, or that would be ignored.

    Args:
        options: The options.
        given: The parameters that name survey files, and whether each names one.
    """
    if options.min_respondents is not None and options.min_respondents < 1:
        raise UserError(f"`min_respondents` {options.min_respondents}: give at least 1")
    variables_of(options.by or ())
    for name in ("wording", "by", "min_respondents", "format"):
        value = getattr(options, name)
        if value not in (None, ()) and not any(given.values()):
            value = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(f"`{name}` {value}: goes with a `{next(iter(given))}` of your own")


NO_OPTIONS = SurveyOptions()
