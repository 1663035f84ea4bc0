"""The result of a sweep as a picture: losses and held-out scores over the prompt length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.methods.soft_prompt.result import reading_words
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from jaxalign.stats.lines import TRIVIAL_NAMES

# Strategies differ by shape as well as by colour.
_STYLES = (
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (PURPLE, "D"),
    (SKY, "v"),
    (VERMILION, "P"),
    ("#000000", "X"),
)
# What strategies are compared with: dashes of different lengths, in grey.
_LOSS_LINES = {"naive": "plain question", "all_middle": TRIVIAL_NAMES["all_middle"]}
_SCORE_LINES = {
    "naive": "plain question",
    "uniform": TRIVIAL_NAMES["uniform"],
    "mean_of_others": TRIVIAL_NAMES["mean_of_others"],
}
_DASHES = {
    "plain question": (0, (6, 2)),
    TRIVIAL_NAMES["all_middle"]: (0, (1, 2)),
    TRIVIAL_NAMES["uniform"]: (0, (1, 2)),
    TRIVIAL_NAMES["mean_of_others"]: (0, (4, 2, 1, 2)),
}


def write_plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw losses, and below them held-out scores: a column per model, a line per strategy.

    Bars are 95 % intervals: of losses over seeds, of held-out scores over seeds and items. Thin
    vertical lines reach from the easiest to the hardest country, hollow marks are the loss in the
    presentations that are not tuned on. Grey lines are the plain question and answers that need no
    model.
    """
    models = list(dict.fromkeys(g["model"] for g in result["groups"]))
    strategies = list(dict.fromkeys(g["strategy"] for g in result["groups"]))
    lengths = sorted({g["prompt_length"] for g in result["groups"]})
    reading = result["reading"]
    scored = any(g["held_out"] for g in result["groups"])
    rows = 2 if scored else 1
    figure = new_figure((max(5.6, 4.2 * len(models)), 1.0 + 3.2 * rows))
    panels = figure.subplots(rows, len(models), squeeze=False, sharey="row", sharex=True)
    for column, model in enumerate(models):
        of_model = [g for g in result["groups"] if g["model"] == model]
        for i, strategy in enumerate(strategies):
            groups = [g for g in of_model if g["strategy"] == strategy]
            offset = 0.12 * (i - (len(strategies) - 1) / 2)
            x = np.array([lengths.index(g["prompt_length"]) + offset for g in groups])
            _draw_losses(panels[0, column], strategy, groups, reading, x, i)
            if scored:
                _draw_scores(panels[1, column], groups, x, i)
        _draw_lines(panels[0, column], of_model, "loss", reading)
        panels[0, column].set_ylim(bottom=0)
        panels[0, column].set_title(model, fontsize=12, fontweight="bold")
        if scored:
            _draw_lines(panels[1, column], of_model, "held_out", reading)
        for axes in panels[:, column]:
            axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
            axes.set_xlim(-0.6, len(lengths) - 0.4)
            axes.grid(color="0.9", axis="y")
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel(f"loss in points\n({reading_words(reading)} reading)", fontsize=11)
    if scored:
        panels[1, 0].set_ylabel("held-out score\n(1: the country's own)", fontsize=11)
    figure.supxlabel(
        "prompt tokens\n(bars: 95 %, losses over seeds, scores over seeds and items;\n"
        "thin lines: easiest to hardest country; hollow: presentations not tuned on)",
        fontsize=9,
    )
    entries = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: h for h, label in zip(handles, labels, strict=True)}
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0] in _DASHES))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=min(3, len(entries)),
        frameon=False,
        fontsize=9,
    )
    save_figure(path, figure)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, np.float64)  # None becomes NaN, which leaves a gap


def _draw_losses(
    axes: Any,
    name: str,
    groups: Sequence[Mapping[str, Any]],
    reading: str,
    x: np.ndarray,
    style: int,
) -> None:
    """Draw one strategy's losses."""
    color, marker = _STYLES[style % len(_STYLES)]
    spreads = [g[reading] for g in groups]
    low, high = (_numbers([s[end] for s in spreads]) for end in ("low", "high"))
    axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.5)
    means = _numbers([s["mean"] for s in spreads])
    bars = _bars(means, [s["interval"] for s in spreads])
    _errorbar(axes, x, means, bars, color, marker, label=name)
    untuned = _numbers([(g["untuned"] or {}).get(reading) for g in groups])
    axes.plot(x, untuned, marker, color=color, markerfacecolor="none", linestyle="none")


def _draw_scores(axes: Any, groups: Sequence[Mapping[str, Any]], x: np.ndarray, style: int) -> None:
    """Draw one strategy's held-out scores."""
    color, marker = _STYLES[style % len(_STYLES)]
    scores = [g["held_out"] for g in groups]
    means = _numbers([s and s["mean"] for s in scores])
    _errorbar(axes, x, means, _bars(means, scores), color, marker)


def _bars(means: np.ndarray, intervals: Sequence[Mapping[str, Any] | None]) -> np.ndarray:
    """Return the lengths of error bars below and above; 0 where there is no interval."""
    low, high = (_numbers([i and i[end] for i in intervals]) for end in ("low", "high"))
    return np.maximum(np.nan_to_num(np.stack([means - low, high - means])), 0.0)


def _errorbar(
    axes: Any, x: Any, y: Any, bars: Any, color: str, marker: str, label: str | None = None
) -> None:
    style = {"color": color, "marker": marker, "capsize": 4, "linewidth": 1.6}
    axes.errorbar(x, y, yerr=bars, label=label, **style)


def _draw_lines(axes: Any, groups: Sequence[Mapping[str, Any]], kind: str, reading: str) -> None:
    """Draw what a model's groups are compared with, which is the same for all of them."""
    group = groups[0]
    naive = group["naive"].get(reading if kind == "loss" else "held_out")
    values = {**group["lines"][kind], "naive": naive}
    for name, words in (_LOSS_LINES if kind == "loss" else _SCORE_LINES).items():
        value = values.get(name)
        if value is not None:
            axes.axhline(value, color="0.45", linewidth=1.2, linestyle=_DASHES[words], label=words)
