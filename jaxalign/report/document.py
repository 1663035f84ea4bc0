"""What a report is made of, before it is Markdown or HTML: sections of texts, tables, figures.

Nothing here is markup. Texts are plain and are escaped when rendered; numbers stay numbers until
then, so that both forms print them alike and a missing one is a dash in both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with the interval that was found for it; `low` and `high` may be missing."""

    mean: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, record: Mapping[str, Any] | float | None, times: float = 1.0) -> Estimate | None:
        """From a result's `{mean or value, low, high}`, a number, or null; times `times`."""
        if record is None:
            return None
        if not isinstance(record, Mapping):
            return cls(times * record)
        mean = record.get("mean", record.get("value"))
        return cls(*(_times(v, times) for v in (mean, record.get("low"), record.get("high"))))

    @property
    def known(self) -> bool:
        return is_number(self.mean)

    @property
    def has_interval(self) -> bool:
        return self.known and is_number(self.low) and is_number(self.high)


Cell: TypeAlias = str | bool | int | float | Estimate | None


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """Statements, one bullet each, under a line that says what they are."""

    items: tuple[str, ...]
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph set apart: "label" for what every reader must see first, "note" for the rest."""

    text: str
    kind: Literal["label", "note"] = "note"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under `columns`; the first cell of a row names it. Floats have `digits` decimals, or a
    number of them for each column; `signed` names the columns of differences, which show a plus.
    `folded` tables start closed."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int | tuple[int, ...] = 1
    signed: tuple[str, ...] = ()
    folded: bool = False

    def digits_of(self, column: int) -> int:
        return self.digits if isinstance(self.digits, int) else self.digits[column]


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: how a series looks, and its name in words."""

    words: str
    colour: str
    line: str = ""  # matplotlib's line style, "" for none
    marker: str = ""  # matplotlib's marker, "" for none
    width: float = 2.0

    def as_line(self) -> Key:
        """Without its mark."""
        return dataclasses.replace(self, marker="")

    def as_mark(self, interval: bool = False) -> Key:
        """A mark alone, or on the bar of an interval."""
        return dataclasses.replace(self, line="-" if interval else "", width=1.8)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture inside a page, as SVG without a document around it."""

    svg: str
    width: float  # in CSS pixels at its natural size
    wide: bool = False  # not to be shrunk to a phone's width: it scrolls


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture: a PNG file beside the report, the same as drawings, and the same as a table."""

    caption: str
    alt: str
    png: Path
    drawings: tuple[Drawing, ...]
    table: Table
    keys: tuple[Key, ...] = ()


Block: TypeAlias = Text | Listing | Note | Table | Figure


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    title: str
    summary: str
    labels: tuple[Note, ...]
    sections: tuple[Section, ...]


def is_number(value: Any) -> bool:
    """A finite number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def section(title: str, *blocks: Block | Sequence[Block] | None) -> Section:
    """A section of the blocks that exist: None stands for one that there was no data for."""
    flat: list[Block] = []
    for block in blocks:
        if isinstance(block, list | tuple):
            flat.extend(block)
        elif block is not None:
            flat.append(block)
    return Section(title, tuple(flat))


def _times(value: float | None, times: float) -> float | None:
    return times * value if is_number(value) else None
