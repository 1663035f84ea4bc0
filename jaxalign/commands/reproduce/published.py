"""The published numbers: the file `published.json`, and nothing else, knows them.

A row of a table is [key, label], and where a number is published also [value, source]; `sources`
says in words what a source is. A check of the replay is [key, label, expected, tolerance].
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

PaperName = Literal["soft-prompt-de", "culturespa"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a paper, or one that it could have.

    Attributes:
        key: What the measured values call it.
        label: The same in words.
        value: The published value; None if none is public.
        source: Key of the paper's sources; "" without a value.
    """

    key: str
    label: str
    value: float | str | None = None
    source: str = ""


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        key: Its name here.
        where: Its name in the paper.
        title: What it shows.
        about: What has to be known to read it.
        digits: Decimals of its numbers.
        rows: Its rows.
    """

    key: str
    where: str
    title: str
    about: str
    digits: int
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Check:
    """Something public that is computed again.

    Attributes:
        key: What the replay calls it.
        label: The same in words.
        expected: What must come out.
        tolerance: By how much it may differ: rounding, or the spread of random draws.
    """

    key: str
    label: str
    expected: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper: its tables, and what is public of it."""

    title: str
    paper: str
    sources: dict[str, str]
    tables: tuple[PaperTable, ...]
    replay: tuple[Check, ...]


def read_paper(name: PaperName) -> Paper:
    """Return a paper as `published.json` describes it."""
    text = Path(__file__).with_name("published.json").read_text("utf-8")
    record = json.loads(text)[name]
    tables = tuple(
        PaperTable(**(table | {"rows": tuple(Row(*row) for row in table["rows"])}))
        for table in record["tables"]
    )
    checks = tuple(Check(*check) for check in record["replay"])
    return Paper(record["title"], record["paper"], record["sources"], tables, checks)
