"""The report of `jaxalign compare`: scores of several runs, and differences paired by item."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.methods.base import METHODS
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure
from jaxalign.report.document import Document, Estimate, Key, Listing, Table, Text, section
from jaxalign.report.figures import Series
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from jaxalign.report.render import write_report
from jaxalign.report.wording import chance_of_many, countries, verdict

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = ("o", "s", "D", "^", "v", "P")
_LIMITS = (
    "Intervals are over items. They do not cover other seeds, wordings or countries.",
    "Runs may differ in more than one thing; a difference does not say which of them made it.",
)


def compare_report(record: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` with the figure.

    Args:
        record: What `jaxalign.methods.compare.compare_runs` returns.
        out: The folder.

    Returns:
        The paths of the two reports.
    """
    over = countries(len(record["countries"]))
    document = Document(
        title="Runs compared",
        summary=f"{len(record['runs'])} runs on the {record['items']} items of {record['survey']} "
        f"and the {over} that all of them have.",
        labels=warning_notes(record),
        sections=(
            section(
                "Scores",
                Text(f"The score is the {record['score']}: 1 where answers are people's own."),
                _figure(record, out),
            ),
            section("Differences", _differences(record), _by_chance(record)),
            section("What these scores do not prove", Listing(_LIMITS)),
        ),
    )
    return write_report(document, out)


def method_words(method: str) -> str:
    """Return a method in words; a way of asking of `jaxalign ask` as it is."""
    return METHODS[method].title if method in METHODS else method


def _figure(record: Mapping[str, Any], out: Path) -> Any:
    methods = list(dict.fromkeys(row["method"] for row in record["rows"]))
    found = {(row["run"], row["method"]): Estimate.read(row) for row in record["rows"]}
    keys = [
        Key(name, _COLOURS[n % len(_COLOURS)], "-", _MARKERS[n % len(_MARKERS)], 1.8)
        for n, name in enumerate(record["runs"])
    ]
    series = [
        Series(key, tuple(found.get((key.label, method)) for method in methods)) for key in keys
    ]
    names = [method_words(method) for method in methods]
    rows = tuple((name, *(s.values[i] for s in series)) for i, name in enumerate(names))
    return make_figure(
        out / FIGURES / "compare.png",
        [figures.dots("", names, series, "similarity to people, 1 is best")],
        "Score of each method in each run, with 95 % intervals over items.",
        "A row per method with a mark and an interval for each run; the numbers are in the table.",
        Table("Scores by method and run", ("Method", *record["runs"]), rows, 3),
        keys,
    )


def _differences(record: Mapping[str, Any]) -> Table | None:
    rows = tuple(
        (d["a"], method_words(d["method"]), Estimate.read(d), verdict(Estimate.read(d)))
        for d in record["differences"]
    )
    head = f"Minus {record['runs'][0]}"
    columns = ("Run", "Method", head, "It is")
    caption = "Differences from the first run by method, paired by item, with 95 % intervals"
    return Table(caption, columns, rows, 3, (head,)) if rows else None


def _by_chance(record: Mapping[str, Any]) -> Text | None:
    words = chance_of_many(len(record["differences"]))
    return Text(words) if words else None
