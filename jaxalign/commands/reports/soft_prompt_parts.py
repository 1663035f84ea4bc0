"""Figures and tables of the soft-prompt report, each from the same `result.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.presentations import TUNED, UNTUNED, named
from jaxalign.commands.reports.soft_prompt_record import (
    HELD_OUT,
    HELD_OUT_LINES,
    KEYS,
    Result,
    all_keys,
    has_scores,
    loss_digits,
    mean_loss,
    methods,
    never_tuned_on,
    shows_signal,
    trivial_lines,
    tuned_on,
    used_dimensions,
)
from jaxalign.methods.base import PERMUTED
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.methods.soft_prompt.settings import entry_labels
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure, matrix_table
from jaxalign.report.document import Estimate, Figure, Table, is_number
from jaxalign.report.figures import Series
from jaxalign.report.wording import joined, verdict
from jaxalign.stats.held_out import BASELINES

_MOST_GENERATIONS_SHOWN = 12


def headline_table(result: Result) -> Table:
    """Return the headline numbers of both surveys, side by side."""
    rows, (reading, _) = [], readings(result)
    sides = {TUNED: tuned_on(result), UNTUNED: never_tuned_on(result)}
    shown = [
        (compared, words, role)
        for compared, words in (
            (BASELINES, "strongest baseline"),
            (("start",), "prompt before tuning"),
            (("tuned",), "tuned"),
        )
        for role, names in sides.items()
        if names
    ]
    for country, entry in result["countries"].items():
        losses = [
            min(
                filter(is_number, (mean_loss(entry, m, sides[role], reading) for m in compared)),
                default=None,
            )
            for compared, _, role in shown
        ]
        change = Estimate.read(entry["held_out"].get("after_minus_strongest"))
        change_words = verdict(change, "nearer", "further away", signal=shows_signal(result))
        rows.append((country, *losses, change, change_words))
    columns = (
        "Country",
        *(f"Loss, {words} ({role})" for _, words, role in shown),
        "Held-out, tuned minus strongest baseline",
        "In words",
    )
    return Table(
        "Tuned survey (mean loss over presentations that were tuned on and over those that were "
        f"not, {reading_words(reading)} reading, 0 is best) and held-out survey",
        columns,
        tuple(rows),
        digits=(0, *[loss_digits(result)] * len(shown), 3, 0),
        signed=("Held-out, tuned minus strongest baseline",),
    )


def trivial_table(result: Result) -> Table | None:
    """Return the losses of answers that need no model, where the objective has any."""
    trivial = trivial_lines(result)
    rows = tuple((c, *(lines.get(n) for n in trivial)) for c, lines in result["trivial"].items())
    columns = ("Country", *(key.label for key in trivial.values()))
    caption = "Loss of answers that need no model"
    if "all_middle" in trivial:
        caption += (
            " (a uniform answer has the mean 3, and in the expected reading the loss of answering "
            "3; scores of other countries are those published)"
        )
    return Table(caption, columns, rows, loss_digits(result)) if trivial else None


def radar_figure(result: Result, out: Path) -> Figure | None:
    """Draw the profiles of published scores, plain question, examples and tuned prompt.

    None where fewer than three dimensions count: a radar of fewer axes has no area.
    """
    if not has_scores(result):
        return None
    used = [result["dimensions"].index(name) for name in used_dimensions(result)]
    names = [result["dimensions"][d].upper() for d in used]
    tuned, _ = readings(result)
    profiles = {
        country: {
            "target": [entry["target"][d] for d in used],
            **{name: [entry[name][tuned]["scores"][d] for d in used] for name in methods(result)},
        }
        for country, entry in result["countries"].items()
    }
    if len(names) < 3:
        return None
    shown = {"target": figures.TARGET, **{n: KEYS[n].as_line() for n in ("naive", "icl", "tuned")}}
    panels = figures.score_radars(names, profiles, shown)
    keys = {"target": figures.TARGET, **methods(result)}
    rows = tuple(
        (f"{c}, {key.label}", *p[name]) for c, p in profiles.items() for name, key in keys.items()
    )
    table = Table(f"Scores, {reading_words(tuned)} reading", ("Country and method", *names), rows)
    return make_figure(
        out / "radar.png",
        panels,
        f"Scores per country, {reading_words(tuned)} reading. Where the tuned line covers the "
        "published one, the target is met.",
        f"One radar per country with the axes {joined(names)}: published scores, plain question, "
        "examples in context and tuned prompt.",
        table,
        list(shown.values()),
    )


def factors_table(result: Result) -> Table | None:
    """Return the factor scores beside their targets, for an objective that has factors."""
    if not (factors := result.get("factors")):
        return None
    reading, _ = readings(result)
    rows = []
    for country, entry in result["countries"].items():
        rows.append((f"{country}, target", *entry["target"]))
        for method, key in methods(result).items():
            rows.append((f"{country}, {key.label}", *entry[method][reading]["scores"]))
    caption = f"Factor scores ({result['factor_scores']}), {reading_words(reading)} reading"
    return Table(caption, ("Country and method", *factors), tuple(rows), 3)


def held_out_figure(result: Result, out: Path) -> Figure:
    """Draw the held-out score of each method with its interval, a row per country."""
    entries, named = result["countries"], all_keys(result)
    keys = {name: named[method] for name, method in HELD_OUT.items()}
    keys["permuted"] = PERMUTED.legend()
    series = [
        Series(
            key.as_mark(interval=True),
            tuple(Estimate.read(e["held_out"].get(name)) for e in entries.values()),
        )
        for name, key in keys.items()
        if any(name in e["held_out"] for e in entries.values())
    ]
    lines = result["measure"]["lines"]
    series += [
        Series(key, tuple(lines.get(country, {}).get(name) for country in entries))
        for name, key in HELD_OUT_LINES.items()
    ]
    rows = tuple((c, *(s.values[i] for s in series)) for i, c in enumerate(entries))
    columns = ("Country", *(s.key.label for s in series))
    return make_figure(
        out / FIGURES / "held_out.png",
        [figures.dots("", list(entries), series, "held-out score, 1 is best")],
        "Held-out score per country with its 95 % interval, beside answers that need no model "
        "(upright strokes).",
        "A row per country: the held-out score of each method with its interval, and two lines "
        "that need no model. The numbers are in the table below.",
        Table("Held-out scores", columns, rows, digits=3),
        [s.key for s in series],
    )


def differences_table(result: Result) -> Table:
    """Return a table of differences paired item by item, and what can be said of each."""
    against = {
        "strongest": "the strongest baseline",
        "before": "the plain question",
        "start": "the prompt before tuning",
        "permuted": "other countries' prompts",
    }
    rows = []
    for country, entry in result["countries"].items():
        for name, words in against.items():
            difference = Estimate.read(entry["held_out"].get(f"after_minus_{name}"))
            if difference is not None:
                found = verdict(difference, "nearer", "further", signal=shows_signal(result))
                rows.append((country, words, difference, found))
    return Table(
        "Tuned prompt on the held-out survey, paired item by item",
        ("Country", "Against", "Difference", "In words"),
        tuple(rows),
        digits=3,
        signed=("Difference",),
    )


def transfer_figure(result: Result, out: Path) -> Figure | None:
    """Draw the score of each country's prompt against each country; None for one country."""
    matrix, names = result["held_out"].get("matrix"), list(result["countries"])
    if not matrix or len(names) < 2:
        return None
    own = [(i, i) for i in range(len(names))]
    panel = figures.heat_map("", names, names, matrix, "prompt tuned for", "scored against", 3, own)
    return make_figure(
        out / FIGURES / "transfer.png",
        [panel],
        "Transfer matrix: held-out score of each country's prompt (row) against each country "
        "(column). Framed: own country. Prompts that had learned their country would be highest "
        "in the frame of their row and of their column.",
        "Heat map of prompts by countries; the numbers are in the cells and in the table below.",
        matrix_table("Transfer matrix", "Prompt tuned for", names, names, matrix, 3),
    )


