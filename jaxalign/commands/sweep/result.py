"""The result of a sweep: a row per model, strategy and prompt length.

    warnings                                     what to know before any number: kind and text
                                                 (`jaxalign.stats.result_warnings`)
    reading                                      the reading that was tuned
    presentations.{tuned,untuned}                names
    edition, dimensions, anchor                  edition and dimensions of the published scores, and
                                                 the countries that C was fitted on
    groups[].{model,strategy,algorithm,prompt_length,cells,candidates}
    groups[].valid_mass                          probability that a reply begins with an option
    groups[].constants                           C by dimension (null: not used)
    groups[].READING.{mean,seeds,interval,low,high,countries}; .failed
    groups[].presentations.A.READING             mean loss in one presentation, tuned on or not
    groups[].untuned.READING                     mean loss in the presentations that are not tuned
                                                 on, averaged (null if there are none)
    groups[].held_out.{mean,low,high,student,by_seed,countries}
    groups[].held_out_minus_naive                the same of the difference, paired by item
    groups[].naive.{READING,held_out}            the plain question
    groups[].lines.{loss,held_out}.NAME          answers that need no model
    groups[].validity                            the validity gate of the model's personas on the
                                                 held-out survey (null: it has no such country)
    rankings[]                                   who wins at equal evaluations
                                                 (`jaxalign.commands.sweep.ranking`)

READING is expected or most_likely, and sampled where replies were drawn. `mean` is the mean of the
cells' losses under the presentations that are tuned on; `seeds` the standard deviation, over seeds,
of the mean over countries, and `interval` Student's 95 % interval of it (both null for one seed);
`low` and `high` the mean over seeds of the easiest and of the hardest country; `failed` the number
of cells whose loss is not finite, which the other numbers leave out.

Held-out scores are in [0, 1], 1 where the answers are the country's own; null where the held-out
survey has none of the countries. Their interval (95 %) resamples seeds and items together, after
the mean over countries; `student` is Student's over seeds. Lines and the plain question are means
over countries.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.commands.sweep.plan import group_name
from jaxalign.commands.sweep.ranking import make_rankings
from jaxalign.commands.sweep.result_warnings import warnings_of
from jaxalign.core.files import finite_or_none
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.runs import versions
from jaxalign.stats.intervals import seed_interval
from jaxalign.stats.seeds import over_seeds
from jaxalign.surveys.hofstede import DIMENSIONS

Row = Mapping[str, Any]


def make_result(
    rows: Sequence[Row],
    base_config: Settings,
    programs: Mapping[str, Mapping[str, Any]],
    algorithms: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of `result.json`.

    Args:
        rows: The cells' records, in the order of the sweep.
        base_config: The settings that all cells share.
        programs: The content of `programs.json`, by a group's name.
        algorithms: The algorithm of each strategy, by the strategy's name.
    """
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        key = row["model"], row["strategy"], row["prompt_length"]
        groups.setdefault(key, []).append(row)
    entries = []
    for (model, strategy, length), cells in groups.items():
        facts = programs.get(group_name(model, strategy, length), {})
        entries.append(
            {
                "model": model,
                "strategy": strategy,
                "algorithm": algorithms[strategy],
                "prompt_length": length,
                "cells": len(cells),
                "candidates": sum(cell["candidates"] for cell in cells),
                "valid_mass": mean(cell["valid_mass"] for cell in cells),
                "constants": facts.get("constants"),
                **_losses(cells),
                **_held_out(cells, facts),
                **_compared(cells, facts),
                "validity": facts.get("validity"),
            }
        )
    return finite_or_none(
        {
            "warnings": warnings_of(rows, programs),
            "cells": len(rows),
            "reading": base_config.reading,
            "presentations": _presentations(rows, base_config),
            "edition": base_config.edition,
            "dimensions": list(DIMENSIONS),
            "anchor": list(base_config.anchor),
            "groups": entries,
            "rankings": make_rankings(rows, base_config.reading),
            "versions": versions(),
        }
    )


def _presentations(rows: Sequence[Row], base_config: Settings) -> dict[str, list[str]]:
    """Return the names of the presentations; which are tuned on may differ between models."""
    known = list(dict.fromkeys(name for row in rows for name in row["presentations"]))
    tuned = {name for row in rows for name in row["tuned_presentations"]}
    return {
        "tuned": [name for name in known if name in tuned],
        "untuned": [name for name in known if name not in tuned],
    }


