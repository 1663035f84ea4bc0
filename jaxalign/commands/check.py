"""Say whether a survey file can be used, and what is wrong with it.

    jaxalign check --template my_survey.csv                # writes one to begin with
    jaxalign check my_survey.json
    jaxalign check my_survey.csv --distributions my_shares.csv
    jaxalign check WVS_Cross-National_Wave_7_csv_v6_0.csv --wording culturespa_data/ --by sex age

This takes seconds on any machine. Every problem of a survey of your own is reported, with line and
column (JSON) or row and column (CSV); of other formats the first one. The exit code is 0 if the
file is right and 2 if something is wrong. `jaxalign.surveys.formats` lists the formats.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.core.errors import UserError
from jaxalign.surveys import check_survey
from jaxalign.surveys.formats.own import write_template
from jaxalign.surveys.options import SurveyOptions

_MOST_SHOWN = 50  # problems


@dataclasses.dataclass(frozen=True)
class Config(SurveyOptions):
    """Say whether a survey file can be used, and what is wrong with it."""

    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE]")] = None
    """Survey file, or the folder that CultureSPA was released with."""
    template: Path | None = None
    """File to write a survey of your own to begin with, as CSV; how countries answered it is
    written beside it. Nothing is checked then."""
    distributions: Path | None = None
    """For own-csv: CSV with the columns country, item, code and share."""


def run(config: Config) -> None:
    """Print a summary. Raise UserError if something is wrong."""
    if config.template is not None:
        survey, answers = write_template(config.template)
        print(f"{survey}: one item a row; {answers}: how countries answered, one share a row")
        print(f"edit both, then: jaxalign check {survey} --distributions {answers}")
        return
    if config.file is None:
        raise UserError("`file`: name a survey file, or give `template` to write one to begin with")
    check = check_survey(config.file, config.distributions, options=config)
    if check.ok:
        print(check)
        return
    if len(check.problems) == 1:
        raise UserError(check.problems[0])
    for problem in check.problems[:_MOST_SHOWN]:
        print(problem, file=sys.stderr)
    if len(check.problems) > _MOST_SHOWN:
        print(f"... and {len(check.problems) - _MOST_SHOWN} more", file=sys.stderr)
    raise UserError(f"{config.file}: wrong in {len(check.problems)} places")