def convergence_figure(result: Result, out: Path) -> Figure | None:
    """Draw the losses over generations, from `metrics.jsonl`; None if the run has none."""
    rows = _metrics(result, out / "metrics.jsonl")
    if not rows:
        return None
    shown = {name: KEYS[name].as_line() for name in ("naive", "persona", "icl")}
    tuned, _ = readings(result)
    # What was minimised; the baselines' prompts are made of tokens and have no penalty.
    minimised = "loss + penalty" if result["settings"].get("penalty") else "loss"
    levels = {
        country: {n: entry[n][tuned]["loss"] for n in shown}
        for country, entry in result["countries"].items()
    }
    losses = {
        country: tuple([row[country].get(n) for row in rows] for n in ("best_so_far", "median"))
        for country in levels
    }
    count = len(result["seeds"])
    seeds = f", mean over {count} seeds" if count > 1 else ""
    panels, legend = figures.convergence(losses, levels, shown, _with_unit(minimised, result))
    return make_figure(
        out / "convergence.png",
        panels,
        f"{minimised.capitalize()} over generations, {reading_words(tuned)} reading, "
        f"{named(tuned_on(result))}{seeds}, with the baselines' losses as lines across.",
        f"One panel per country: the best {minimised} so far and the median of the population "
        "over the generations.",
        _convergence_table(rows, list(losses), minimised, loss_digits(result)),
        legend,
    )


def _with_unit(minimised: str, result: Result) -> str:
    return f"{minimised} in points" if has_scores(result) else minimised


def _metrics(result: Result, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics that have all countries, as means over seeds."""
    if not path.exists():
        return []
    entries = [(country, seed) for country in result["countries"] for seed in result["seeds"]]
    labels = dict(zip(entries, entry_labels(entries), strict=True))
    rows = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line) if line.strip() else {}
        if all(label in row for label in labels.values()):
            means = {
                country: _mean_metrics([row[labels[country, s]] for s in result["seeds"]])
                for country in result["countries"]
            }
            rows.append({"generation": row["generation"], **means})
    return rows


def _mean_metrics(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return means over seeds; None where a seed has no finite value."""
    means = {}
    for name in ("best_so_far", "median"):
        values = [metrics.get(name) for metrics in by_seed]
        means[name] = sum(values) / len(values) if all(map(is_number, values)) else None
    return means


def _convergence_table(
    rows: Sequence[Mapping[str, Any]], countries: Sequence[str], minimised: str, digits: int
) -> Table:
    """Return a table of about a dozen generations, evenly spread from the first to the last."""
    last = len(rows) - 1
    count = min(_MOST_GENERATIONS_SHOWN, len(rows))
    picked = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    columns = [f"{c}, {name}" for c in countries for name in ("best so far", "median")]
    cells = tuple(
        (
            str(rows[i]["generation"]),
            *(rows[i][c].get(n) for c in countries for n in ("best_so_far", "median")),
        )
        for i in picked
    )
    caption = f"{minimised.capitalize()} over generations"
    return Table(caption, ("Generation", *columns), cells, digits)