def _losses(cells: Sequence[Row]) -> dict[str, Any]:
    """Return the losses of a group's cells: under what is tuned on, and in each presentation."""
    readings = list(cells[0]["loss"])

    def means(of: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
        return {reading: mean(values) for reading, values in of.items()}

    names = list(cells[0]["presentations"])
    untuned = [cell["untuned"] for cell in cells if cell["untuned"]]
    return {
        **{reading: _spread(cells, reading) for reading in readings},
        "presentations": {
            name: means(
                {r: [cell["presentations"][name]["loss"][r] for cell in cells] for r in readings}
            )
            for name in names
        },
        "untuned": means({r: [loss["loss"][r] for loss in untuned] for r in readings})
        if untuned
        else None,
    }


def _spread(cells: Sequence[Row], reading: str) -> dict[str, Any]:
    """Return mean and spread of the cells' losses in one reading."""
    losses = [(c["country"], c["seed"], c["loss"][reading]) for c in cells]
    finite = [loss for loss in losses if loss[2] is not None]
    by_country = _means((country, loss) for country, _, loss in finite)
    by_seed = _means((seed, loss) for _, seed, loss in finite)
    interval = seed_interval(np.array(list(by_seed.values())))
    return {
        "mean": statistics.fmean(loss for *_, loss in finite) if finite else None,
        "seeds": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        "interval": interval.record() if interval else None,
        "low": min(by_country.values(), default=None),
        "high": max(by_country.values(), default=None),
        "countries": by_country,
        "failed": len(losses) - len(finite),
    }


def _held_out(cells: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the held-out scores of a group's cells, and what they are above the plain question."""
    naive = {c: record["held_out"] for c, record in facts.get("naive", {}).items()}
    scores = [(c["country"], c["seed"], c["held_out"]) for c in cells if c["held_out"]]
    if not scores:
        return {"held_out": None, "held_out_minus_naive": None}
    countries = list(dict.fromkeys(country for country, *_ in scores))
    seeds = list(dict.fromkeys(seed for _, seed, _ in scores))
    values_SxCxQ = np.full((len(seeds), len(countries), len(scores[0][2])), np.nan)
    naive_CxQ = np.full(values_SxCxQ.shape[1:], np.nan)
    for country, seed, items in scores:
        values_SxCxQ[seeds.index(seed), countries.index(country)] = np.array(items, float)
    for c, country in enumerate(countries):
        if naive.get(country):
            naive_CxQ[c] = np.array(naive[country], float)
    by_country = {
        country: mean(values_SxCxQ[:, c][~np.isnan(values_SxCxQ[:, c])].tolist())
        for c, country in enumerate(countries)
    }
    return {
        "held_out": _summary(values_SxCxQ) | {"countries": by_country},
        "held_out_minus_naive": _summary(values_SxCxQ - naive_CxQ),
    }


def _summary(values_SxCxQ: np.ndarray) -> dict[str, Any]:
    """Return a mean with its intervals over seeds and items."""
    found = over_seeds(_mean_over_countries(values_SxCxQ))
    empty = {"mean": None, "low": None, "high": None, "student": None, "by_seed": []}
    return found.record() if found else empty


def _mean_over_countries(values_SxCxQ: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values_SxCxQ)
    count = known.sum(axis=1)
    total = np.where(known, values_SxCxQ, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _compared(cells: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the cells are compared with, as means over their countries."""
    countries = list(dict.fromkeys(cell["country"] for cell in cells))
    naive = [r for c in countries if (r := facts.get("naive", {}).get(c))]
    lines = [r for c in countries if (r := facts.get("lines", {}).get(c))]
    readings = naive[0]["loss"] if naive else ()
    return {
        "naive": {
            **{reading: mean([r["loss"][reading] for r in naive]) for reading in readings},
            "held_out": mean([mean(r["held_out"]) for r in naive if r["held_out"]]),
        },
        "lines": {
            kind: {
                name: mean([line[kind].get(name) for line in lines])
                for name in dict.fromkeys(name for line in lines for name in line[kind])
            }
            for kind in ("loss", "held_out")
        },
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _means(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Return the mean value of each key, from pairs of key and value."""
    by_key: dict[Any, list[float]] = {}
    for key, value in pairs:
        by_key.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in by_key.items()}
