"""Losses of a soft-prompt run on presentations that were tuned on and on others, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.presentations import TUNED, UNTUNED, heading, named
from jaxalign.commands.reports.soft_prompt_record import (
    DRAWN_LINES,
    Result,
    loss_digits,
    loss_under,
    loss_words,
    mean_loss,
    methods,
    never_tuned_on,
    trivial_lines,
    tuned_on,
)
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure
from jaxalign.report.document import Cell, Figure, Table, is_number
from jaxalign.report.figures import Series


def methods_table(result: Result, folded: bool = False) -> Table:
    """Return each method's loss under each presentation, by country."""
    reading, _ = readings(result)
    rows = [
        (f"{country}, {key.label}", *_row(result, entry, method, reading))
        for country, entry in result["countries"].items()
        for method, key in methods(result).items()
    ]
    caption = f"Loss of each method under each presentation, {reading_words(reading)} reading"
    columns, digits = ("Country and method", *_columns(result)), loss_digits(result)
    return Table(caption, columns, tuple(rows), digits, folded=folded)


def means_table(result: Result) -> Table:
    """Return each method's loss under each presentation, mean over countries."""
    reading, _ = readings(result)
    entries = list(result["countries"].values())
    names = [*tuned_on(result), *never_tuned_on(result)]
    rows = []
    for method, key in methods(result).items():
        by_name = ([loss_under(e, method, name, reading) for e in entries] for name in names)
        rows.append((key.label, *map(_mean, by_name)))
    over = f", mean over {len(entries)} countries" if len(entries) > 1 else ""
    caption = f"Loss of each method under each presentation, {reading_words(reading)} reading{over}"
    headings = (heading(name, tuned_on(result)) for name in names)
    return Table(caption, ("Method", *headings), tuple(rows), loss_digits(result))


def _row(result: Result, entry: Mapping[str, Any], method: str, reading: str) -> list[float | None]:
    tuned, others = tuned_on(result), never_tuned_on(result)
    losses = [loss_under(entry, method, name, reading) for name in (*tuned, *others)]
    for key, names in ((None, tuned), ("untuned", others)):
        if len(names) > 1:
            averaged = entry[method] if key is None else entry[method][key]
            losses += [mean_loss(entry, method, names, reading), averaged[reading]["loss"]]
    return losses


def _columns(result: Result) -> list[str]:
    tuned, others = tuned_on(result), never_tuned_on(result)
    columns = [heading(name, tuned) for name in (*tuned, *others)]
    for names in (tuned, others):
        if len(names) > 1:
            columns += [f"Mean of {', '.join(names)}", f"{', '.join(names)} averaged"]
    return columns


def _mean(values: list[float | None]) -> Cell:
    known = [v for v in values if is_number(v)]
    return sum(known) / len(known) if known else None


def sides_figure(result: Result, out: Path) -> Figure:
    """Draw losses where tuned on and where never tuned on: two panels with the same scale."""
    entries, (reading, _) = result["countries"], readings(result)
    sides = {TUNED: tuned_on(result), UNTUNED: never_tuned_on(result)}
    sides = {role: names for role, names in sides.items() if names}
    compared = methods(result)
    lines = [
        Series(key, tuple(result["trivial"][c].get(name) for c in entries))
        for name, key in trivial_lines(result).items()
        if name in DRAWN_LINES
    ]
    by_side = {
        role: [
            Series(
                key.as_mark(),
                tuple(mean_loss(e, method, names, reading) for e in entries.values()),
            )
            for method, key in compared.items()
        ]
        + lines
        for role, names in sides.items()
    }
    span = figures.common_span(v for side in by_side.values() for s in side for v in s.values)
    unit = f"{loss_words(result)}, 0 is best"
    panels = [
        figures.dots(f"{', '.join(names)}: {role}", list(entries), by_side[role], unit, span, 4.2)
        for role, names in sides.items()
    ]
    rows = tuple(
        (f"{country}, {', '.join(names)} ({role})", *(s.values[i] for s in by_side[role]))
        for i, country in enumerate(entries)
        for role, names in sides.items()
    )
    shown = by_side[TUNED]
    return make_figure(
        out / FIGURES / "losses.png",
        panels,
        f"Mean loss over the presentations that were tuned on ({named(sides[TUNED])}) and over "
        f"those that were not, {reading_words(reading)} reading, beside lines that need no model "
        "(upright strokes). A prompt that has learned what the options mean has the same loss in "
        "both panels."
        if UNTUNED in sides
        else f"Loss of each method, {reading_words(reading)} reading, beside lines that need no "
        "model (upright strokes). No other presentation was tested.",
        "A row of marks per country: the loss of each method and of the trivial lines, where tuned "
        "on and where not. The numbers are in the table below.",
        Table("Mean losses", ("Country", *(s.key.label for s in shown)), rows, loss_digits(result)),
        [s.key for s in shown],
    )
