"""What a soft-prompt run says about its own measure: readings, seeds, lines, gap, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import presentations, validity
from jaxalign.commands.reports.soft_prompt_record import (
    Result,
    loss_digits,
    methods,
    never_tuned_on,
    shows_signal,
    tuned_on,
)
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure
from jaxalign.report.document import Block, Estimate, Figure, Key, Table, is_number
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
        loss_digits(result),
        folded=len(rows) > _MOST_ROWS,
    )


def _has_reading(entries: Mapping[str, Any], reading: str) -> bool:
    return any(reading in entry["naive"] for entry in entries.values())


def _loss(record: Mapping[str, Any], reading: str) -> float | None:
    return record.get(reading, {}).get("loss")


# Seeds


def seeds_tables(result: Result) -> list[Table]:
    """Return the tuned prompt's numbers by seed, with intervals; none for one seed."""
    if len(result["seeds"]) < 2:
        return []
    signal = shows_signal(result)
    captions = {
        "loss": ("Loss of the tuned prompt", loss_digits(result)),
        "held_out": ("Held-out score of the tuned prompt", 3),
        "after_minus_before": ("Held-out score, tuned prompt minus plain question", 3),
    }
    return [
        _seeds_table(result, name, caption, digits, signal)
        for name, (caption, digits) in captions.items()
    ]


def _seeds_table(result: Result, name: str, caption: str, digits: int, signal: bool) -> Table:
    difference = name == "after_minus_before"
    rows = []
    for country, by_name in (result["measure"]["seeds"] or {}).items():
        if by_name and (summary := by_name[name]):
            mean = Estimate.read(summary)
            cells = (country, *summary["by_seed"], mean, Estimate.read(summary["student"]))
            words = (verdict(mean, "nearer", "further away", signal),) if difference else ()
            rows.append((*cells, *words))
    seeds = [f"Seed {seed}" for seed in result["seeds"]]
    over = ["Mean (over seeds and items)", "Mean (over seeds alone, Student's t)"]
    columns = ("Country", *seeds, *over, *(["In words"] if difference else []))
    signed = tuple(columns[1:-1]) if difference else ()
    return Table(f"{caption}, by seed, with 95 % intervals", columns, tuple(rows), digits, signed)


# Answers that need no model


def lines_table(result: Result) -> Table | None:
    """Return the held-out scores of answers that need no model, beside those of the methods."""
    by_country = result["measure"]["lines"]
    names = [name for name in LINE_NAMES if any(name in by for by in by_country.values())]
    entries = result["countries"]
    beside = {"before": "plain question", "after": "tuned soft prompt"}
    rows = tuple(
        (
            country,
            *((entries[country]["held_out"][n] or {}).get("mean") for n in beside),
            *(lines.get(n) for n in names),
        )
        for country, lines in by_country.items()
    )
    columns = ("Country", *beside.values(), *(f"Line: {LINE_NAMES[n]}" for n in names))
    caption = "Held-out scores beside answers that need no model"
    return Table(caption, columns, rows, 3) if rows else None


# The gap between the tuned and the held-out survey


def gap_figure(result: Result, out: Path) -> Figure | None:
    """Draw how much of the distance is removed on both surveys over the generations."""
    gaps = result["measure"].get("gap") or {}
    gaps = {country: gap for country, gap in gaps.items() if gap and len(gap["generations"]) > 1}
    if not gaps:
        return None
    curves = ("tuned_removed", "held_out_removed")
    shown = [100 * v for g in gaps.values() for name in curves for v in g[name] if is_number(v)]
    # At least ten points high, so that a search that moved nothing looks like one.
    low, high = min([0, *shown]), max([10, *shown])
    margin = 0.06 * (high - low)
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
    digits = (0, loss_digits(result), 3, 1, 1, 1)
    return make_figure(
        out / FIGURES / "gap.png",
        panels,
        "Gap between the tuned and the held-out survey over the generations. Of the distance from "
        "people at the start, the share that has been removed: on the tuned survey the loss, on "
        "the held-out survey 1 − score. Where the tuned curve rises and the other stays, the "
        "search learns the tuned survey and nothing beyond it.",
        "One panel per country with two curves over the generations: the share of the loss removed "
        "on the tuned survey and the share of the distance removed on the held-out survey.",
        Table("The gap over generations", columns, rows, digits),
        (_REMOVED, _CARRIED),
    )


