"""The pictures of `jaxalign culturespa`: methods and selections with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.commands.reports.culturespa_tables import title
from jaxalign.methods.base import P1
from jaxalign.report.palette import (
    BLUE,
    GREEN,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILION,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Answers without a model that are drawn as vertical lines: name in words, line style, colour.
SHOWN_LINES = {
    "random_option": ("random option", ":", MUTED),
    "midpoint": ("scale midpoint", "-.", MUTED),
    "another_country": ("another country's majority", "--", ORANGE),
    "mean_of_others": ("mean of the others' majorities", "-", ORANGE),
    "own_mean": ("own country's mean answer", "-", GREEN),
}


def write_plots(out: Path, result: Mapping[str, Any]) -> None:
    """Write `methods.png` and `selection.png` to the folder `out`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    draw_methods(figure.add_subplot(), result)
    save(figure, out / "methods.png", legend="outside upper center")
    plot_selections(out / "selection.png", with_p1(result))


def with_p1(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records of the selections, and that of P1, with which they are compared."""
    return result["selection"] | {P1.key: result["methods"][P1.key]}


def draw_methods(axes: Axes, result: Mapping[str, Any]) -> None:
    """Draw a row per method, and vertical lines for answers that need no model."""
    draw_rows(axes, result["methods"])
    for name, (words, style, color) in SHOWN_LINES.items():
        if (mean := result["lines"][name]["mean"]) is not None:
            axes.axvline(mean, label=words, linestyle=style, color=color)


def plot_selections(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a PNG with a row for each joint model, by how its data were selected."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.45 * len(records) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    draw_rows(axes, records)
    axes.set_title("The joint model by how its training data were selected", fontsize=11)
    save(figure, path, legend="outside lower center")


def draw_rows(axes: Axes, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a row per record: the mean, both intervals and each seed; empty without answers.

    Args:
        axes: Where to draw.
        records: Entries of `methods` in `result.json`, by the key of a method or any other name.
    """
    known = [(y, key) for y, key in enumerate(records) if records[key]["mean"] is not None]
    for y, key in known:
        record, first = records[key], y == known[0][0]
        label = "95 %, questions" if first else None
        axes.plot(record["interval"], [y, y], color=BLUE, linewidth=2, label=label)
        if record["seed_interval"] is not None:
            # Seeds stand a little below the row, so that both intervals can be seen.
            seeds_y = np.full(len(record["by_seed"]), y + 0.22)
            axes.plot(record["seed_interval"], [y + 0.22] * 2, color=VERMILION, linewidth=2)
            axes.plot(record["by_seed"], seeds_y, "|", color=PURPLE, markersize=7)
        axes.plot(record["mean"], y, "o", color=INK, markersize=5, label="mean" if first else None)
    axes.plot([], [], color=VERMILION, linewidth=2, label="95 %, seeds")
    axes.set_yticks(range(len(records)), [title(key) for key in records])
    axes.set_ylim(len(records) - 0.4, -0.6)
    axes.set_xlabel("cultural alignment score × 100, mean over countries", fontsize=9)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def save(figure: Figure, path: Path, legend: str | None = None) -> None:
    """Write a figure as PNG, with a legend of its first axes at `legend` if given."""
    if legend is not None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc=legend, ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, facecolor="white", format="png")
