"""What a report consists of before it becomes Markdown or HTML: sections of texts, tables, figures.

Nothing here is markup. Texts are plain and are escaped when they are rendered. Numbers stay numbers
until then, so that Markdown and HTML print them alike and show a missing one as a dash.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Link:
    """A cell that leads to what it was taken from.

    Attributes:
        value: What the cell shows.
        target: A file, relative to the page.
    """

    value: str | bool | int | float | Estimate
    target: str


Cell: TypeAlias = str | bool | int | float | Estimate | Link | None


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """Statements, one bullet each, under an introductory line."""

    items: tuple[str, ...]
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph set apart.

    "label" is for what every reader must see first, "warning" for what is wrong with it.

    `lead` is its first words, in bold.
    """

    text: str
    kind: Literal["label", "note", "warning"] = "note"
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, in which the first cell of a row names the row.

    Attributes:
        caption: Title of the table.
        columns: Names of the columns.
        rows: Cells of each row.
        digits: Decimals of floats: one number, or one per column.
        signed: Names of columns that hold differences, which show a plus.
        folded: Whether the table is closed until a reader opens it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int | tuple[int, ...] = 1
    signed: tuple[str, ...] = ()
    folded: bool = False

    def digits_of(self, column: int) -> int:
        """Return the decimals of a column."""
        return self.digits if isinstance(self.digits, int) else self.digits[column]


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: the name of a series in words, and how it looks."""

    label: str
    colour: str
    line: str = ""  # matplotlib's line style, "" for none
    marker: str = ""  # matplotlib's marker, "" for none
    width: float = 2.0

    def as_line(self) -> Key:
        """Return the key without its mark."""
        return dataclasses.replace(self, marker="")

    def as_mark(self, interval: bool = False) -> Key:
        """Return the key as a mark alone, or as a mark on the bar of an interval."""
        return dataclasses.replace(self, line="-" if interval else "", width=1.8)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture inside a page: an SVG element."""

    svg: str
    width: float  # in CSS pixels at its natural size
    wide: bool = False  # scrolls on a phone instead of being shrunk to its width


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure three times over: a PNG file beside the report, drawings in the page, a table."""

    caption: str
    alt: str
    png: Path
    drawings: tuple[Drawing, ...]
    table: Table
    keys: tuple[Key, ...] = ()


Block: TypeAlias = Text | Listing | Note | Table | Figure


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report: a title, a summary, what every reader must see first, and sections."""

    title: str
    summary: str
    labels: tuple[Note, ...]
    sections: tuple[Section, ...]


def texts_of(document: Document) -> Iterator[str]:
    """Yield every text of a document that a reader sees, in order; not what numbers read."""
    yield from (document.title, document.summary)
    blocks: list[Block] = list(document.labels)
    for part in document.sections:
        blocks += [Text(part.title), *part.blocks]
    for block in blocks:
        match block:
            case Text():
                yield block.text
            case Listing():
                yield from (block.lead, *block.items)
            case Note():
                yield from (block.lead, block.text)
            case Table():
                yield from _table_texts(block)
            case Figure():
                yield from (key.label for key in block.keys)
                yield block.caption
                yield from _table_texts(block.table)


def _table_texts(table: Table) -> Iterator[str]:
    yield from (table.caption, *table.columns)
    for row in table.rows:
        shown = (cell.value if isinstance(cell, Link) else cell for cell in row)
        yield from (cell for cell in shown if isinstance(cell, str))


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; a truth value is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def section(title: str, *blocks: Block | Sequence[Block] | None) -> Section:
    """Return a section of the given blocks; None stands for a block that there are no data for."""
    flat: list[Block] = []
    for block in blocks:
        if isinstance(block, list | tuple):
            flat.extend(block)
        elif block is not None:
            flat.append(block)
    return Section(title, tuple(flat))


def _times(value: float | None, times: float) -> float | None:
    return times * value if is_number(value) else None
