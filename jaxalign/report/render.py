"""A document as `report.md`, with its pictures beside it, and as a self-contained `report.html`.

The HTML loads nothing: style, drawings and tables are all inside it. It links to the same figures
and tables as files for other programs. Templates escape every text.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from jaxalign.core.files import write_text
from jaxalign.core.templates import make_environment
from jaxalign.core.terms import abbreviations
from jaxalign.report import wording
from jaxalign.report.document import (
    Block,
    Cell,
    Document,
    Estimate,
    Figure,
    Key,
    Link,
    Table,
    texts_of,
)
from jaxalign.report.drawing import svg_beside
from jaxalign.report.palette import THEMED
from jaxalign.report.tables import TABLES, table_names, write_tables

_DASHES = {"--": "6 3", "-.": "7 3 1.5 3", ":": "1.5 2.5"}
_MARKERS = {  # outlines within a box of 12 x 12
    "o": "M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "s": "M2.5 2.5h7v7h-7z",
    "^": "M6 1.5L10.5 10H1.5z",
    "v": "M6 10.5L10.5 2H1.5z",
    "D": "M6 1L11 6L6 11L1 6z",
    "|": "M5.2 1h1.6v10h-1.6z",
    "P": "M4.3 1h3.4v3.3H11v3.4H7.7V11H4.3V7.7H1V4.3h3.3z",
    "X": "M1.5 3.5l2-2L6 4l2.5-2.5l2 2L8 6l2.5 2.5l-2 2L6 8l-2.5 2.5l-2-2L4 6z",
}


def write_report(document: Document, out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and their tables into `out`, and return the two pages.

    Each file is written atomically.
    """
    markdown, page = out / "report.md", out / "report.html"
    write_tables(document, out)
    write_text(markdown, to_markdown(document, out))
    write_text(page, to_html(document, out))
    return markdown, page


def to_html(document: Document, folder: Path) -> str:
    """Return the document as one page that stands alone; its links are relative to `folder`."""
    page = _environment(True, document, folder).get_template("report.html.jinja")
    return page.render(document=document)


def to_markdown(document: Document, folder: Path) -> str:
    """Return the document as Markdown; links are relative to `folder`."""
    page = _environment(False, document, folder).get_template("report.md.jinja")
    text = page.render(document=document)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(autoescape: bool, document: Document, folder: Path) -> Any:
    names = table_names(document)

    def files(block: Figure | Table) -> list[tuple[str, str]]:
        """Return what a figure or table is kept as beside the page: kinds and links."""
        table = block.table if isinstance(block, Figure) else block
        found = [("PNG", block.png), ("SVG", svg_beside(block.png))] if table is not block else []
        path = folder / TABLES / names[id(table)]
        found += [("CSV", path.with_name(f"{path.name}.csv"))]
        found += [("LaTeX", path.with_name(f"{path.name}.tex"))]
        return [(kind, link(file)) for kind, file in found]

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    environment = make_environment(Path(__file__).parent / "templates", html=autoescape)
    environment.filters |= {
        "cell": cell_html,
        "cell_md": cell_markdown,
        "md": markdown_text,
        "sample": key_sample,
        "numeric": is_numeric,
        "column_class": column_class,
        "svg": lambda drawing: Markup(drawing.svg),
        "link": link,
        "files": files,
        "address": quote,
        "abbreviations": lambda document: abbreviations(texts_of(document)),
    }
    environment.tests["block"] = is_block
    return environment


def is_block(block: Block, kind: str) -> bool:
    """Return whether a block is of the class named `kind`."""
    return type(block).__name__ == kind


def is_numeric(table: Table, column: int) -> bool:
    """Return whether a column holds numbers, which are aligned to the right."""
    cells = [shown(row[column]) for row in table.rows if row[column] is not None]
    return bool(cells) and all(isinstance(c, int | float | Estimate) for c in cells)


def column_class(table: Table, column: int) -> str:
    """Return the CSS class of a column.

    "n" is for numbers, "s" and "t" for short texts, "long" for texts that need room to wrap.
    """
    if is_numeric(table, column):
        return "n"
    texts = (c for row in table.rows if isinstance(c := shown(row[column]), str))
    longest = max(map(len, texts), default=0)
    return "long" if longest > 28 else "t" if longest > 10 else "s"


def shown(cell: Cell) -> Cell:
    """Return what a cell shows, without where it leads."""
    return cell.value if isinstance(cell, Link) else cell


def cell_html(cell: Cell, table: Table, column: int) -> Markup:
    """Return a cell as HTML; an interval is set in smaller type under its mean."""
    if isinstance(cell, Link):
        inner = cell_html(cell.value, table, column)
        return Markup('<a href="{}">{}</a>').format(quote(cell.target), inner)
    digits, signed = table.digits_of(column), table.columns[column] in table.signed
    if isinstance(cell, Estimate) and cell.has_interval:
        mean, span = wording.number(cell.mean, digits, signed), wording.bounds(cell, digits, signed)
        return Markup("{} <small>{}</small>").format(mean, span)
    return Markup.escape(wording.cell_text(cell, digits, signed))


def cell_markdown(cell: Cell, table: Table, column: int) -> str:
    """Return a cell as Markdown."""
    if isinstance(cell, Link):
        return f"[{cell_markdown(cell.value, table, column)}]({quote(cell.target)})"
    digits, signed = table.digits_of(column), table.columns[column] in table.signed
    return markdown_text(wording.cell_text(cell, digits, signed))


def markdown_text(text: str) -> str:
    """Return text that Markdown shows literally, on one line, also inside a table."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)


def key_sample(key: Key) -> Markup:
    """Return how a series looks, as a small picture for a legend."""
    parts = []
    if key.line:
        dash = Markup(' stroke-dasharray="{}"').format(_DASHES.get(key.line, "none"))
        line = Markup('<path d="M0 6H28" stroke="{}" stroke-width="{}" fill="none"{}/>')
        parts.append(line.format(_ink(key.colour), key.width, dash))
    if key.marker:
        shape = Markup('<path transform="translate(8 0)" d="{}" fill="{}"/>')
        parts.append(shape.format(_MARKERS[key.marker], _ink(key.colour)))
    whole = Markup('<svg viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">{}</svg>')
    return whole.format(Markup("").join(parts))


def _ink(colour: str) -> str:
    """Return the colour to write into a page: ink follows the page, to show on dark ones too."""
    return THEMED.get(colour, colour)
