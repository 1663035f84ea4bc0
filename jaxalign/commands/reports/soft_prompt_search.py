"""The search in the soft-prompt report: losses over generations, from a run's `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.soft_prompt_parts import KEYS
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report import figures
from jaxalign.report.common import make_figure
from jaxalign.report.document import Figure, Table

_MOST_GENERATIONS_SHOWN = 12


def convergence_figure(result: Mapping[str, Any], out: Path) -> Figure | None:
    """From `metrics.jsonl`; None where the run left none."""
    rows = _metrics(out / "metrics.jsonl", list(result["countries"]))
    if not rows:
        return None
    shown = {name: KEYS[name].as_line() for name in ("naive", "persona", "icl")}
    tuned, _ = readings(result)
    # What was minimised; the baselines' prompts are made of tokens and have no penalty.
    words = "loss + penalty" if result["settings"].get("penalty") else "loss"
    levels = {
        country: {n: entry[n][tuned]["loss"] for n in shown}
        for country, entry in result["countries"].items()
    }
    losses = {
        country: tuple([row[country].get(n) for row in rows] for n in ("best_so_far", "median"))
        for country in levels
    }
    panels, legend = figures.convergence(losses, levels, shown, f"{words} in points")
    return make_figure(
        out / "convergence.png",
        panels,
        f"{words.capitalize()} over generations, {reading_words(tuned)} reading, with the "
        "baselines' losses as lines across.",
        f"One panel per country: the best {words} so far and the median of the population over the "
        "generations.",
        _convergence_table(rows, list(losses), words),
        legend,
        drawn=True,
    )


def _metrics(path: Path, countries: Sequence[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [row for row in rows if all(country in row for country in countries)]


def _convergence_table(
    rows: Sequence[Mapping[str, Any]], countries: Sequence[str], words: str
) -> Table:
    """About a dozen generations, evenly spread, the first and the last among them."""
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
    return Table(f"{words.capitalize()} over generations", ("Generation", *columns), cells)
