"""What the library says while it runs: the screen shows what a user needs, the run keeps it all.

Notes are lines of the logger `jaxalign`. Those at level INFO are for everybody; plans, meshes,
kernels and memory are at level DEBUG, shown with --verbose. `RunNotes` keeps both until the run's
directory is known and from then on in its file `notes.log`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from jaxalign.core.streams import visible

NAME = "notes.log"


class RunNotes(logging.Handler):
    """Collects notes, and appends them to a run's `notes.log` once `keep_in` names the run."""

    def __init__(self) -> None:
        """Start without a run."""
        super().__init__(logging.DEBUG)
        self._lines: list[str] = []
        self._path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a note with the time."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        self._lines.append(f"{at}  {visible(self.format(record))}\n")
        self._write()

    def keep_in(self, folder: Path) -> None:
        """Write what was said so far, and all that follows, into a run's directory."""
        self._path = folder / NAME
        self._write()

    def _write(self) -> None:
        # Notes are no part of the result: a disk that is full is reported by what is.
        with contextlib.suppress(OSError):
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(self._lines)
                self._lines = []


def keep_notes_in(folder: Path) -> None:
    """Let every `RunNotes` of the logger write into a run's directory."""
    for handler in logging.getLogger("jaxalign").handlers:
        if isinstance(handler, RunNotes):
            handler.keep_in(folder)
