"""What the published filters do to a file of generated questions.

    python -m experiments.filter_questions generated_questions_topic_3_from_all_seed.json
    python -m experiments.filter_questions generated.json --seeds culturespa_data/ --out kept.json

Seconds on any machine. The file is a JSON list as CultureSPA (Xu et al. 2025, arXiv 2410.12971)
released them. Its topic 3 (economic values) goes from 1,000 questions to 998 without duplicates and
984 without undefined scales; 934 lose option numbers. All 13 files together: 13,000, 12,891,
12,860, 12,847, as published. The last filter, repeated options, is this package's own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.commands.write_questions import show_filters
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.methods.culturespa.filters import apply_filters
from jaxalign.methods.culturespa.parsing import Written, from_item, read_generated
from jaxalign.methods.culturespa.questions import make_instrument
from jaxalign.runs import write_json
from jaxalign.runs.console import print_table
from jaxalign.surveys.formats import read_any
from jaxalign.surveys.survey import Survey, to_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Filter generated questions and say what each filter removed."""

    file: Annotated[Path, tyro.conf.Positional]
    """A JSON list of questions in CultureSPA's released form."""
    seeds: Path | None = None
    """Survey whose questions were the seeds: questions equal to one of them are duplicates."""
    out: Path | None = None
    """Write the questions that are left to this file, as a survey."""


def run(config: Config) -> None:
    """Print what each filter removed and changed."""
    check_new_file(config.out, "out")
    seeds = read_seeds(config.seeds)
    written, refused = read_generated(config.file)
    if refused:
        print_table("Refused entries", ("reason", "entries"), list(map(list, refused.items())))
    kept, counts = apply_filters(written, seeds)
    show_filters(len(written), counts)
    if config.out is not None:
        survey = make_instrument(kept, config.file.stem, f"{config.file.name}, filtered")
        write_json(config.out, to_json(survey))
        print(f"{len(survey.items)} questions in {config.out}")


def read_seeds(path: Path | None) -> list[Written]:
    """The questions of a survey. UserError where `path` holds none."""
    if path is None:
        return []
    survey = read_any(path)
    if not isinstance(survey, Survey):
        raise UserError(f"--seeds {path}: a test with right answers; give a survey")
    return list(map(from_item, survey.items))
