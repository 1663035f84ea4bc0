"""What a soft-prompt run says about its own measure: readings, seeds, lines, gap, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import presentations, validity
from jaxalign.commands.reports.soft_prompt_record import (
    Result,
    methods,
    shows_signal,
    tuned_on,
)
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure
from jaxalign.report.document import Block, Estimate, Figure, Key, Table, Text, is_number
from jaxalign.report.figures import Series
from jaxalign.report.palette import BLUE, VERMILION
from jaxalign.report.wording import verdict
from jaxalign.stats.lines import LINE_NAMES

_MOST_ROWS = 12  # rows of a table that is open at first
_REMOVED = Key("tuned survey: share of the loss removed", BLUE, "-", "", 2.4)
_CARRIED = Key("held-out survey: share of the distance to people removed", VERMILION, "--", "", 2.0)


def readings_table(result: Result) -> Table:
    """Return each method's loss on the tuned presentations under every reading of answers."""
    tuned, _ = readings(result)
    entries = result["countries"]
    names = [r for r in ("expected", "most_likely", "sampled") if _has_reading(entries, r)]
    rows = tuple(
        (f"{country}, {key.label}", *(_loss(entry[method], r) for r in names))
        for country, entry in entries.items()
        for method, key in methods(result).items()
    )
    headings = [f"{reading_words(r)}{' (tuned)' if r == tuned else ''}" for r in names]
    return Table(
        f"Loss under each reading of the answers, {presentations.named(tuned_on(result))}",
        ("Country and method", *headings),
        rows,
        folded=len(rows) > _MOST_ROWS,
    )


def _has_reading(entries: Mapping[str, Any], reading: str) -> bool:
    return any(reading in entry["naive"] for entry in entries.values())


def _loss(record: Mapping[str, Any], reading: str) -> float | None:
    return record.get(reading, {}).get("loss")


# Seeds


def seeds_table(result: Result) -> Table | None:
    """Return the tuned loss of every seed, and the mean with its interval; None for one seed."""
    rows = []
    for country, summary in (result["measure"].get("seeds") or {}).items():
        if summary and len(summary["by_seed"]) > 1:
            rows.append(
                (country, *summary["by_seed"], Estimate.read(summary), Estimate.read(summary["student"]))
            )
    if not rows:
        return None
    seeds = result["settings"]["seeds"]
    columns = (
        "Country",
        *(f"Seed {seed}" for seed in seeds),
        "Mean (over seeds and presentations)",
        "Mean (over seeds, Student's t)",
    )
    return Table("Loss of the tuned prompt by seed, with 95 % intervals", columns, tuple(rows))


# Answers that need no model


def lines_table(result: Result, survey: str, caption: str, digits: int) -> Table | None:
    """Return what answers that need no model score, beside the plain question and the tuned prompt.

    Args:
        result: The content of `result.json`.
        survey: "tuned" or "held_out".
        caption: Title of the table.
        digits: Decimals.
    """
    by_country = (result["measure"].get("lines") or {}).get(survey)
    if not by_country:
        return None
    names = [name for name in LINE_NAMES if any(name in by for by in by_country.values())]
    rows = tuple((country, *(by.get(n) for n in names)) for country, by in by_country.items())
    return Table(caption, ("Country", *(LINE_NAMES[n] for n in names)), rows, digits)


# The gap between the tuned and the held-out survey


def gap_figure(result: Result, out: Path) -> Figure | None:
    """Draw how much of the distance is removed on both surveys over the generations."""
    gaps = result["measure"].get("gap") or {}
    gaps = {country: gap for country, gap in gaps.items() if gap and len(gap["generations"]) > 1}
    if not gaps:
        return None
    curves = ("tuned_removed", "held_out_removed")
    shown = [100 * v for g in gaps.values() for name in curves for v in g[name] if is_number(v)]
    low, high = min([0, *shown]), max([0, *shown])
    margin = 0.06 * (high - low) or 1.0
    panels = [
        figures.curves(
            country,
            [
                Series(key, tuple(None if v is None else 100 * v for v in gap[name]))
                for key, name in zip((_REMOVED, _CARRIED), curves, strict=True)
            ],
            [],
            "generation",
            "removed, %",
            high + margin,
            low - margin,
            gap["generations"],
        )
        for country, gap in gaps.items()
    ]
    rows = tuple(
        (f"{country}, generation {generation}", *values)
        for country, gap in gaps.items()
        for generation, *values in zip(
            gap["generations"], gap["tuned_loss"], gap["held_out"], *_percent(gap), strict=True
        )
    )
    columns = (
        "Country and generation",
        "Loss, tuned survey",
        "Held-out score",
        "Loss removed, %",
        "Held-out distance removed, %",
        "Gap, percentage points",
    )
    return make_figure(
        out / FIGURES / "gap.png",
        panels,
        "Gap between the tuned and the held-out survey over the generations. Of the distance from "
        "people at the start, the share that has been removed: on the tuned survey the loss, on "
        "the held-out survey 1 − score. Where the tuned curve rises and the other stays, the "
        "search learns the tuned survey and nothing beyond it.",
        "One panel per country with two curves over the generations: the share of the loss removed "
        "on the tuned survey and the share of the distance removed on the held-out survey.",
        Table("The gap over generations", columns, rows, (0, 1, 3, 1, 1, 1)),
        (_REMOVED, _CARRIED),
    )


def _percent(gap: Mapping[str, Any]) -> list[list[float | None]]:
    names = ("tuned_removed", "held_out_removed", "gap")
    return [[None if v is None else 100 * v for v in gap[name]] for name in names]


# Presentations, constant answers, agreement


def measure_blocks(result: Result) -> list[Block | None]:
    """Return what the answers owe to the presentation of the questions."""
    measure, compared = result["measure"], methods(result)
    tuned, reading = tuned_on(result), reading_words(readings(result)[0])
    correlations = measure.get("correlation") or {}
    spreads = {
        f"{country}, {compared[method].label}": spread
        for country, by_method in (measure.get("spread") or {}).items()
        for method, spread in by_method.items()
        if method in compared
    }
    return [
        _correlations_table(result, correlations),
        presentations.spread_table(
            f"Loss under each presentation and its spread, {reading} reading",
            "Country and method",
            spreads,
            tuned,
        ),
    ]


def _correlations_table(result: Result, correlations: Mapping[str, Any]) -> Table | None:
    signal = shows_signal(result)
    rows = tuple(
        (key.label, found := Estimate.read(correlations[m]), _correlation_verdict(found, signal))
        for m, key in methods(result).items()
        if correlations.get(m)
    )
    columns = ("Method", "Correlation", "The answers follow")
    caption = "Item means under presentation A against B (numbers reversed), correlated over items"
    return Table(caption, columns, rows, 2) if rows else None


def _correlation_verdict(found: Estimate, signal: bool) -> str:
    return verdict(found, "what the options mean", "the number, whatever stands behind it", signal)
