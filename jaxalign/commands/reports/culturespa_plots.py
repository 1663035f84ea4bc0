"""The pictures of `jaxalign culturespa`.

Methods and selections with their intervals, the methods country by country, the fine-tuned models
under every prompt style, and the selected pairs by topic and country.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.commands.reports.culturespa_tables import title
from jaxalign.methods.base import JOINT, METHODS, P1, SPECIFIC, UNAWARE
from jaxalign.report.document import Estimate, Key
from jaxalign.report.drawing import Panel, new_figure, save_figure, save_panels
from jaxalign.report.figures import Series, dots, heat_map
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
from jaxalign.stats.alignment import LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Answers without a model that are drawn as vertical lines: name in words, line style, colour.
SHOWN_LINES = {
    "random_option": (LINES["random_option"], ":", MUTED),
    "midpoint": (LINES["midpoint"], "-.", MUTED),
    "another_country": (LINES["another_country"], "--", ORANGE),
    "mean_of_others": (LINES["mean_of_others"], "-", ORANGE),
    "own_mean": (LINES["own_mean"], "-", GREEN),
}

_MOST_COUNTRIES = 9  # in a column of the figure by country


def write_plots(out: Path, result: Mapping[str, Any]) -> None:
    """Write the pictures that a result has data for to the folder `out`.

    methods.png, selection.png   mean scores
    countries.png                scores by country
    pairs.png                    selected pairs by topic and country
    prompting.png                fine-tuned models under every prompt style
    """

    figure = new_figure((8.6, 5.2))
    draw_methods(figure.add_subplot(), result)
    save(figure, out / "methods.png", legend="outside upper center")
    plot_selections(out / "selection.png", with_p1(result))
    save_panels(out / "countries.png", country_panels(result), country_keys(result))
    save_panels(out / "pairs.png", [pairs_panel(result)])
    if "prompting" in result:
        plot_prompting(out / "prompting.png", result["prompting"])


def country_keys(result: Mapping[str, Any]) -> list[Key]:
    """Return the legend of `country_panels`."""
    return [METHODS[key].legend().as_mark(interval=True) for key in shown_methods(result)]


def country_panels(result: Mapping[str, Any]) -> list[Panel]:
    """Return the score of the main methods by country, with intervals over questions.

    Countries are in the order of the unaware model's score, so that it is seen who gains.
    """
    keys, methods = shown_methods(result), result["methods"]
    countries = sorted(
        result["settings"]["countries"], key=lambda c: -(methods[keys[0]]["countries"][c] or 0)
    )
    halves = -(-len(countries) // _MOST_COUNTRIES)
    each = -(-len(countries) // halves)
    panels = []
    for first in range(0, len(countries), each):
        rows = countries[first : first + each]
        series = [
            Series(METHODS[key].legend(), tuple(country_score(result, key, c) for c in rows))
            for key in keys
        ]
        panels.append(dots("", rows, series, "cultural alignment score × 100"))
    shown = [country_score(result, key, c) for key in keys for c in countries]
    ends = [end for e in shown if e.has_interval for end in (e.low, e.high)]
    if not ends:
        return panels
    low, high = min(ends) - 1, max(ends) + 1  # the same for all panels
    return [_with(panel, lambda axes: axes.set_xlim(low, high)) for panel in panels]


def _with(panel: Panel, more: Callable[[Axes], object]) -> Panel:
    """Return a panel that is finished by `more`."""

    def draw(axes: Axes) -> None:
        panel.draw(axes)
        more(axes)

    return dataclasses.replace(panel, draw=draw)


def shown_methods(result: Mapping[str, Any]) -> list[str]:
    """Return the keys of the methods that are compared country by country."""
    return [m.key for m in (UNAWARE, P1, JOINT, SPECIFIC) if m.key in result["methods"]]


def country_score(result: Mapping[str, Any], method: str, country: str) -> Estimate:
    """Return a method's score in a country, with its interval over questions."""
    record = result["methods"][method]
    bounds = record["country_intervals"][country] or (None, None)
    return Estimate(record["countries"][country], *bounds)


def pair_shares(result: Mapping[str, Any]) -> tuple[list[str], list[list[float | None]]]:
    """Return the topics, and of each the percentage of its questions that is selected by country.

    The pairs are those of the joint model (CRQPC), of all seeds together.
    """
    by_seed = [seed["topics"] for seed in result["selected"].values()]
    topics = list(dict.fromkeys(topic for by_topic in by_seed for topic in by_topic))
    shares: list[list[float | None]] = []
    for topic in topics:
        found = [by_topic[topic] for by_topic in by_seed if topic in by_topic]
        questions = sum(each["questions"] for each in found)
        shares.append(
            [
                100 * sum(each["pairs"][country] for each in found) / questions
                for country in result["settings"]["countries"]
            ]
        )
    return topics, shares


def pairs_panel(result: Mapping[str, Any]) -> Panel:
    """Return a heat map of the selected pairs: topics by countries."""
    topics, shares = pair_shares(result)
    return heat_map(
        "",
        topics,
        result["settings"]["countries"],
        shares,
        "topic of the question",
        "% of the topic's questions selected",
    )


def plot_prompting(path: Path, prompting: Mapping[str, Any]) -> None:
    """Write a PNG with the unchanged and the fine-tuned models under every prompt style."""
    save_panels(path, prompting_panels(prompting), prompting_keys(prompting))


def prompting_keys(prompting: Mapping[str, Any]) -> list[Key]:
    """Return the legend of `prompting_panels`."""
    return [_model_key(model).as_mark(interval=True) for model in prompting["scores"]]


def prompting_panels(prompting: Mapping[str, Any]) -> list[Panel]:
    """Return the scores under every style, and what fine-tuning adds under each."""
    styles = list(next(iter(prompting["scores"].values())))
    rows = [METHODS[style].label for style in styles]
    scores = [
        Series(_model_key(model), tuple(_with_interval(by_style[style]) for style in styles))
        for model, by_style in prompting["scores"].items()
    ]
    gains = [
        Series(_model_key(model), tuple(_with_interval(by_style[style]) for style in styles))
        for model, by_style in prompting["minus_base"].items()
    ]
    added = dots("What fine-tuning adds", rows, gains, "points, fine-tuned minus unchanged")
    return [
        dots("Score under each style", rows, scores, "cultural alignment score × 100"),
        _with(added, lambda axes: axes.axvline(0, color=MUTED, linewidth=1)),
    ]


def _model_key(model: str) -> Key:
    if model in METHODS:
        return METHODS[model].legend()
    return Key("unchanged model", ORANGE, "-", "o")


def _with_interval(record: Mapping[str, Any]) -> Estimate:
    mean = record.get("mean", record.get("value"))
    return Estimate(mean, *(record["interval"] or (None, None)))


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

    figure = new_figure((7.2, 0.45 * len(records) + 1.6))
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
    """Write a figure as PNG and SVG, with a legend of its first axes at `legend` if given."""
    if legend is not None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc=legend, ncols=3, frameon=False, fontsize=9)
    save_figure(path, figure)
