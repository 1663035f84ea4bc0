"""Figures and tables of the soft-prompt report, each from the same `result.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.methods.base import PERMUTED, SOFT_PROMPT_METHODS, soft_prompt_methods
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.optim.strategy import DIFFERENTIAL_EVOLUTION
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure, matrix_table
from jaxalign.report.document import Estimate, Figure, Key, Table, is_number
from jaxalign.report.figures import Series
from jaxalign.report.palette import INK, MUTED, VERMILION
from jaxalign.report.wording import joined, number, verdict

KEYS = {method.key: method.legend() for method in SOFT_PROMPT_METHODS}
_MOST_GENERATIONS_SHOWN = 12
_TRIVIAL = {
    "all_middle": Key("answering 3 to everything", MUTED, "", "|"),
    "uniform_random": Key("random answers", VERMILION, "", "|"),
    "smallest_integer": Key("best whole answers", INK, "", "|"),
}
# Entries of `held_out` in `result.json`, and the method that each is about.
_HELD_OUT = {
    "before": "naive",
    "persona": "persona",
    "icl": "icl",
    "start": "start",
    "after": "tuned",
    "gradient": "gradient",
}


def methods(result: Mapping[str, Any]) -> dict[str, Key]:
    """Return the methods that the run compared; the gradient control may have been left out."""
    entry = next(iter(result["countries"].values()))
    return {name: key for name, key in _keys(result).items() if name in entry}


def _keys(result: Mapping[str, Any]) -> dict[str, Key]:
    """Return all methods, named as fits the run."""
    algorithm = result["settings"].get("strategy.algorithm", DIFFERENTIAL_EVOLUTION)
    named = soft_prompt_methods(algorithm, readings(result)[0])
    return {name: method.legend() for name, method in named.items()}


def trivial_lines(result: Mapping[str, Any]) -> dict[str, Key]:
    """Return the lines that need no model, where the objective has any."""
    known = next(iter(result["trivial"].values()))
    return {name: key for name, key in _TRIVIAL.items() if name in known}


def has_scores(result: Mapping[str, Any]) -> bool:
    """Return whether the objective is about the six scores."""
    return "dimensions" in result


def used_dimensions(result: Mapping[str, Any]) -> list[str]:
    """Return the dimensions that enter the loss: those with a target in some country."""
    targets = [entry["target"] for entry in result["countries"].values()]
    return [n for d, n in enumerate(result["dimensions"]) if any(is_number(t[d]) for t in targets)]


def constants_words(result: Mapping[str, Any]) -> str:
    """Return C of the dimensions used, and where it comes from, as a sentence."""
    values = zip(result["dimensions"], result["constants"], strict=True)
    known = {name: value for name, value in values if value is not None}
    anchor = result["settings"].get("anchor")
    if not anchor and len(set(known.values())) == 1:
        return f"C = {number(next(iter(known.values())), 0)} in every dimension."
    each = ", ".join(f"{name.upper()} {number(value)}" for name, value in known.items())
    fitted = f" (least squares on {joined(anchor)})" if anchor else ""
    return f"C: {each}{fitted}."


def loss_table(result: Mapping[str, Any], reading: str) -> Table:
    """Return a table with a row per country: the methods' losses in `reading`, then trivial ones.

    Args:
        result: The content of `result.json`.
        reading: "expected" or "most_likely".
    """
    caption = f"Loss in the {reading_words(reading)} reading"
    trivial = trivial_lines(result)
    keys = [*methods(result).values(), *trivial.values()]
    rows = tuple(
        (
            country,
            *(entry[name][reading]["loss"] for name in methods(result)),
            *(result["trivial"][country].get(name) for name in trivial),
        )
        for country, entry in result["countries"].items()
    )
    return Table(caption, ("Country", *(key.label for key in keys)), rows)


def headline_table(result: Mapping[str, Any]) -> Table:
    """Return the headline numbers of both surveys, side by side."""
    rows, (tuned, other) = [], readings(result)
    for country, entry in result["countries"].items():
        losses = [entry[name][tuned]["loss"] for name in ("naive", "icl", "tuned")]
        change = Estimate.read(entry["held_out"].get("after_minus_before"))
        change_words = verdict(change, "nearer", "further away")
        rows.append((country, *losses, entry["tuned"][other]["loss"], change, change_words))
    columns = (
        "Country",
        "Loss, plain question",
        "Loss, examples",
        "Loss, tuned",
        f"Loss, tuned, {reading_words(other)}",
        "Held-out change",
        "Held-out change in words",
    )
    return Table(
        f"Tuned survey (loss in the {reading_words(tuned)} reading, 0 is best) and held-out survey",
        columns,
        tuple(rows),
        digits=(0, 1, 1, 1, 1, 3, 0),
        signed=("Held-out change",),
    )


def loss_figure(result: Mapping[str, Any], out: Path) -> Figure:
    """Draw the loss of each method and of the trivial lines, a row of marks per country."""
    entries, (tuned, _) = result["countries"], readings(result)
    series = [
        *(
            Series(key.as_mark(), tuple(e[name][tuned]["loss"] for e in entries.values()))
            for name, key in methods(result).items()
        ),
        *(
            Series(key, tuple(result["trivial"][c].get(name) for c in entries))
            for name, key in trivial_lines(result).items()
        ),
    ]
    return make_figure(
        out / FIGURES / "losses.png",
        [figures.dots("", list(entries), series, "loss in points, 0 is best")],
        f"Loss of each method beside the lines that need no model (upright strokes), "
        f"{reading_words(tuned)} reading.",
        "A row of marks per country: the loss of each method and of three trivial lines. The "
        "numbers are in the table below.",
        loss_table(result, tuned),
        [s.key for s in series],
    )


def valid_table(result: Mapping[str, Any]) -> Table:
    """Return a table of the probability that a reply begins with an option at all."""
    rows = tuple(
        (country, *(100 * entry[name]["valid_mass"] for name in methods(result)))
        for country, entry in result["countries"].items()
    )
    caption = "Probability that a reply begins with an option at all, in per cent"
    return Table(
        caption, ("Country", *(key.label for key in methods(result).values())), rows, folded=True
    )


def radar_figure(result: Mapping[str, Any], out: Path) -> Figure | None:
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
        drawn=True,
    )


def held_out_figure(result: Mapping[str, Any], out: Path) -> Figure:
    """Draw the held-out score of each method with its interval, a row per country."""
    entries, named = result["countries"], _keys(result)
    keys = {name: named[method] for name, method in _HELD_OUT.items()}
    keys["permuted"] = PERMUTED.legend()
    series = [
        Series(
            key.as_mark(interval=True),
            tuple(Estimate.read(e["held_out"].get(name)) for e in entries.values()),
        )
        for name, key in keys.items()
        if any(name in e["held_out"] for e in entries.values())
    ]
    rows = tuple((c, *(s.values[i] for s in series)) for i, c in enumerate(entries))
    columns = ("Country", *(s.key.label for s in series))
    return make_figure(
        out / FIGURES / "held_out.png",
        [figures.dots("", list(entries), series, "held-out score, 1 is best")],
        "Held-out score per country with 95 % intervals over items.",
        "A row per country: the held-out score of each method with its interval. The numbers are "
        "in the table below.",
        Table("Held-out scores", columns, rows, digits=3),
        [s.key for s in series],
    )


def differences_table(result: Mapping[str, Any]) -> Table:
    """Return a table of differences paired item by item, and what can be said of each."""
    against = {
        "before": "the plain question",
        "start": "the prompt before tuning",
        "permuted": "other countries' prompts",
    }
    rows = []
    for country, entry in result["countries"].items():
        for name, words in against.items():
            difference = Estimate.read(entry["held_out"].get(f"after_minus_{name}"))
            if difference is not None:
                rows.append((country, words, difference, verdict(difference, "nearer", "further")))
    return Table(
        "Tuned prompt on the held-out survey, paired item by item",
        ("Country", "Against", "Difference", "In words"),
        tuple(rows),
        digits=3,
        signed=("Difference",),
    )


def transfer_figure(result: Mapping[str, Any], out: Path) -> Figure | None:
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


def permutation_words(test: Mapping[str, Any] | None) -> str:
    """Return the permutation test's result as sentences."""
    if not test or not is_number(test.get("others")):
        return "Permutation test: not made, because it needs two countries."
    p, count = test["p_value"], test["assignments"]
    conclusion = "significant" if p <= 0.05 else "not significant"
    return (
        f"Permutation test: prompts score {number(test['own'], 3)} on their own country and "
        f"{number(test['others'], 3)} on the others. Of {count:,} ways to assign prompts to "
        f"countries, a fraction p = {number(p, 3)} does as well (the smallest possible is "
        f"{number(1 / count, 3)}): {conclusion} at the 5 % level."
    )


def convergence_figure(result: Mapping[str, Any], out: Path) -> Figure | None:
    """Draw the losses over generations, from `metrics.jsonl`; None if the run has none."""
    rows = _metrics(out / "metrics.jsonl", list(result["countries"]))
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
    panels, legend = figures.convergence(losses, levels, shown, f"{minimised} in points")
    return make_figure(
        out / "convergence.png",
        panels,
        f"{minimised.capitalize()} over generations, {reading_words(tuned)} reading, with the "
        "baselines' losses as lines across.",
        f"One panel per country: the best {minimised} so far and the median of the population "
        "over the generations.",
        _convergence_table(rows, list(losses), minimised),
        legend,
        drawn=True,
    )


def _metrics(path: Path, countries: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics that have all countries."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [row for row in rows if all(country in row for country in countries)]


def _convergence_table(
    rows: Sequence[Mapping[str, Any]], countries: Sequence[str], minimised: str
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
    return Table(f"{minimised.capitalize()} over generations", ("Generation", *columns), cells)
