"""Write the report of a finished run anew, from what its directory holds.

    jaxalign report runs/soft_prompt-20261130-120000

For runs whose report was made by an older version, or was lost. Nothing is computed but the pages
and their pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from jaxalign.commands.reports import cultural_bench_report, soft_prompt_report
from jaxalign.commands.reports.ask import ask_report
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.sweep import sweep_report
from jaxalign.commands.resume import command_of, read_settings, run_folder
from jaxalign.commands.sweep.status import CELLS
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import read_object


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Write the report of a finished run anew."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""


def report(settings: ReportSettings) -> None:
    """Write the report of a run, and say where it is."""
    for path in write_report_of(settings.run):
        print(path)


def write_report_of(run: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and their pictures into a finished run's directory.

    Args:
        run: The directory, or a file in it.

    Returns:
        The paths of the two reports.

    Raises:
        UserError: There is no run, it is not finished, or runs of its command have no report.
    """
    run = run_folder(run)
    settings = read_settings(run)
    command = "sweep" if (run / CELLS).exists() else command_of(run, settings)
    if command not in _WRITERS:
        raise UserError(
            f"`run` {run}: runs of {command} have no report; those of {', '.join(_WRITERS)} have"
        )
    if not (run / "result.json").exists():
        how = "the command that began it" if command == "sweep" else f"jaxalign resume {run}"
        raise UserError(f"`run` {run}: is not finished; continue it with {how}")
    result = read_object(run / "result.json")
    try:
        return _WRITERS[command](result, run)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"`run` {run}: its result.json is of another version ({error}); run it again"
        ) from error


def _ask(result: Mapping[str, Any], run: Path) -> tuple[Path, Path]:
    # Answers that others are compared with have no analysis of their own.
    files = {key: run / "analyses" / key / "result.json" for key in result["rows"]}
    analyses = {key: read_object(path) for key, path in files.items() if path.exists()}
    return ask_report(result, analyses, run)


def _culturespa(result: Mapping[str, Any], run: Path) -> tuple[Path, Path]:
    write_plots(run, result)
    return write_culturespa_report(result, run)


_WRITERS: dict[str, Callable[[Mapping[str, Any], Path], tuple[Path, Path]]] = {
    "soft-prompt": soft_prompt_report,
    "culturespa": _culturespa,
    "ask": _ask,
    "cultural-bench": cultural_bench_report,
    "sweep": sweep_report,
}
