"""Continue a run with the settings that its directory holds.

    jaxalign resume runs/culturespa

A run keeps every setting in `config.json`; the command that began it is the one that has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import tyro

from jaxalign.commands import COMMANDS, load
from jaxalign.core.errors import UserError
from jaxalign.runs import recorded_run, with_flags
from jaxalign.runs.settings import arguments_of, flags


@dataclasses.dataclass(frozen=True)
class ResumeSettings:
    """Continue a run that was stopped, with the settings it began with."""

    continues_itself: ClassVar[bool] = True  # the same command again

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    quiet: bool = False
    """Whether to hide the progress bar."""
    verbose: bool = False
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""


def resume(settings: ResumeSettings) -> None:
    """Find the command that began a run, and call it with the run's settings."""
    run = run_folder(settings.run)
    recorded = read_settings(run)
    function, config_class = load(COMMANDS[command_of(run, recorded)])
    given = {"out": str(run), "resume": True}
    given |= {"quiet": settings.quiet, "verbose": settings.verbose}
    # A setting that this command has not, such as the progress bar of some, is left out.
    given = {key: value for key, value in given.items() if key in flags(config_class)}
    try:
        arguments = arguments_of(config_class, {**recorded, **given})
        config = tyro.cli(config_class, args=arguments, prog="jaxalign resume")
        function(config)
    except UserError as error:  # in the words of the command that began the run
        raise UserError(with_flags(str(error), config_class)) from None


def run_folder(given: Path) -> Path:
    """Return a run's directory, also where a file in it is named, such as its result.json."""
    is_inside = given.is_file() and (given.parent / "config.json").is_file()
    return given.parent if is_inside else given


def read_settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run by name; UserError where there is no run."""
    try:
        name, recorded = recorded_run(run)
    except (UserError, OSError):  # other files, or another program's config.json
        name = None
    if name is None:
        raise UserError(f"`run` {run}: no run is there; give the directory of one")
    return recorded


def command_of(run: Path, recorded: Mapping[str, Any]) -> str:
    """Return the name of the command that began a run.

    Args:
        run: The run's directory, for the message.
        recorded: The run's settings by name.

    Raises:
        UserError: No command that can continue a run has these settings.
    """
    best, most = "", 0.0
    for name, command in COMMANDS.items():
        if name == "resume":
            continue
        known = flags(load(command)[1]).keys()
        if "resume" not in known:
            continue
        # Versions differ in a few settings; programs share some, such as the model.
        share = len(known & recorded.keys()) / len(known | recorded.keys())
        if share > most:
            best, most = name, share
    if most < 0.5:
        raise UserError(
            f"`run` {run}: no command continues such a run; a sweep is continued by giving its "
            "file again"
        )
    return best
