"""The tables of a report as files: CSV with every digit, and LaTeX for a paper.

Each table of a report, those of its figures included, becomes `tables/NAME.csv` and
`tables/NAME.tex`. NAME is the figure's, or comes from the table's caption.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxalign.core.files import write_text
from jaxalign.report import wording
from jaxalign.report.document import Cell, Document, Estimate, Figure, Link, Table, is_number

TABLES = "tables"
_LONGEST_NAME = 48  # characters of a file's name, without its ending
_NO_LAST_WORDS = frozenset(
    "a an and at by for from in is its no of on or that the to with".split()  # noqa: SIM905
)
_LONGEST_TEXT = 28  # characters of a cell, above which LaTeX wraps its column
_ROWS_OF_A_PAGE = 40

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the end of a row these would be its arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\u2212": "$-$",
    "\u2013": "--",
    "\u2014": "---",
    "\u00d7": r"$\times$",
    "\u00b1": r"$\pm$",
    "\u2264": r"$\le$",
    "\u2265": r"$\ge$",
    "\u2192": r"$\to$",
    "\u00b7": r"$\cdot$",
    "\u2026": r"\ldots{}",
    "\u201c": "``",
    "\u201d": "''",
    "\u2018": "`",
    "\u2019": "'",
    "\u00a0": "~",
}


def tables_of(document: Document) -> Iterator[tuple[Table, str]]:
    """Yield every table of a document, those of figures included, with what it is named after."""
    for part in document.sections:
        for block in part.blocks:
            if isinstance(block, Figure):
                yield block.table, block.png.stem
            elif isinstance(block, Table):
                yield block, block.caption


def table_names(document: Document) -> dict[int, str]:
    """Return the names of a document's tables, by the identity of the table; no two are alike."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for table, title in tables_of(document):
        if id(table) not in names:
            names[id(table)] = _unused(file_name(title), taken)
            taken.add(names[id(table)])
    return names


def file_name(title: str) -> str:
    """Return a title as the name of a file.

    >>> file_name("Losses in points, by country (lower is better)")
    'losses-in-points-by-country-lower-is-better'
    """
    words = re.findall(r"[a-z0-9_]+", title.lower())
    name = "-".join(words)
    while len(name) > _LONGEST_NAME and len(words) > 1:
        words.pop()
        while words[-1] in _NO_LAST_WORDS and len(words) > 1:
            words.pop()
        name = "-".join(words)
    return name[:_LONGEST_NAME] or "table"


def _unused(name: str, taken: set[str]) -> str:
    tried = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in tried if candidate not in taken)


def write_tables(document: Document, out: Path) -> None:
    """Write every table of a document into `out/tables`, as CSV and as LaTeX."""
    names = table_names(document)
    written: set[str] = set()
    for table, _ in tables_of(document):
        name = names[id(table)]
        if name not in written:
            write_text(out / TABLES / f"{name}.csv", to_csv(table))
            write_text(out / TABLES / f"{name}.tex", to_latex(table, name))
            written.add(name)


def to_csv(table: Table) -> str:
    """Return a table as CSV.

    Numbers have all their digits, a missing one is empty, and an interval takes two more columns.
    """
    widths = [_has_intervals(table, column) for column in range(len(table.columns))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = zip(table.columns, widths, strict=True)
    writer.writerow([n for name, wide in names for n in _column_names(name, wide)])
    for row in table.rows:
        cells = zip(row, widths, strict=True)
        writer.writerow([v for cell, wide in cells for v in _values(cell, wide)])
    return text.getvalue()


def _has_intervals(table: Table, column: int) -> bool:
    cells = (_shown(row[column]) for row in table.rows)
    return any(isinstance(cell, Estimate) and cell.has_interval for cell in cells)


def _column_names(name: str, with_interval: bool) -> tuple[str, ...]:
    return (name, f"{name} (low)", f"{name} (high)") if with_interval else (name,)


def _values(cell: Cell, with_interval: bool) -> Iterable[str]:
    cell = _shown(cell)
    if isinstance(cell, Estimate):
        numbers = (cell.mean, cell.low, cell.high) if with_interval else (cell.mean,)
    else:
        numbers = (cell, None, None) if with_interval else (cell,)
    return [_value(number) for number in numbers]


def _value(value: str | bool | float | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return str(value) if is_number(value) else ""


def _shown(cell: Cell) -> Cell:
    return cell.value if isinstance(cell, Link) else cell


def to_latex(table: Table, name: str) -> str:
    """Return a table as LaTeX with the rules of booktabs; a long one as a longtable.

    Args:
        table: The table; its numbers are rounded as the report shows them.
        name: Its label is `tab:NAME`.
    """
    kinds = [_kind(table, column) for column in range(len(table.columns))]
    wrapped = 0.8 / max(kinds.count("p") + 0.5, 2)
    columns = "".join(rf"p{{{wrapped:.2f}\linewidth}}" if k == "p" else k for k in kinds)
    head = [" & ".join(map(latex_text, table.columns)) + r" \\", r"\midrule"]
    rows = [" & ".join(_latex_cells(table, row)) + r" \\" for row in table.rows]
    title = rf"\caption{{{latex_text(table.caption)}}}\label{{tab:{name}}}"
    if len(rows) > _ROWS_OF_A_PAGE:
        lines = [
            r"% needs \usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{columns}}}",
            title + r" \\",
            r"\toprule",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *rows,
            r"\end{longtable}",
        ]
    else:
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            title,
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *head,
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    r"""Return text that LaTeX shows literally, on one line.

    >>> latex_text("R&D, 5 % of `a_b`")
    'R\\&D, 5 \\% of `a\\_b`'
    >>> latex_text("--seeds 3")
    '-{}-seeds 3'
    """
    text = " ".join(text.split())
    escaped = "".join("\0" if c == "-" else _LATEX.get(c, c) for c in text)
    # Two hyphens in a row would become a dash.
    return re.sub("\0(?=\0)", "-{}", escaped).replace("\0", "-")


def _kind(table: Table, column: int) -> str:
    """Return LaTeX's letter for a column: r for numbers, p for texts that wrap, l for others."""
    cells = [c for row in table.rows if (c := _shown(row[column])) is not None]
    texts = [cell for cell in cells if isinstance(cell, str | bool)]
    if column and cells and not texts:
        return "r"
    longest = max((len(cell) for cell in texts if isinstance(cell, str)), default=0)
    return "p" if longest > _LONGEST_TEXT else "l"


def _latex_cells(table: Table, row: tuple[Cell, ...]) -> list[str]:
    return [
        latex_text(
            wording.cell_text(_shown(cell), table.digits_of(i), table.columns[i] in table.signed)
        )
        for i, cell in enumerate(row)
    ]
