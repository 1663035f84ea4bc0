"""The page: every table and figure of a paper, what is published beside what was measured."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxalign.commands.reports.validity import gate_note
from jaxalign.commands.reproduce import culturespa, soft_prompt
from jaxalign.commands.reproduce.jobs import command_for
from jaxalign.commands.reproduce.published import Paper, PaperName, PaperTable
from jaxalign.commands.reproduce.replay import Replayed
from jaxalign.commands.reproduce.runs import FinishedRun, Measured
from jaxalign.core.errors import UserError
from jaxalign.methods.base import METHODS
from jaxalign.report.common import make_figure
from jaxalign.report.document import (
    Block,
    Cell,
    Document,
    Estimate,
    Figure,
    Key,
    Link,
    Listing,
    Note,
    Table,
    Text,
    is_number,
    section,
)
from jaxalign.report.figures import Series, common_span, dots
from jaxalign.report.render import write_report
from jaxalign.report.wording import joined

NOT_PUBLISHED = "not published"
_VALUES = {"soft-prompt-de": soft_prompt.values, "culturespa": culturespa.values}
# Tables that are drawn too: the methods of a row's key, and what the axis measures.
_DRAWN = {
    "loss": (("naive", "icl", "tuned"), "loss, points"),
    "countries": (("unaware", "p1", "joint"), "alignment score × 100"),
}
_MANY = 30  # rows of a table that is closed until a reader opens it
_MEANING = (
    "The published column has what the paper, its code or its released files say, with the source; "
    f"“{NOT_PUBLISHED}” means that no public source that we could read says it. Every other column "
    "is one model of ours: a value leads to the run that measured it, and where no run has, the "
    "cell names the command that measures it (section “Commands”). Published numbers are of "
    "Llama-3-8B-Instruct and people's answers, ours of other models and in part of a simulated "
    "society: they stand side by side to show what is measured, not to be equal."
)


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many cells a page has.

    Attributes:
        rows: Rows of all tables.
        published: Rows with a published value.
        measured: Cells of ours with a value.
        missing: Cells of ours without.
    """

    rows: int
    published: int
    measured: int
    missing: int


class _Cells:
    """The cells of ours; numbers the commands of those without a value."""

    def __init__(self, name: PaperName, runs: Sequence[FinishedRun], models: Sequence[str]) -> None:
        self.models = list(dict.fromkeys([*models, *(run.model for run in runs)]))
        self.commands: dict[str, int] = {}
        self.measured = self.missing = 0
        self._name = name
        self._by_model = {m: [run for run in runs if run.model == m] for m in self.models}
        # A value is that of the first run that has it.
        self._found: dict[tuple[str, str, str], tuple[FinishedRun, Measured]] = {}
        for run in runs:
            try:
                values = _VALUES[name](run)
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"`runs` {run.path}: its result.json is of another version ({error}); run it "
                    "again"
                ) from error
            for table, rows in values.items():
                for row, measured in rows.items():
                    self._found.setdefault((run.model, table, row), (run, measured))

    def value(self, model: str, table: str, row: str) -> Cell:
        """Return the value of a cell; None if no run has it."""
        found = self._found.get((model, table, row))
        return None if found is None else found[1].cell

    def cell(self, model: str, table: str, row: str, out: Path) -> Cell:
        """Return a cell with its link, or the number of the command that would fill it."""
        found = self._found.get((model, table, row))
        if found is None:
            self.missing += 1
            command = command_for(self._name, table, row, model, self._by_model[model])
            return f"command {self.commands.setdefault(command, len(self.commands) + 1)}"
        self.measured += 1
        run, measured = found
        file = run.path / (measured.file or run.page)
        target = Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()
        return Link(measured.cell, target)


