"""A survey format in a file of its own, which tests add to the package and take away again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxalign.surveys import formats

SOURCE = """
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.survey import Item, Survey


@FORMATS.register("club")
class Club(Format):
    def recognises(self, start):
        return start.text.startswith("club ")

    def read(self, path):
        group, answers = path.read_text().removeprefix("club ").split(": ")
        counts = {label: int(n) for n, label in map(str.split, answers.split(", "))}
        item = Item("q", "Agreed?", tuple(counts), tuple(range(len(counts))), "nominal")
        shares = tuple(n / sum(counts.values()) for n in counts.values())
        return Survey("club", "1", "a club", "official", (item,), {group: {"q": shares}})
"""


@contextmanager
def club_format(folder: Path) -> Iterator[None]:
    """Make the module that `SOURCE` holds part of `jaxalign.surveys.formats`."""
    folder.mkdir()
    (folder / "club.py").write_text(SOURCE)
    registry = formats.FORMATS
    formats.__path__.append(str(folder))
    registry._loaded = False  # the next lookup imports the modules of the package again
    try:
        yield
    finally:
        formats.__path__.remove(str(folder))
        registry._entries.pop("club", None)
        sys.modules.pop("jaxalign.surveys.formats.club", None)
