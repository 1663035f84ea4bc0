"""Whose checkpoints are these? A directory outside a run's own is checked before it is used.

`Checkpoints` keeps the latest few steps of a directory and removes the others, whoever wrote them.
So the directory says whose it is: `owner.json` holds the run that saves there, and no other run
may take it up. Works on local paths and on gs://.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from etils import epath

from jaxalign.runs.checkpoints import location
from jaxalign.core.errors import UserError

OWNER = "owner.json"


def check_place(place: str, run: str | None) -> bool:
    """Whether `place` has been this run's; False: it is empty, or not there yet.

    Args:
      run: what names the run (`records.begun`), None where it has not begun.

    UserError for a place that cannot hold checkpoints, and for one that holds anything else.
    """
    folder = epath.Path(location(place))
    try:
        names, owner = _names(folder), _owner(folder)
    except UserError:
        raise
    except Exception as error:  # whatever a bucket's library may raise
        raise UserError(f"`checkpoints` {place}: {error}; give another `checkpoints`") from None
    if names and run is None:
        raise UserError(
            f"`checkpoints` {place}: holds {names[0]!r}, and a new run needs an empty directory; "
            "give another, or `resume` with the `out` of the run that saves there"
        )
    if names and owner != run:
        raise UserError(
            f"`checkpoints` {place}: holds {names[0]!r} and is not this run's; give the directory "
            "that the run began with"
        )
    return bool(names)


def claim_place(place: Path | str, run: str) -> None:
    """Write whose `place` is; for process 0 alone. UserError where another run was faster."""
    folder = epath.Path(location(place))
    folder.mkdir(parents=True, exist_ok=True)
    if _owner(folder) not in (None, run):
        raise UserError(f"`checkpoints` {place}: another run saves there; give another directory")
    (folder / OWNER).write_text(json.dumps({"run": run}))


def _names(folder: epath.Path) -> list[str]:
    """What lies in a directory, sorted; UserError for a path that is, or lies under, none."""
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"`checkpoints` {folder}: is no directory; give another `checkpoints`")
        return sorted(path.name for path in folder.iterdir())
    if "://" not in str(folder):
        local = Path(folder)
        nearest = next(parent for parent in local.parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"`checkpoints` {folder}: {nearest} is no directory to write in; "
                "give another `checkpoints`"
            )
    return []


def _owner(folder: epath.Path) -> Any:
    """The run that `owner.json` names; None where it is not there or cannot be read."""
    path = folder / OWNER
    try:
        return json.loads(path.read_text())["run"] if path.exists() else None
    except (ValueError, KeyError, TypeError):
        return None