def write_page(
    name: PaperName,
    paper: Paper,
    runs: Sequence[FinishedRun],
    replayed: Sequence[Replayed],
    out: Path,
    models: Sequence[str],
) -> tuple[tuple[Path, Path], Counts]:
    """Write `report.md`, `report.html` and the figures of a paper.

    Args:
        name: The paper.
        paper: What is published of it.
        runs: The finished runs.
        replayed: What is public, computed again.
        out: The folder of the page.
        models: Models that have a column, whether or not there are runs of them.

    Returns:
        The paths of the two pages, and how many cells they have.
    """
    cells = _Cells(name, runs, models)
    sections = []
    for table in paper.tables:
        blocks: list[Block] = [Text(table.about)] if table.about else []
        if (figure := _figure(table, cells, out)) is not None:
            blocks.append(figure)
        blocks.append(_table(table, cells, out))
        sections.append(section(f"{table.where}: {table.title}", *blocks))
    rows = [row for table in paper.tables for row in table.rows]
    counts = Counts(
        len(rows), sum(r.value is not None for r in rows), cells.measured, cells.missing
    )
    document = Document(
        title=paper.title,
        summary=f"{paper.paper}.",
        labels=_labels(runs),
        sections=(
            section("How to read this page", Text(_MEANING), Listing(_found(counts, replayed))),
            section(
                "What is public, computed again",
                _replay_table(replayed),
                _adapter_note(replayed),
            ),
            *sections,
            section("Sources of the published numbers", Listing(tuple(_sources(paper)))),
            section("Runs", _runs_table(runs, out) if runs else Text("None was given or made.")),
            section("Commands", *_commands(cells.commands)),
        ),
    )
    return write_report(document, out), counts


def _table(table: PaperTable, cells: _Cells, out: Path) -> Table:
    has_source = any(row.source for row in table.rows)
    rows = tuple(
        (
            row.label,
            NOT_PUBLISHED if row.value is None else row.value,
            *((row.source or None,) if has_source else ()),
            *(cells.cell(model, table.key, row.key, out) for model in cells.models),
        )
        for row in table.rows
    )
    columns = ("", "published", *(("source",) if has_source else ()), *cells.models)
    folded = len(rows) > _MANY
    title = f"{table.title}: every row, with its run" if folded else table.title
    return Table(title, columns, rows, table.digits, folded=folded)


def _labels(runs: Sequence[FinishedRun]) -> tuple[Note, ...]:
    """Return the validity gate of every run, and whether its survey is simulated."""
    notes = []
    for run in runs:
        if run.command == "cultural-bench":
            continue
        note = gate_note(run.result.get("measure", {}).get("validity"), "")
        notes.append(dataclasses.replace(note, lead=f"{run.model}. {note.lead}"))
    facts = [run.result.get("facts", {}) for run in runs]
    if any(f.get("simulated") or f.get("simulated_held_out") for f in facts):
        text = "The survey that scores are about is simulated in some runs: nobody was asked."
        notes.append(Note(text, "label", "Simulated."))
    return tuple(notes)


def _found(counts: Counts, replayed: Sequence[Replayed]) -> tuple[str, ...]:
    within = [r.within for r in replayed]
    return (
        f"{counts.rows} rows, {counts.published} of them with a published value.",
        f"{counts.measured} cells of ours are measured, {counts.missing} name a command.",
        f"Of {len(replayed)} checks of public material, {within.count(True)} are within their "
        f"tolerance, {within.count(False)} are not, and {within.count(None)} lack their files.",
    )


def _replay_table(replayed: Sequence[Replayed]) -> Table:
    verdicts = {True: "within", False: "NOT WITHIN"}
    rows = tuple(
        (
            r.check.label,
            _plain(r.check.expected),
            None if r.value is None else _plain(round(r.value, 4)),
            None if r.value is None else _plain(round(r.value - r.check.expected, 4)),
            _plain(r.check.tolerance),
            r.missing if r.within is None else verdicts[r.within],
        )
        for r in replayed
    )
    columns = ("", "expected", "found", "difference", "tolerance", "verdict")
    return Table("Checks, each with its tolerance", columns, rows, 4)


