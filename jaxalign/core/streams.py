"""Standard output and standard error, whatever encoding the terminal has."""

from __future__ import annotations

import contextlib
import sys


def replace_what_cannot_be_printed() -> None:
    """Print a question mark for each character that a stream's encoding lacks.

    Tables and names hold characters that Latin-1 or ASCII terminals do not have, and a program must
    not end because of one.
    """
    for stream in (sys.stdout, sys.stderr):
        # Streams that others have put in place may not be able to change.
        with contextlib.suppress(AttributeError, ValueError):
            if stream.errors not in ("replace", "backslashreplace"):
                stream.reconfigure(errors="replace")
