"""Finished runs, where a page takes its values from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.commands.resume import command_of
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import read_object
from jaxalign.report.document import Cell
from jaxalign.runs import recorded_run

ModelName = Literal["pocket", "smollm2"]
MODELS = {"pocket": "pocket model", "smollm2": "SmolLM2-135M"}
_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        path: Its directory.
        command: The command that made it.
        model: The model, as a page calls it.
        result: The content of its `result.json`.
    """

    path: Path
    command: str
    model: str
    result: Mapping[str, Any]

    @property
    def page(self) -> str:
        """The file that shows the run: its report, or else its result."""
        return "report.html" if (self.path / "report.html").exists() else "result.json"

    def study(self, name: str) -> dict[str, Any]:
        """Return what a study left in the run's directory; {} if it has not been made."""
        return read_object(self.path / name) if (self.path / name).exists() else {}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A value of ours.

    Attributes:
        cell: The value.
        file: The file in the run's directory that has it; "" for the run's own page.
    """

    cell: Cell
    file: str = ""


def setup_cells(settings: Mapping[str, Any]) -> dict[str, Measured]:
    """Return settings as they were given, not rounded; those that are None are left out."""
    known = {key: value for key, value in settings.items() if value is not None}
    return {k: Measured(f"{v:g}" if isinstance(v, float) else v) for k, v in known.items()}


def find_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Return the finished runs in some folders, each a run or a folder of runs.

    Raises:
        UserError: A folder is not there, or holds no finished run.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"`runs` {folder}: no such folder")
        results = [
            p for depth in ("", "*/", "*/*/") for p in sorted(folder.glob(f"{depth}result.json"))
        ]
        runs = [run for path in results if (run := read_run(path.parent)) is not None]
        if not runs:
            raise UserError(
                f"`runs` {folder}: holds no finished run; leave `runs` out, and runs are made"
            )
        found += runs
    return list({run.path.resolve(): run for run in found}.values())


def read_run(path: Path) -> FinishedRun | None:
    """Return a finished run; None for a quick look, and for folders such as this command's page."""
    try:
        _, settings = recorded_run(path)
        command = command_of(path, settings)
        result = read_object(path / "result.json")
        if settings.get("limit") is not None:
            _log.info(f"{path}: cut short by limit {settings['limit']}, and left out")
            return None
    except UserError:
        return None
    return FinishedRun(path, command, model_label(settings.get("model")), result)


def model_label(model: object) -> str:
    """Return what a page calls the model of a run, given its setting `model`."""
    if model is None:
        return MODELS["pocket"]
    name = str(model).rstrip("/").rsplit("/", 1)[-1]
    return MODELS["smollm2"] if "smollm2" in name.lower() else name
