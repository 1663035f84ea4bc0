"""What a paper reports, beside what this package measures: `jaxalign reproduce`.

    jaxalign reproduce soft-prompt-de                       # makes the runs, minutes to hours
    jaxalign reproduce culturespa --runs runs/ --data CultureSPA/

Writes a page as Markdown and as one HTML file: table by table and figure by figure, the published
number or "not published", and for each model what our runs measured, with a link to the run. What
is public is computed again and compared: the released replies of 18 countries (66.61 with the
country named, 62.36 without), the released questions and their filters, and the published adapter.
In a checkout, `python -m experiments.reproduce` does the same, and makes the studies of a run too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tyro

from jaxalign.commands.reproduce.jobs import Study, make_runs
from jaxalign.commands.reproduce.page import Counts, write_page
from jaxalign.commands.reproduce.published import PaperName, read_paper
from jaxalign.commands.reproduce.replay import released_tables, replay
from jaxalign.commands.reproduce.runs import MODELS, ModelName, find_runs
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path, write_json
from jaxalign.runs.console import print_table

DATA = "JAXALIGN_CULTURESPA_DATA"


@dataclasses.dataclass(frozen=True)
class ReproduceSettings:
    """Set what a paper reports beside what this package measures."""

    continues_itself: ClassVar[bool] = True  # the same command again

    paper: tyro.conf.Positional[PaperName]
    """The paper."""
    runs: tuple[Path, ...] = ()
    """Finished runs, or folders of them, to take values from; of two runs of a model, the first
    that has a value counts. Nothing is run then. Default: the runs are made, in directories of the
    output directory; finished ones are kept, and interrupted ones continue."""
    models: tuple[ModelName, ...] = ("pocket", "smollm2")
    """Models that have a column, and of which runs are made."""
    data: Path | None = None
    """Folder with the files that CultureSPA released, or a clone of its repository; default: the
    folder that the environment variable JAXALIGN_CULTURESPA_DATA names, if there is one. Runs that
    are made then also ask what 18 countries were asked."""
    adapter: Path | None = None
    """Folder of the published adapter; default: one below the folder of the released files."""
    out: Path | None = None
    """Directory of the page; default: runs/reproduce-PAPER."""
    quiet: bool = False
    """Whether to hide progress bars."""


def reproduce(settings: ReproduceSettings) -> None:
    """Make or find the runs of a paper, write its page, and print the checks."""
    compare_with_paper(settings, {})


def compare_with_paper(settings: ReproduceSettings, studies: Mapping[str, Study]) -> Counts:
    """Find or make the runs, compute again what is public, write the page, and print the checks.

    Args:
        settings: The settings.
        studies: Studies of a run that was made, by the file that they leave in it.

    Returns:
        How many cells the page has.
    """
    paper = read_paper(settings.paper)
    out = settings.out or Path("runs") / f"reproduce-{settings.paper}"
    check_path(out, "out")
    if (out / "config.json").exists():
        raise UserError(f"`out` {out}: is the directory of a run; give another")
    data = settings.data
    if data is None and os.environ.get(DATA):
        data = Path(os.environ[DATA])
    runs = find_runs(settings.runs) if settings.runs else []
    replayed = replay(paper, data, settings.adapter)
    if not settings.runs:
        tables = None if data is None else released_tables(data)
        runs = make_runs(settings.paper, settings.models, out, studies, tables, settings.quiet)
    models = [MODELS[name] for name in settings.models]
    pages, counts = write_page(settings.paper, paper, runs, replayed, out, models)
    checks = {
        r.check.key: {
            "expected": r.check.expected,
            "tolerance": r.check.tolerance,
            "found": r.value,
            "within": r.within,
        }
        for r in replayed
    }
    write_json(out / "result.json", {"checks": checks, "cells": dataclasses.asdict(counts)})
    words = {True: "within", False: "NOT WITHIN", None: "files missing"}
    rows = [
        [
            r.check.label,
            f"{r.check.expected:g}",
            "–" if r.value is None else f"{r.value:.4f}",
            f"{r.check.tolerance:g}",
            words[r.within],
        ]
        for r in replayed
    ]
    print_table("What is public, computed again", ["", "expected", "found", "tolerance", ""], rows)
    print(f"{counts.measured} cells measured, {counts.missing} name the command that measures them")
    for page in pages:
        print(page)
    return counts
