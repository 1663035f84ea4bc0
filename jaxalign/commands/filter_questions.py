"""Apply the published filters to a file of generated questions.

    jaxalign filter-questions generated_questions_topic_3_from_all_seed.json
    jaxalign filter-questions generated.json --seeds culturespa_data/ --out kept.json

Takes seconds on any machine. The file is a JSON list as CultureSPA (Xu et al. 2025, arXiv
2410.12971) released them. Its topic 3 (economic values) goes from 1,000 questions to 998 without
duplicates and 984 without undefined scales; 934 lose option numbers. All 13 files together: 13,000,
12,891, 12,860, 12,847, as published. The last filter, repeated options, is this package's own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.commands.write_questions import show_filters
from jaxalign.core.files import check_new_file, write_json
from jaxalign.methods.culturespa import Question, filter_questions, read_questions, to_survey
from jaxalign.methods.culturespa.questions import from_item
from jaxalign.runs.console import print_table
from jaxalign.surveys.formats import read_questionnaire
from jaxalign.surveys.survey import to_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """Filter generated questions and show what each filter removed."""

    file: Annotated[Path, tyro.conf.Positional]
    """JSON list of questions in the form that CultureSPA released."""
    seeds: Path | None = None
    """Survey whose questions were the examples; questions equal to one of them are duplicates."""
    out: Path | None = None
    """File to write the questions that are left to, as a survey."""


def run(settings: Settings) -> None:
    """Filter the questions of a file, write what is left, and print the counts."""
    check_new_file(settings.out, "out")
    seeds = read_seeds(settings.seeds)
    questions, refused = read_questions(settings.file)
    filtered = filter_questions(questions, seeds)
    if settings.out is not None:
        source = f"{settings.file.name}, filtered"
        survey = to_survey(filtered.questions, settings.file.stem, source)
        write_json(settings.out, to_json(survey))
    if refused:
        print_table("Refused entries", ("reason", "entries"), list(map(list, refused.items())))
    show_filters(len(questions), filtered.counts)
    if settings.out is not None:
        print(f"{len(survey.items)} questions in {settings.out}")


def read_seeds(path: Path | None) -> list[Question]:
    """Return the questions of a survey. Raises UserError if `path` is not one."""
    if path is None:
        return []
    return list(map(from_item, read_questionnaire(path, "seeds").items))
