"""List the runs in a folder: what each is, when it began, and how far it has come."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from jaxalign.commands.resume import command_of, read_settings
from jaxalign.core.errors import UserError
from jaxalign.runs.console import print_table
from jaxalign.runs.run import CONFIG

_RESULT = "result.json"
_METRICS = "metrics.jsonl"
_DONE = "done"
_CELLS = "cells.jsonl"  # of a sweep


@dataclasses.dataclass(frozen=True)
class ListSettings:
    """List the runs in a folder."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder whose folders are runs."""


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """What is known of a run from its directory.

    Attributes:
        name: Name of the directory.
        command: The command that began it; "?" where none is known that has its settings.
        model: The model as it was given; "pocket" for the one that ships with the package.
        started: When it began, in UTC.
        state: "done", how far its metrics go, or "started"; of a quick look, its limit too.
    """

    name: str
    command: str
    model: str
    started: str
    state: str


def show(settings: ListSettings) -> None:
    """Print a table of the runs, the latest first."""
    runs = list_runs(settings.folder)
    if not runs:
        print(f"no runs in {settings.folder}")
        return
    rows = [dataclasses.astuple(run) for run in runs]
    print_table(f"Runs in {settings.folder}", ("run", "command", "model", "began", "state"), rows)
    if not all(run.state.startswith(_DONE) for run in runs):
        print(f"continue one with: jaxalign resume {settings.folder}/NAME")


def list_runs(folder: Path) -> list[ListedRun]:
    """Return the runs in a folder, the latest first; folders that hold none are passed over.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"`folder` {folder}: no such folder")
    found = [_listed(path.parent) for path in folder.glob(f"*/{CONFIG}")]
    return sorted((run for run in found if run is not None), key=_began, reverse=True)


def _began(run: ListedRun) -> str:
    return run.started


def _listed(out: Path) -> ListedRun | None:
    try:
        settings = read_settings(out)
        started = json.loads((out / CONFIG).read_text("utf-8"))["started"]
    except UserError:  # another program's config.json
        return None
    try:
        command = "sweep" if (out / _CELLS).exists() else command_of(out, settings)
    except UserError:
        command = "?"
    model = settings.get("model")
    return ListedRun(
        name=out.name,
        command=command,
        model="pocket" if model is None else str(model),
        started=str(started).replace("T", " ").removesuffix("Z"),
        state=_state(out, settings.get("limit")),
    )


def _state(out: Path, limit: int | None) -> str:
    if (out / _RESULT).exists():
        return _DONE if limit is None else f"{_DONE} (limit {limit})"
    try:
        last = (out / _METRICS).read_text("utf-8").splitlines()[-1]
        step, value = next(iter(json.loads(last).items()))
        return f"{step} {value}"
    except (OSError, ValueError, IndexError, StopIteration, AttributeError):
        return "started"
