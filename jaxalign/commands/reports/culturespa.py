"""`report.md` and `report.html` of `experiments.culturespa`, from its result and its pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.culturespa_plots import (
    SHOWN_LINES,
    draw_methods,
    draw_strategies,
    with_p1,
)
from jaxalign.commands.reports.culturespa_tables import (
    REPLIES,
    pair_count,
    reply_rows,
    untrained_words,
)
from jaxalign.methods.culturespa.result import METHODS, SELECTION
from jaxalign.report.common import provenance
from jaxalign.report.document import (
    Cell,
    Document,
    Estimate,
    Figure,
    Key,
    Listing,
    Note,
    Section,
    Table,
    Text,
    section,
)
from jaxalign.report.drawing import Panel, drawings
from jaxalign.report.palette import BLUE, INK, PURPLE, VERMILION
from jaxalign.report.render import write_report
from jaxalign.stats.alignment import LINES

_ROW_KEYS = (
    Key("mean", INK, marker="o"),
    Key("95 %, questions", BLUE, "-"),
    Key("95 %, seeds", VERMILION, "-"),
    Key("each seed", PURPLE, marker="|"),
)
_SIMULATED = (
    "Simulated: nobody was asked. The countries' answers to this survey are made up by a program; "
    "no number here is a finding about people."
)
_LIMITS = (
    "A score is to be read beside the lines that need no model.",
    "Intervals over questions speak for other questions like these; intervals over seeds for other "
    "written questions, draws and adapters of the same program. Neither speaks for other models.",
    "The written questions follow the survey's own, as published: exact copies are removed, near "
    "ones are not. The test is not of unrelated questions.",
    "Fine-tuning learns what the same model said in character. It cannot learn what the model does "
    "not know of a country; it can only say it more firmly, or elsewhere.",
)


def write_culturespa_report(result: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Both reports' paths. `methods.png` and `selection.png` must be in `out`."""
    survey = result["survey"]
    document = Document(
        title="CultureSPA: does a model come nearer to cultures by its own answers?",
        summary=f"{len(result['settings']['countries'])} countries, {survey['items']} items of "
        f"{survey['name']}, {result['settings']['seeds']} seeds.",
        labels=(Note(_SIMULATED, "label"),) if survey["simulated"] else (),
        sections=(
            section("In short", Listing(statements(result), "What came out")),
            _methods(result, out),
            _selection(result, out),
            section("Guard: what fine-tuning may not break", _guard(result["guard"])),
            section("Questions", _questions(result["questions"])),
            *_replies(result),
            section("What these scores do not prove", Listing(_LIMITS)),
            provenance(result),
        ),
    )
    return write_report(document, out)


def statements(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The differences that the papers' claims rest on, and the guard, in words."""
    found = []
    for name, d in result["differences"].items():
        a, b = name.split("_minus_")
        if d["interval"] is None:
            found.append(f"{a} − {b}: {d['verdict']}.")
            continue
        low, high = d["interval"]
        found.append(
            f"{a} − {b}: {d['value']:+.2f} points, over questions {low:+.2f} to {high:+.2f}"
            + (
                ""
                if d["seed_interval"] is None
                else f", over seeds {d['seed_interval'][0]:+.2f} to {d['seed_interval'][1]:+.2f}"
            )
            + f": {d['verdict']}."
        )
    for method, change in result["guard"]["change"].items():
        within = "within" if change["within"] else "not within"
        found.append(
            f"Guard, {method}: {change['mean']:+.2f} points, {within} {result['guard']['limit']:g}."
        )
    found += untrained_words(result)
    if leaky := result["survey"]["leaky"]:
        found.append(
            f"{', '.join(leaky)} read answers of the very survey they are tested on, as published; "
            "--examples leak_free does not."
        )
    return tuple(found)


def _estimate(record: Mapping[str, Any], interval: str = "interval") -> Estimate:
    bounds = record[interval] or (None, None)
    return Estimate(record.get("mean", record.get("value")), *bounds)


def _methods(result: Mapping[str, Any], out: Path) -> Section:
    countries = result["settings"]["countries"]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            words,
            *(result["methods"][name]["countries"][c] for c in countries),
            _estimate(result["methods"][name]),
            _over_seeds(result["methods"][name]),
        )
        for name, words in METHODS.items()
        if name in result["methods"]
    )
    table = Table(
        "Score by method; intervals over questions, and over seeds", 
        ("Method", *countries, "Mean", "Seeds"), rows, digits=2,
    )  # fmt: skip
    lines = tuple((LINES[name], line["mean"]) for name, line in result["lines"].items())
    picture = Panel("", functools.partial(draw_methods, result=result), (8.6, 4.6), wide=True)
    figure = Figure(
        "Mean score of each method", "A row per method, its mean and intervals, and lines that "
        "need no model", out / "methods.png", drawings("methods", [picture]), table,
        (*_ROW_KEYS, *(Key(words, colour, style) for words, style, colour in SHOWN_LINES.values())),
    )  # fmt: skip
    return section(
        "Scores",
        Text(
            "The score is 100 × (1 − ‖answers − majority answers‖ / ‖ranges‖) over the items that "
            "were answered."
        ),
        figure,
        Table("Without any model", ("Line", "Mean"), lines, digits=2),
        _differences(result),
    )


def _over_seeds(record: Mapping[str, Any]) -> Cell:
    return None if record["seed_interval"] is None else _estimate(record, "seed_interval")


def _differences(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name.replace("_minus_", " − "), _estimate(d), _over_seeds(d), d["verdict"])
        for name, d in result["differences"].items()
    )
    columns = ("Difference", "Points, over questions", "Points, over seeds", "In words")
    return Table("Paired differences", columns, rows, digits=2, signed=columns[1:3])


def _selection(result: Mapping[str, Any], out: Path) -> Section:
    rows = tuple(
        (name.upper(), pair_count(result, method), _estimate(found), _over_seeds(found))
        for name, method in SELECTION.items()
        if (found := result["selection"].get(name))
    )
    columns = ("Selection", "Pairs", "Questions", "Seeds")
    table = Table("Joint model by selection", columns, rows, digits=2)
    draw = functools.partial(draw_strategies, records=with_p1(result))
    picture = Panel("", draw, (7.2, 2.8), wide=True)
    figure = Figure(
        "Joint model by selection of its data", "A row per strategy with its intervals",
        out / "selection.png", drawings("selection", [picture]), table, _ROW_KEYS,
    )  # fmt: skip
    return section("Selection", figure)


def _guard(guard: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, guard["before"], after["mean"], _over_seeds(
            {"mean": guard["change"][name]["mean"], **guard["change"][name]}
        ) or guard["change"][name]["mean"])
        for name, after in guard["after"].items()
    )  # fmt: skip
    columns = ("Model", "Before, %", "After, %", "Change, points")
    return Table(f"{guard['questions']} questions", columns, rows, digits=2, signed=columns[3:])


def _replies(result: Mapping[str, Any]) -> tuple[Section, ...]:
    """Where replies were drawn: how many of them are no answer."""
    rows = tuple(reply_rows(result))
    if not rows:
        return ()
    columns = ("Method", *REPLIES.values())
    return (section("Replies", Table("Replies without an answer", columns, rows)),)


def _questions(questions: Mapping[str, Any]) -> Table:
    counts = {n: questions[n] for n in ("asked_for", "requests", "parsed")}
    counts |= {f"removed: {name}": k for name, k in questions["removed"].items()}
    counts["left"] = questions["left"]
    rows = tuple((name.replace("_", " "), k) for name, k in counts.items())
    return Table("Over all seeds", ("", "Number"), rows)
