"""Parts of every report: figures with their tables, settings, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.report.document import Figure, Key, Section, Table, section
from jaxalign.report.drawing import Panel, drawings, save_panels

FIGURES = "figures"


def make_figure(
    png: Path,
    panels: Sequence[Panel],
    caption: str,
    alt: str,
    table: Table,
    keys: Sequence[Key] = (),
) -> Figure:
    """Return a figure, and write its PNG file and the SVG file beside it.

    Args:
        png: The PNG file; the figure is named after it.
        panels: What is drawn.
        caption: What the figure shows.
        alt: The same for readers who cannot see it.
        table: The numbers of the figure.
        keys: The legend.
    """
    png.parent.mkdir(parents=True, exist_ok=True)
    save_panels(png, panels, keys)
    return Figure(caption, alt, png, drawings(png.stem, panels), table, tuple(keys))


def matrix_table(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    digits: int,
) -> Table:
    """Return a matrix as a table.

    Args:
        caption: Title of the table.
        corner: What the rows are.
        rows: Names of the rows.
        columns: Names of the columns.
        values: A row of values per row.
        digits: Decimals of the numbers.
    """
    cells = tuple((name, *row) for name, row in zip(rows, values, strict=True))
    return Table(caption, (corner, *columns), cells, digits=digits)


def provenance(result: Mapping[str, Any]) -> Section:
    """Return the section that tells how to reproduce a result: settings, hashes, versions.

    Beside a setting stands where its value comes from, where that is known (`sources`).
    """
    return section(
        "Settings, hashes and versions",
        *(
            record_table(title, result[name], result.get("sources") if name == "settings" else None)
            for name, title in (
                ("settings", "Settings"),
                ("facts", "Other things that the result depends on"),
                ("versions", "Versions"),
            )
            if result.get(name)
        ),
    )


def record_table(
    caption: str, record: Mapping[str, Any], sources: Mapping[str, str] | None = None
) -> Table:
    """Return a table of the names and values of a record, nested ones as `outer.inner`.

    Args:
        caption: Title of the table.
        record: The values.
        sources: Where values come from, by name; those of others are left blank.
    """
    rows = tuple((name, _value(value)) for name, value in _flat(record))
    if not sources:
        return Table(caption, ("Name", "Value"), rows, folded=True)
    whose = tuple((name, value, sources.get(name)) for name, value in rows)
    return Table(caption, ("Name", "Value", "Where it comes from"), whose, folded=True)


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _value(value: Any) -> str:
    """Return a setting as it was given, not rounded."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)