def _percent(gap: Mapping[str, Any]) -> list[list[float | None]]:
    names = ("tuned_removed", "held_out_removed", "gap")
    return [[None if v is None else 100 * v for v in gap[name]] for name in names]


# Presentations, constant answers, agreement


def presentation_blocks(result: Result) -> list[Block | None]:
    """Return what the losses and scores owe to the presentation of the questions."""
    measure, labels = result["measure"], _labels(result)
    tuned, signal = tuned_on(result), shows_signal(result)
    roles = dict.fromkeys(tuned, presentations.TUNED)
    roles |= dict.fromkeys(never_tuned_on(result), presentations.UNTUNED)
    return [
        presentations.presentations_table(roles),
        *(
            presentations.gains_table(labels[method], gains, signal, loss_digits(result))
            for method, gains in measure["gain"].items()
            if method in labels
        ),
        presentations.correlations_table(
            {labels[m]: by for m, by in _by_method(measure["correlation"]).items() if m in labels},
            {"tuned_survey": "Tuned survey", "held_out": "Held-out survey"},
        ),
        _spread_table(
            result,
            "loss",
            f"Loss under each presentation, {reading_words(readings(result)[0])} reading, and its "
            "spread",
            loss_digits(result),
        ),
    ]


def held_out_spread_table(result: Result) -> Table | None:
    """Return the held-out scores under each presentation, tuned on or not."""
    caption = "Held-out score under each presentation, and its spread"
    return _spread_table(result, "held_out", caption, 3)


def _spread_table(result: Result, which: str, caption: str, digits: int) -> Table | None:
    labels = _labels(result)
    spreads = {
        f"{country}, {labels[method]}": spread
        for country, by_method in result["measure"]["spread"][which].items()
        for method, spread in by_method.items()
        if method in labels
    }
    folded = len(spreads) > _MOST_ROWS
    return presentations.spread_table(
        caption, "Country and method", spreads, tuned_on(result), digits, folded
    )


def answer_blocks(result: Result) -> list[Block | None]:
    """Return what the answers are like: constant, valid, agreeing, different between countries."""
    measure, labels = result["measure"], _labels(result)

    def named(by_method: Mapping[str, Any] | None) -> dict[str, Any]:
        return {labels[m]: record for m, record in (by_method or {}).items() if m in labels}

    return [
        presentations.constants_table(
            "The mark (number or letter) given most often, and its share of the answers to the "
            "tuned survey over all countries",
            "Method",
            named(measure["constant"]),
        ),
        _valid_table(result),
        _replies_table(result),
        validity.agreement_table(named(measure["agreement"])),
        validity.dispersion_table(named(measure["dispersion"])),
    ]


def _labels(result: Result) -> dict[str, str]:
    return {method: key.label for method, key in methods(result).items()}


def _by_method(by_survey: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn records by survey and method into records by method and survey."""
    found: dict[str, dict[str, Any]] = {}
    for survey, by_method in by_survey.items():
        for method, record in by_method.items():
            found.setdefault(method, {})[survey] = record
    return found


def _valid_table(result: Result) -> Table:
    """Return the probability that a reply begins with an option, under each presentation."""
    compared, names = methods(result), (*tuned_on(result), *never_tuned_on(result))
    entries = result["countries"].values()

    def mean(method: str, name: str) -> float | None:
        masses = [e[method]["presentations"].get(name, {}).get("valid_mass") for e in entries]
        known = [mass for mass in masses if is_number(mass)]
        return 100 * sum(known) / len(known) if known else None

    rows = tuple((key.label, *(mean(m, n) for n in names)) for m, key in compared.items())
    caption = (
        "Probability that a reply begins with an option at all, in per cent, mean over countries"
    )
    headings = (presentations.heading(name, tuned_on(result)) for name in names)
    return Table(caption, ("Method", *headings), rows)


def _replies_table(result: Result) -> Table | None:
    """Return how many sampled replies name no option; None where none were sampled."""
    counts = {"replies": 0, "unreadable": 0, "out_of_range": 0, "option_lists": 0}
    rows = []
    for method, key in methods(result).items():
        found = [c for e in result["countries"].values() if (c := e[method].get("counts"))]
        if found:
            rows.append((key.label, *(sum(c[name] for c in found) for name in counts)))
    columns = ("Method", "Replies", "No number", "Number of no option", "Only a list of options")
    return Table("Sampled replies that gave no answer", columns, tuple(rows)) if rows else None
