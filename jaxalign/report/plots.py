"""Pictures of a run: loss over generations, six scores on a radar, one panel per country; loss over
the steps of a fine-tuning.

Colours are Okabe and Ito's, told apart by colour-blind readers; lines differ in dashes as well.
Figures are made without pyplot, whose global state would outlive the call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DIMENSIONS = ("PDI", "IDV", "MAS", "UAI", "LTO", "IVR")

# Okabe, Ito (2008), "Color Universal Design".
_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _PURPLE = "#0072B2", "#CC79A7"

# name of a series -> (words in the legend, line style)
_SERIES = {
    "target": ("published scores", {"color": _BLACK, "linewidth": 2.2}),
    "naive": ("plain question", {"color": _ORANGE, "linestyle": "--"}),
    "persona": ("persona line", {"color": _PURPLE, "linestyle": "-."}),
    "icl": ("examples in context", {"color": _GREEN, "linestyle": ":", "linewidth": 2.2}),
    "tuned": ("tuned soft prompt", {"color": _BLUE, "linewidth": 2.2}),
}
_DPI = 150
FEW = 5  # points of a curve that are marked one by one
_LEAST_WIDTH = 5.6  # inches; a legend of two columns still fits


def convergence(
    path: Path,
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    lines: Mapping[str, Mapping[str, float]],
    unit: str = "loss: sum of score differences",
) -> None:
    """PNG of loss over generations, the first being 1. `losses[country]` is (best so far, median)
    after each; `lines[country]` holds the baselines' losses by name ("naive", "persona", "icl");
    `unit` says what a loss is."""
    figure, panels = _panels(len(losses), width=2.8, height=2.6)
    top = _top(losses, lines)
    for axes, (country, (best, median)) in zip(panels, losses.items(), strict=False):
        for name, loss in lines.get(country, {}).items():
            words, style = _SERIES[name]
            axes.axhline(loss, label=words, **style)
        x = np.arange(1, len(best) + 1)
        style = {"marker": "o" if len(best) <= FEW else None}  # one point is no line
        axes.plot(x, _finite(median), color=_SKY, label="median of the population", **style)
        style |= {"color": _BLUE, "linewidth": 2.2}
        axes.plot(x, _finite(best), label="best soft prompt so far", **style)
        count_generations(axes, len(best))
        axes.set_ylim(0, top)
        axes.set_title(country, fontsize=12, fontweight="bold")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("generation", fontsize=11)
    figure.supylabel(unit, fontsize=11)
    _finish(figure, panels[0], path)


def count_generations(axes: Axes, count: int) -> None:
    """An axis of generations 1 to `count`, ticks at whole ones."""
    aside = 0.5 if count <= FEW else 0
    axes.set_xlim(1 - aside, max(count, 1) + aside)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def radar(
    path: Path,
    profiles: Mapping[str, Mapping[str, Sequence[float]]],
    dimensions: Sequence[str] = DIMENSIONS,
) -> None:
    """PNG of score profiles. `profiles[country][series]` has a score per dimension; series are
    "target", "naive", "persona", "icl", "tuned". The axis spans 0 to 100, or more if scores do."""
    figure, panels = _panels(len(profiles), width=2.8, height=3.0, projection="polar")
    scores = [s for by_series in profiles.values() for six in by_series.values() for s in six]
    low = min(0, 25 * math.floor(min(scores) / 25))
    high = max(100, 25 * math.ceil(max(scores) / 25))
    angles = np.linspace(0, 2 * math.pi, len(dimensions), endpoint=False)
    for axes, (country, by_series) in zip(panels, profiles.items(), strict=False):
        for name in (name for name in _SERIES if name in by_series):
            words, style = _SERIES[name]
            six = [*by_series[name], by_series[name][0]]
            axes.plot(np.append(angles, angles[0]), six, label=words, **style)
            if name == "target":  # an area stays visible under the line that meets it
                axes.fill(angles, by_series[name], color="0.9", zorder=0)
        _radar_axes(axes, angles, dimensions, low, high)
        axes.set_title(country, fontsize=12, fontweight="bold")
    _finish(figure, panels[0], path)


def training_losses(path: Path, losses: Mapping[str, Mapping[int, float | None]]) -> None:
    """PNG of the losses of a fine-tuning in nats an answer token, `losses[name][step]`, the first
    name's as a line and others' as marked points; names without any are left out. Where the largest
    would hide the smallest, the axis is logarithmic."""
    figure = Figure(figsize=(_LEAST_WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = (_SKY, _ORANGE, _BLUE, _GREEN)
    for (name, by_step), colour in zip(losses.items(), colours, strict=False):
        if by_step:
            marked = name != next(iter(losses)) or len(by_step) <= FEW
            values = _finite([math.nan if v is None else v for v in by_step.values()])
            axes.plot(
                list(by_step), values, marker="o" if marked else None, color=colour, label=name
            )
    above_0 = [v for by_step in losses.values() for v in by_step.values() if v]
    if above_0 and max(above_0) > 10 * min(above_0):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel("loss, nats an answer token", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    _finish(figure, axes, path)


def _radar_axes(
    axes: Axes, angles: np.ndarray, dimensions: Sequence[str], low: float, high: float
) -> None:
    axes.set_theta_offset(math.pi / 2)  # the first dimension at the top, the rest clockwise
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, dimensions)
    axes.tick_params(axis="x", pad=4)
    axes.set_ylim(low, high)
    axes.set_yticks(np.arange(low, high + 1, 25 if high - low <= 100 else 50)[1:])
    axes.tick_params(axis="y", labelsize=7, labelcolor="0.4")
    axes.set_rlabel_position(180 / len(dimensions))
    axes.grid(color="0.85")
    axes.spines["polar"].set_color("0.8")


def _panels(
    count: int, width: float, height: float, projection: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of so many inches, at most four in a row."""
    columns = min(count, 4)
    rows = -(-count // columns)
    size = (max(width * columns, _LEAST_WIDTH), height * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    kinds = {"projection": projection} if projection else None
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw=kinds)
    panels = list(grid.flat)
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels


def _finish(figure: Figure, first: Axes, path: Path) -> None:
    """One legend above all panels; saved by a backend that needs no display."""
    handles, labels = first.get_legend_handles_labels()
    in_a_row = max(2, int(figure.get_figwidth() / 1.9))  # inches that the longest label takes
    figure.legend(
        handles, labels, loc="outside upper center", ncols=in_a_row, frameon=False, fontsize=10
    )
    figure.savefig(path, dpi=_DPI, facecolor="white", format="png")


def _top(
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    lines: Mapping[str, Mapping[str, float]],
) -> float:
    """Upper end of every loss axis, the same so that countries compare."""
    values = [v for pair in losses.values() for series in pair for v in series]
    values += [v for by_name in lines.values() for v in by_name.values()]
    return 1.08 * max((v for v in values if math.isfinite(v)), default=1.0)


def _finite(values: Sequence[float]) -> np.ndarray:
    """Infinities (members whose loss overflowed) as gaps in the line."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)
