"""Show the doctests of docstrings as code on the page of the Python API.

Griffe, which reads the docstrings for mkdocstrings, knows doctests in `Examples:` sections only.
Elsewhere it takes them for text, in which square brackets are links.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Let griffe see every doctest of every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object when it is loaded."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """Return a docstring with doctests that griffe recognises.

    `Example:` becomes `Examples:`, which is a section. A doctest outside of sections, which is not
    indented, gets a code fence; it ends before a blank line that no further `>>>` follows.
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    lines, result, inside = text.splitlines(), [], False
    for i, line in enumerate(lines):
        if not inside and line.startswith(">>> "):
            inside = True
            result.append("```pycon")
        result.append(line)
        following = next((x for x in lines[i + 1 :] if x.strip()), "")
        at_end = not "".join(lines[i + 1 : i + 2]).strip()
        if inside and at_end and not following.startswith(">>> "):
            inside = False
            result.append("```")
    return "\n".join(result)