def _plain(value: float) -> str:
    """Return a number with the decimals that it has."""
    return f"{value:,.4f}".rstrip("0").rstrip(".").replace("-", "\u2212")


def _adapter_note(replayed: Sequence[Replayed]) -> Text | None:
    if not any(r.check.label.startswith("Published adapter") for r in replayed):
        return None
    return Text(
        "What the published adapter scores takes the weights of Meta-Llama-3-8B-Instruct, and a "
        "GPU: jaxalign ask --model LLAMA_FOLDER --adapter joint=ADAPTER_FOLDER --survey "
        "CULTURESPA_FOLDER. Its published scores are not public as numbers."
    )


def _sources(paper: Paper) -> list[str]:
    return [f"{name}: {words}." for name, words in paper.sources.items()]


def _runs_table(runs: Sequence[FinishedRun], out: Path) -> Table:
    rows = []
    for run in runs:
        target = os.path.relpath((run.path / run.page).resolve(), out.resolve())
        versions = run.result.get("versions", {})
        settings = run.result.get("settings", {})
        seeds = settings.get("seeds")
        rows.append(
            (
                Link(run.path.name, Path(target).as_posix()),
                run.model,
                f"jaxalign {run.command}",
                ", ".join(settings.get("countries") or ()) or None,
                seeds if isinstance(seeds, int) else len(seeds or ()) or None,
                f"jaxalign {versions.get('jaxalign', '?')}, jax {versions.get('jax', '?')}",
            )
        )
    columns = ("run", "model", "command", "countries", "seeds", "versions")
    return Table("Where values are from; the first run that has one counts", columns, tuple(rows))


def _commands(commands: Mapping[str, int]) -> list[Block]:
    if not commands:
        return [Text("Every cell of ours is measured.")]
    rows = tuple((f"command {n}", command) for command, n in commands.items())
    return [
        Text("Give the directories of the runs that they make to --runs."),
        Table("What measures the other cells", ("", "command"), rows),
    ]


# Figures


def _key(method: str) -> Key:
    return METHODS[method].legend().as_mark()


def _figure(table: PaperTable, cells: _Cells, out: Path) -> Figure | None:
    """Return a panel for the published values, and one for each model that has values."""
    if table.key not in _DRAWN:
        return None
    methods, unit = _DRAWN[table.key]
    keys = {row.key: row.value for row in table.rows}
    groups = list(dict.fromkeys(key.split(".")[1] for key in keys))
    given: dict[str, dict[str, Estimate | None]] = {
        "published": {key: _estimate(value) for key, value in keys.items()}
    }
    for model in cells.models:
        given[model] = {key: _estimate(cells.value(model, table.key, key)) for key in keys}
    given = {name: values for name, values in given.items() if any(values.values())}
    if not given:
        return None
    span = common_span(value for values in given.values() for value in values.values())
    panels = []
    for name, values in given.items():
        shown = [g for g in groups if any(values.get(f"{m}.{g}") for m in methods)]
        series = [Series(_key(m), tuple(values.get(f"{m}.{g}") for g in shown)) for m in methods]
        panels.append(dots(name, shown, series, unit, span, 4.2))
    columns = [(name, m) for name in given for m in methods]
    drawn = Table(
        f"{table.title}: what is drawn",
        ("", *(f"{name}, {METHODS[m].label}" for name, m in columns)),
        tuple((g, *(given[name].get(f"{m}.{g}") for name, m in columns)) for g in groups),
        table.digits,
    )
    png = out / "figures" / f"{table.key}.png"
    alt = f"{table.title}: {joined(given)}"
    caption = f"{table.title}. A mark is a value, a bar its 95 % interval where there is one."
    return make_figure(png, panels, caption, alt, drawn, [_key(m) for m in methods])


def _estimate(value: Cell) -> Estimate | None:
    if isinstance(value, Estimate):
        return value if value.known else None
    return Estimate(float(value)) if is_number(value) else None
