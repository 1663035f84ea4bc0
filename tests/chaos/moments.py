"""Moments of a run: the times at which it is about to change a file in its directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_watching: tuple[str, Callable[[], None]] | None = None
_installed = False


@contextlib.contextmanager
def watching(out: Path, on_change: Callable[[], None]) -> Iterator[None]:
    """Call `on_change` before each change of a file below `out` that Python makes, in its thread.

    Files that libraries in C++ write (the arrays of checkpoints) are not seen; their folders are.
    """
    global _watching, _installed
    if not _installed:
        sys.addaudithook(_hear)  # there is no way to remove one
        _installed = True
    _watching = str(out), on_change
    try:
        yield
    finally:
        _watching = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    global _watching
    if _watching is None or event not in ("open", "os.rename", "os.mkdir", "os.remove"):
        return
    if event == "open" and not _writes(arguments[2]):
        return
    folder, on_change = _watching
    if isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(folder):
        kept, _watching = _watching, None  # what is done at the moment is none itself
        try:
            on_change()
        finally:
            _watching = kept


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


class Counter:
    """Counts moments, and does something at one of them."""

    def __init__(self, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        self.count, self._at, self._action = 0, at, action

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._at:
            self._action()

    @property
    def reached(self) -> bool:
        """Whether the moment has come."""
        return self._at is not None and self.count >= self._at


class Snapshots:
    """Copies of a run's directory at some moments, as a kill would have left it there."""

    def __init__(self, out: Path, folder: Path, every: int) -> None:
        self.out, self.folder, self.every = out, folder, every
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        # Other threads write checkpoints; the main one is between two steps.
        if self.count % self.every or threading.current_thread() is not threading.main_thread():
            return
        copy = self.folder / f"{self.count:06d}"
        with contextlib.suppress(shutil.Error, FileNotFoundError):  # the others go on meanwhile
            shutil.copytree(self.out, copy)
