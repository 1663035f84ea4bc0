"""Finished runs, where a page takes its values from, and the commands that make them."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxalign.commands import COMMANDS, load
from jaxalign.commands.reproduce.published import PaperName
from jaxalign.commands.resume import command_of
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import read_object
from jaxalign.lm.model import open_model
from jaxalign.report.document import Cell
from jaxalign.runs import recorded_run, with_flags

ModelName = Literal["pocket", "smollm2"]
MODELS = {"pocket": "pocket model", "smollm2": "SmolLM2-135M"}
Study = Callable[[Path], None]  # reads a run's directory and writes a file into it

_log = logging.getLogger("jaxalign")

# Countries of the second paper of which the simulated society has people.
_SIMULATED = "USA CAN BOL BRA GBR NLD DEU UKR CHN RUS IND THA NGA AUS NZL"
_NOT_SIMULATED = ("KEN", "ETH", "ZWE")
_ALL = f"{_SIMULATED} {' '.join(_NOT_SIMULATED)}"
# What makes the runs of a paper. SmolLM2's are as small as they can be and still say something; how
# long CultureSPA takes with it, and with 15 countries, has not been measured.
JOBS: Mapping[PaperName, Mapping[ModelName, tuple[str, str]]] = {
    "soft-prompt-de": {
        "pocket": ("soft-prompt", "--countries SAU USA CHN IND"),
        "smollm2": (
            "soft-prompt",
            "--model smollm2 --countries SAU USA CHN IND --population 6 --generations 8 "
            "--save-every 2 --gradient-steps 6 --gradient-rate 0.02 --presentations A",
        ),
    },
    "culturespa": {
        "pocket": ("culturespa", f"--countries {_SIMULATED} --seeds 2 --prompting True"),
        "smollm2": (
            "culturespa",
            "--model smollm2 --countries USA CHN BRA NGA --per-topic 2 --presentations A "
            "--prompting False",
        ),
    },
}
# Files that studies of a run leave in its directory, and the studies.
STUDIES = {
    "matrices.json": "experiments.culturespa.studies.matrices",
    "fractions.json": "experiments.culturespa.studies.fractions",
    "prompting.json": "experiments.culturespa.prompting",
}
# What the rows of a table are taken from, if that is no run of the paper's own command.
_BY_STUDY = {"correlations": "matrices.json", "quantity": "fractions.json"}


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
        runs = [run for path in results if (run := _read_run(path.parent)) is not None]
        if not runs:
            raise UserError(
                f"`runs` {folder}: holds no finished run; leave `runs` out, and runs are made"
            )
        found += runs
    return list({run.path.resolve(): run for run in found}.values())


def _read_run(path: Path) -> FinishedRun | None:
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


def make_runs(
    paper: PaperName,
    models: Sequence[ModelName],
    out: Path,
    studies: Mapping[str, Study],
    quiet: bool = False,
) -> list[FinishedRun]:
    """Make the runs of a paper that are not finished, then the studies of them.

    Args:
        paper: The paper.
        models: The models.
        out: Folder in which each run has a directory, called after its model.
        studies: Studies by the file that they leave in a run.
        quiet: Whether to hide progress bars.

    Raises:
        UserError: A model is missing, before anything is run; or a run fails.
    """
    for model in models:  # before the long work
        open_model(None if model == "pocket" else model)
    runs = []
    for model in models:
        folder = out / model
        if not (folder / "result.json").exists():
            command, arguments = JOBS[paper][model]
            words = [*shlex.split(arguments), "--out", str(folder)]
            words += ["--resume"] * (folder / "config.json").exists() + ["--quiet"] * quiet
            _log.info(f"jaxalign {command} {shlex.join(words)}")
            _run_command(command, words)
        run = _read_run(folder)
        if run is None:
            raise UserError(f"`out` {out}: {folder} is not a run of this command")
        for name, study in studies.items():
            if paper == "culturespa" and not (folder / name).exists():
                study(folder)
        runs.append(run)
    return runs


def _run_command(command: str, words: Sequence[str]) -> None:
    """Run another command in this process."""
    function, config_class = load(COMMANDS[command])
    config = tyro.cli(config_class, args=list(words), prog=f"jaxalign {command}")
    try:
        function(config)
    except UserError as error:  # in the words of that command
        raise UserError(with_flags(str(error), config_class)) from None


def command_for(
    paper: PaperName, table: str, row: str, model: str, runs: Sequence[FinishedRun]
) -> str:
    """Return the command that measures a row which no run has.

    Args:
        paper: The paper.
        table: Key of the table.
        row: Key of the row.
        model: The model, as the page calls it.
        runs: The runs of that model.
    """
    own = [run for run in runs if run.command == JOBS[paper]["pocket"][0]]
    name = next((name for name, label in MODELS.items() if label == model), None)
    given = {"pocket": "", "smollm2": "--model smollm2 "}.get(name or "", f"--model {model} ")
    command, arguments = JOBS[paper][name or "pocket"]
    if name is None:
        arguments = given + arguments
    country = row.rpartition(".")[2]
    if country in _NOT_SIMULATED:
        arguments = f"{given}--survey CULTURESPA_FOLDER --countries {_ALL}"
    elif country in _SIMULATED.split() and country not in arguments.split():
        arguments = f"{given}--countries {_SIMULATED}"
    makes = f"jaxalign {command} {arguments}".strip()
    then = _what_follows(paper, table, row, given)
    if not then:
        return makes
    return f"{then} {own[0].path}" if own else f"{makes} --out RUN, then {then} RUN"


def _what_follows(paper: PaperName, table: str, row: str, given: str) -> str:
    """Return what has to be made of a run for a row, without the run; "" for the run's own rows."""
    if table == "bench":
        return f"jaxalign cultural-bench {given}--easy FILE --hard FILE --run"
    if table in _BY_STUDY and row != "share.1":
        return f"python -m {STUDIES[_BY_STUDY[table]]}"
    if paper == "culturespa" and table == "main" and "." in row:
        return f"python -m {STUDIES['prompting.json']}"
    return ""
