"""Standard output and standard error: whatever encoding the terminal has, whoever wrote the text.

Names and texts come from files of strangers. A control character in them is a character that is
shown, and not an order to the terminal, such as to change its title or to hide a line.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

# C0 and C1 controls but the line break and the tab, each as Python writes it.
_SHOWN = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


def visible(text: str) -> str:
    r"""Return a text with its control characters written out; line breaks and tabs stay.

    >>> visible("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return text.translate(_SHOWN)


class VisibleStream:
    """A text stream that shows control characters instead of sending them.

    Attributes:
        wrapped: The stream itself, for programs that draw.
    """

    def __init__(self, wrapped: TextIO) -> None:
        self.wrapped = wrapped

    def write(self, text: str) -> int:
        """Write a text."""
        return self.wrapped.write(visible(text))

    def writelines(self, lines: Any) -> None:
        """Write texts one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def replace_what_cannot_be_printed() -> None:
    """Show control characters, and a question mark for what a stream's encoding lacks.

    Tables and names hold characters that Latin-1 or ASCII terminals do not have, and a program must
    not end because of one.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, VisibleStream):
            continue
        # Streams that others have put in place may not be able to change.
        with contextlib.suppress(AttributeError, ValueError):
            if stream.errors not in ("replace", "backslashreplace"):
                stream.reconfigure(errors="replace")
        setattr(sys, name, VisibleStream(stream))


def drawing_stream() -> TextIO:
    """Return standard output for a program that draws on the terminal with control characters.

    Text of others must then be made `visible` before it is drawn.
    """
    return getattr(sys.stdout, "wrapped", sys.stdout)
