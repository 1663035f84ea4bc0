"""Pictures of `experiments.culturespa`: methods and selection strategies with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxalign.methods.culturespa.result import METHODS
from jaxalign.report.palette import BLUE, GREEN, INK, LINE, MUTED, ORANGE, PURPLE, VERMILION

# Lines that are drawn, of those in `culture_lines.LINES`.
SHOWN_LINES = {
    "random_option": ("random option", ":", MUTED),
    "midpoint": ("scale midpoint", "-.", MUTED),
    "another_country": ("another country's majority", "--", ORANGE),
    "mean_of_others": ("mean of the others' majorities", "-", ORANGE),
    "own_mean": ("own country's mean answer", "-", GREEN),
}
_WORDS = {"crqpc": "CRQPC (changed)", "rds": "RDS (random)", "cds": "CDS (unchanged)",
          "p1": "P1, not fine-tuned"}  # fmt: skip


def write_plots(out: Path, result: Mapping[str, Any]) -> None:
    """`methods.png` and `selection.png`."""
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    draw_methods(axes, result)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, out / "methods.png")
    strategies(out / "selection.png", with_p1(result))


def with_p1(result: Mapping[str, Any]) -> dict[str, Any]:
    """The strategies' records, and what they are held against."""
    return result["selection"] | {"p1": result["methods"]["p1"]}


def draw_methods(axes: Axes, result: Mapping[str, Any]) -> None:
    """A row per method, and the lines that need no model."""
    shown = result["methods"]
    _rows(axes, [METHODS[name] for name in shown], list(shown.values()))
    for name, (words, style, colour) in SHOWN_LINES.items():
        if (mean := result["lines"][name]["mean"]) is not None:
            axes.axvline(mean, label=words, linestyle=style, color=colour)


def draw_strategies(axes: Axes, records: Mapping[str, Mapping[str, Any]]) -> None:
    """A row per strategy."""
    _rows(axes, [_WORDS.get(name, name) for name in records], list(records.values()))


def strategies(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """PNG of joint models by how their data were selected."""
    figure = Figure(figsize=(7.2, 0.45 * len(records) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    draw_strategies(axes, records)
    axes.set_title("Joint model by selection of its data", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white", format="png")


def _rows(axes: Axes, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """A row per method: the mean, both intervals and each seed; empty without answers."""
    known = [y for y, record in enumerate(records) if record["mean"] is not None]
    for y in known:
        record, first = records[y], y == known[0]
        axes.plot(record["interval"], [y, y], color=BLUE, linewidth=2,
                  label="95 %, questions" if first else None)  # fmt: skip
        if record["seed_interval"] is not None:
            axes.plot(record["seed_interval"], [y + 0.22] * 2, color=VERMILION, linewidth=2)
            axes.plot(record["by_seed"], np.full(len(record["by_seed"]), y + 0.22), "|",
                      color=PURPLE, markersize=7)  # fmt: skip
        axes.plot(record["mean"], y, "o", color=INK, markersize=5, label="mean" if first else None)
    axes.plot([], [], color=VERMILION, linewidth=2, label="95 %, seeds")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("cultural alignment score × 100, mean over countries", fontsize=9)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
