"""The result of a sweep: a row per model, strategy and prompt length, in a table and a picture.

    reading                                      the reading that was tuned
    edition, dimensions, anchor                  edition and dimensions of the published scores, and
                                                 the countries that C was fitted on
    groups[].{model,strategy,prompt_length,cells,candidates}
    groups[].constants                           C by dimension (null: not used)
    groups[].{expected,most_likely}.{mean,seeds,low,high,countries}; .failed

`mean` is the mean of the cells' losses; `seeds` the standard deviation, over seeds, of the mean
over countries (null for one seed); `low` and `high` the mean over seeds of the easiest and of the
hardest country; `failed` the number of cells whose loss is not finite, which the other numbers
leave out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands.reports.soft_prompt_record import constants_words
from jaxalign.commands.sweep.plan import group_name
from jaxalign.methods.soft_prompt.result import reading_words
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from jaxalign.runs import versions
from jaxalign.runs.console import print_table
from jaxalign.stats.vsm import READINGS
from jaxalign.surveys.hofstede import DIMENSIONS

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


def make_result(
    rows: Sequence[Mapping[str, Any]],
    base_config: Settings,
    constants: Mapping[str, Sequence[float | None] | None],
) -> dict[str, Any]:
    """Return the content of `result.json`.

    Args:
        rows: The cells' records, in the order of the sweep.
        base_config: The settings that all cells share.
        constants: C by dimension, for each group's name.
    """
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = row["model"], row["strategy"], row["prompt_length"]
        groups.setdefault(key, []).append(row)
    entries = []
    for (model, strategy, length), cells in groups.items():
        entries.append(
            {
                "model": model,
                "strategy": strategy,
                "prompt_length": length,
                "cells": len(cells),
                "candidates": sum(cell["candidates"] for cell in cells),
                "constants": constants.get(group_name(model, strategy, length)),
                **{reading: _spread(cells, reading) for reading in READINGS},
            }
        )
    return {
        "cells": len(rows),
        "reading": base_config.reading,
        "edition": base_config.edition,
        "dimensions": list(DIMENSIONS),
        "anchor": list(base_config.anchor),
        "groups": entries,
        "versions": versions(),
    }


def _spread(cells: Sequence[Mapping[str, Any]], reading: str) -> dict[str, Any]:
    """Return mean and spread of the cells' losses in one reading."""
    losses = [(c["country"], c["seed"], c["loss"][reading]) for c in cells]
    finite = [loss for loss in losses if loss[2] is not None]
    by_country = _means((country, loss) for country, _, loss in finite)
    by_seed = _means((seed, loss) for _, seed, loss in finite)
    return {
        "mean": statistics.fmean(loss for *_, loss in finite) if finite else None,
        "seeds": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        "low": min(by_country.values(), default=None),
        "high": max(by_country.values(), default=None),
        "countries": by_country,
        "failed": len(losses) - len(finite),
    }


def _means(pairs: Any) -> dict[Any, float]:
    """Return the mean value of each key, from pairs of key and value."""
    by_key: dict[Any, list[float]] = {}
    for key, value in pairs:
        by_key.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in by_key.items()}


def show_result(result: Mapping[str, Any]) -> None:
    """Print the table."""
    rows, reading = [], result["reading"]
    (other,) = set(READINGS) - {reading}
    for group in result["groups"]:
        spread = group[reading]
        rows.append(
            [
                group["model"],
                group["strategy"],
                group["prompt_length"],
                group["cells"],
                spread["mean"],
                spread["seeds"],
                spread["low"],
                spread["high"],
                group[other]["mean"],
                spread["failed"],
            ]
        )
    columns = (
        "model",
        "strategy",
        "tokens",
        "cells",
        "mean loss",
        "± seeds",
        "easiest",
        "hardest",
        reading_words(other),
        "failed",
    )
    print_table(
        f"Loss (sum of score differences; {reading_words(reading)} reading), easiest and hardest "
        "country",
        columns,
        rows,
    )
    for line in dict.fromkeys(_constants(result, group) for group in result["groups"]):
        print(line)


def _constants(result: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Return C of a model in words; all its strategies and prompt lengths share it."""
    if group["constants"] is None:
        return f"{group['model']}: C is not on record"
    settings = {"settings": {"anchor": result["anchor"]}}
    return f"{group['model']}: " + constants_words({**result, **group, **settings})


def write_plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the mean loss over the prompt length: a panel per model, a line per strategy.

    Bars are the standard deviation over seeds; thin lines reach from the easiest to the hardest
    country.
    """

    models = list(dict.fromkeys(g["model"] for g in result["groups"]))
    strategies = list(dict.fromkeys(g["strategy"] for g in result["groups"]))
    lengths = sorted({g["prompt_length"] for g in result["groups"]})
    reading = result["reading"]
    figure = new_figure((max(5.6, 4.2 * len(models)), 4.0))
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, model in zip(panels, models, strict=True):
        for i, strategy in enumerate(strategies):
            groups = [
                g for g in result["groups"] if (g["model"], g["strategy"]) == (model, strategy)
            ]
            offset = 0.12 * (i - (len(strategies) - 1) / 2)
            x = [lengths.index(g["prompt_length"]) + offset for g in groups]
            _draw(axes, strategy, [g[reading] for g in groups], x, i)
        axes.set_title(model, fontsize=12, fontweight="bold")
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        axes.set_xlim(-0.6, len(lengths) - 0.4)
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9", axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "prompt tokens\n(bars: ± one deviation over seeds; thin lines: easiest to hardest country)",
        fontsize=10,
    )
    figure.supylabel(
        f"loss: sum of score differences\n({reading_words(reading)} reading)", fontsize=11
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False
    )
    figure.savefig(path, dpi=150, facecolor="white", format="png")


def _draw(
    axes: Any, name: str, groups: Sequence[Mapping[str, Any]], x: Sequence[float], style: int
) -> None:
    """Draw one strategy's line, from its groups' spreads; missing losses leave a gap."""
    color, marker = _STYLES[style % len(_STYLES)]

    def column(name: str) -> np.ndarray:
        return np.array([g[name] for g in groups], np.float64)  # None becomes NaN

    axes.vlines(x, column("low"), column("high"), color=color, linewidth=1, alpha=0.5)
    axes.errorbar(
        x,
        column("mean"),
        yerr=np.nan_to_num(column("seeds")),
        color=color,
        marker=marker,
        capsize=4,
        linewidth=1.6,
        label=name,
    )
