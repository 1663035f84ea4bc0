"""Which strategy of a sweep wins: at equal evaluations, cell by cell, and whether it is told apart.

Strategies are ranked by their mean loss within one model and prompt length, and, where there are
several lengths, over all of them. Only those that evaluated equally many candidates a search stand
in one ranking. A difference pairs cells: the same country, seed and prompt length, searched by
either strategy. It is averaged over countries (and lengths) first, and its interval is Student's
over seeds, so it says whether other seeds would give the same winner; not other countries.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.stats.intervals import seed_interval

Row = Mapping[str, Any]


def make_rankings(rows: Sequence[Row], reading: str) -> list[dict[str, Any]]:
    """Return the rankings of a sweep's cells, as `rankings` of `result.json`.

    Args:
        rows: The cells' records, in the order of the sweep.
        reading: The reading of the losses.

    Returns:
        A record per model, prompt length and number of evaluations, and one over all lengths
        (`prompt_length` null) for strategies that have cells at each: `model`, `prompt_length`,
        `evaluations` (of one search), and `strategies`, the best first: `strategy`, `mean`,
        `cells`, `failed` (without a finite loss), and `behind`, how much higher its loss is than
        the first's (null for the first).
    """
    rankings = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        lengths = list(dict.fromkeys(row["prompt_length"] for row in of_model))
        for length in lengths:
            cells = [row for row in of_model if row["prompt_length"] == length]
            rankings += _rankings(model, length, cells, reading)
        if len(lengths) > 1:
            rankings += _rankings(model, None, of_model, reading)
    return rankings


def paired_difference(
    rows: Sequence[Row], others: Sequence[Row], reading: str
) -> dict[str, Any] | None:
    """Compare the losses of two strategies in the cells that both have.

    Args:
        rows: Cells of one strategy.
        others: Cells of the strategy that is subtracted.
        reading: The reading of the losses.

    Returns:
        `mean`, `low` and `high` of the difference (both bounds null with one seed), and how many of
        the `pairs` have a `higher`, and how many a `lower`, loss than the other; None where no cell
        has a finite loss in both.
    """
    found = _losses(others, reading)
    pairs = [
        (key[-1], loss - found[key]) for key, loss in _losses(rows, reading).items() if key in found
    ]
    if not pairs:
        return None
    by_seed: dict[int, list[float]] = {}
    for seed, difference in pairs:
        by_seed.setdefault(seed, []).append(difference)
    means = np.array([statistics.fmean(values) for values in by_seed.values()])
    interval = seed_interval(means)
    bounds = interval.record() if interval else {"low": None, "high": None}
    return {
        "mean": float(means.mean()),
        **bounds,
        "pairs": len(pairs),
        "higher": sum(difference > 0 for _, difference in pairs),
        "lower": sum(difference < 0 for _, difference in pairs),
    }


def _rankings(
    model: str, length: int | None, cells: Sequence[Row], reading: str
) -> list[dict[str, Any]]:
    """Return one ranking for each number of evaluations that strategies have in common."""
    by_evaluations: dict[int, dict[str, list[Row]]] = {}
    for row in cells:
        by_strategy = by_evaluations.setdefault(row["candidates"], {})
        by_strategy.setdefault(row["strategy"], []).append(row)
    return [
        {
            "model": model,
            "prompt_length": length,
            "evaluations": evaluations,
            "strategies": _ordered(strategies, reading),
        }
        for evaluations, strategies in sorted(by_evaluations.items())
    ]


def _ordered(strategies: Mapping[str, Sequence[Row]], reading: str) -> list[dict[str, Any]]:
    """Return the strategies, that of the lowest mean loss first, one without a loss last."""
    entries = []
    for strategy, own in strategies.items():
        losses = _losses(own, reading).values()
        mean = statistics.fmean(losses) if losses else None
        entries.append(
            {
                "strategy": strategy,
                "mean": mean,
                "cells": len(own),
                "failed": len(own) - len(losses),
            }
        )
    entries.sort(key=lambda entry: math.inf if entry["mean"] is None else entry["mean"])
    best = strategies[entries[0]["strategy"]]
    for place, entry in enumerate(entries):
        own = strategies[entry["strategy"]]
        entry["behind"] = paired_difference(own, best, reading) if place else None
    return entries


def _losses(rows: Sequence[Row], reading: str) -> dict[tuple[int, str, int], float]:
    """Return the finite losses by prompt length, country and seed."""
    return {
        (row["prompt_length"], row["country"], row["seed"]): row["loss"][reading]
        for row in rows
        if row["loss"][reading] is not None
    }
