"""Everything a report says about personas and countries, as one plain dictionary.

All scores are in points, 100 × a score in [0, 1]; None is "cannot be had". `COUNTRY`, `LINE` and
`METRIC` stand for keys; lines are named in `culture_lines.LINES`, metrics in `bootstrap.METRICS`.

    format         "jaxalign analysis 1"
    instrument     name, version, source, wording, sha256, items, ordinal_items, nominal_items
    settings       level (of intervals), resamples, seed
    countries      [COUNTRY] in the survey; personas: those of them with aware replies
    labels         lines {LINE: text}, metrics {METRIC: text}
    scores         {COUNTRY: {aware, unaware, aware_ordinal, unaware_ordinal, items, unaware_items,
                   lines {LINE}, best_neighbour}}: alignment with all items as published, and
                   ordinal items only; items: how many enter `aware` (else `unaware`) in the first
                   run, unaware_items: `unaware`
    means          all, personas: {countries, aware, unaware, lines {LINE}} over all countries, and
                   over those with a persona; None where one of them has no value
    intervals      {aware, unaware, difference: {COUNTRY or "mean": {METRIC: {value, low, high}}}}:
                   question bootstrap; difference: aware − unaware, paired, with a `verdict`; "mean"
                   is over the countries that are there. Paired: over the items that both answered
                   in each of their runs, so it need not be the difference of their scores
    against_lines  {COUNTRY or "mean": {LINE: {value, low, high, verdict}}}: aware − line, paired,
                   in alignment; lines that are one set of answers per country
    seeds          {aware, unaware: {COUNTRY: {runs, values [..], mean, low, high}}}: Student's
                   interval over runs; mean, low and high are None with one run
    identification rows, columns: {hits, of, percent, nearest {COUNTRY: COUNTRY}}; rows: is a
                   persona closest to its own country; columns: is a country closest to its own
                   persona; chance_percent of each
    dispersion     personas, humans: {agreement, pairs}: mean alignment between two personas, and
                   between two countries' majority answers; humans_same: of the personas' countries;
                   homogenising: personas agree more than humans_same
    long_items     count, share_of_denominator, share_of_error {COUNTRY} (percent), and alignment on
                   them and on the others: long {COUNTRY}, short {COUNTRY}
    unreadable     {aware: {COUNTRY: U}, unaware: U} with U {runs, replies, unreadable,
                   out_of_range, items [id]} over all runs; total: {replies, unreadable,
                   out_of_range}
    topics         [{topic, items, long_items, aware {COUNTRY}, unaware {COUNTRY},
                   mean_of_others {COUNTRY}}] for personas
    items          [{id, topic, scale, options (number of), majority {COUNTRY}, aware {COUNTRY},
                   unaware, error {COUNTRY}}] with answers in the survey's codes, means over runs,
                   and error |aware − majority| in percent of the range, None for nominal items
    alignment      countries: {rows, columns, values [[..]]}, personas: the same with personas as
                   rows and countries as columns
    map            points [{label, kind: country | persona | unaware, country, x, y}], explained
                   (percent of squared distances): classical scaling of 1 − alignment

"verdict" is "no clear difference" where zero lies in it, else "above" or "below".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.report.words import NO_DIFFERENCE
from jaxalign.stats import analysis_tables as describe
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis_case import (
    Case,
    Runs,
    average,
    make_case,
    mean_over_runs,
    points,
    run_scores,
)  # fmt: skip
from jaxalign.stats.comparison import Comparison, compare, item_stats
from jaxalign.stats.intervals import seed_interval
from jaxalign.stats.metrics import DEFAULT_METRICS, Metric, select
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import make_tables

FORMAT = "jaxalign analysis 1"


def analyse(
    instrument: Survey,
    aware: Mapping[str, Runs],
    unaware: Runs = (),
    countries: Sequence[str] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, Any]:
    """The dictionary described above, from each persona's runs and those of the unaware model.

    `countries` are those to compare with, by default all of the instrument's. Raises UserError for
    a persona of no such country, and without any answers.
    """
    tables = make_tables(instrument, countries)
    case = make_case(instrument, tables, aware, unaware)
    chosen = select(metrics)
    intervals = _bootstrap(case, [m.name for m in chosen], resamples, level, seed)
    scores = _scores(case)
    return {
        "format": FORMAT,
        "instrument": describe.about(instrument),
        "settings": {"level": level, "resamples": resamples, "seed": seed},
        "countries": list(tables.countries),
        "personas": list(case.personas),
        "labels": {"lines": dict(LINES), "metrics": {m.name: m.label for m in chosen}},
        "scores": scores,
        "means": {
            "all": _means(scores, tables.countries),
            "personas": _means(scores, case.personas),
        },
        "intervals": _intervals(case, chosen, intervals),
        "against_lines": _against_lines(case, intervals),
        "seeds": _seeds(case, level),
        "identification": describe.identification(case),
        "dispersion": describe.dispersion(case),
        "long_items": describe.long_items(case),
        "unreadable": describe.unreadable(aware, unaware),
        "topics": describe.topics(case),
        "items": describe.items(case),
        "alignment": describe.alignments(case),
        "map": describe.plane(case),
    }


def _scores(case: Case) -> dict[str, Any]:
    every = [mean_over_runs(s) for s in run_scores(case)]
    ordinal = [mean_over_runs(s) for s in run_scores(case, case.tables.ordinal_Q)]
    out = {}
    for c, country in enumerate(case.tables.countries):
        unaware_items = _entered(case, c, case.unaware_RxQ[0])
        has_persona = country in case.personas
        out[country] = {
            "aware": points(every[0][c]),
            "unaware": points(every[1][c]),
            "aware_ordinal": points(ordinal[0][c]),
            "unaware_ordinal": points(ordinal[1][c]),
            "items": _entered(case, c, case.aware_RxCxQ[0, c]) if has_persona else unaware_items,
            "unaware_items": unaware_items,
            "lines": {name: points(values[c]) for name, values in case.lines.scores.items()},
            "best_neighbour": case.lines.best_neighbour[c] or None,
        }
    return out


def _entered(case: Case, c: int, answers_Q: np.ndarray) -> int:
    """How many items have an answer from both sides."""
    return int((case.tables.asked_CxQ[c] & ~np.isnan(answers_Q)).sum())


def _means(scores: Mapping[str, Any], countries: Sequence[str]) -> dict[str, Any]:
    rows = [scores[c] for c in countries]
    return {
        "countries": len(rows),
        "aware": average([r["aware"] for r in rows]),
        "unaware": average([r["unaware"] for r in rows]),
        "lines": {name: average([r["lines"][name] for r in rows]) for name in LINES},
    }


def _bootstrap(
    case: Case, metrics: Sequence[str], resamples: int, level: float, seed: int
) -> Comparison:
    """Systems: aware, unaware, then the lines that are one set of answers per country."""
    shape = case.aware_RxCxQ.shape
    unaware = np.broadcast_to(case.unaware_RxQ[:, None], shape)
    lines = [np.full(shape, np.nan, np.float32) for _ in case.lines.answers]
    for filled, answers in zip(lines, case.lines.answers.values(), strict=True):
        filled[0] = answers
    answers_SxRxCxQ = np.stack([case.aware_RxCxQ, unaware, *lines])
    stats = item_stats(case.tables, answers_SxRxCxQ, metrics)
    found = compare(stats, jax.random.key(seed), resamples, level, min(resamples, 500))
    return jax.tree.map(np.asarray, found)


def _intervals(case: Case, metrics: Sequence[Metric], found: Comparison) -> dict[str, Any]:
    """Differences are to system 0, aware: their sign is turned."""

    def table(countries: Any, mean: Any, system: int, sign: int, verdicts: bool) -> dict[str, Any]:
        parts = [[x[system, c] for x in countries] for c in range(len(case.tables.countries))]
        rows = dict(zip(case.tables.countries, parts, strict=True))
        rows["mean"] = [x[system] for x in mean]
        return {
            name: {m.name: _interval([x[i] for x in row], sign, verdicts)
                   for i, m in enumerate(metrics)}
            for name, row in rows.items() if not np.isnan(row[0]).all()
        }  # fmt: skip

    return {
        "aware": table(found.countries, found.country_mean, 0, 1, False),
        "unaware": table(found.countries, found.country_mean, 1, 1, False),
        "difference": table(found.differences, found.mean_difference, 0, -1, True),
    }


def _against_lines(case: Case, found: Comparison) -> dict[str, Any]:
    def row(select: Any) -> dict[str, Any]:
        return {
            name: _interval([select(x, 1 + n) for x in found_in], -1, True)
            for n, name in enumerate(case.lines.answers)
        }

    found_in = found.differences
    out = {
        country: row(lambda x, s, c=c: x[s, c, 0])
        for country, c in zip(case.personas, case.rows_P, strict=True)
    }
    found_in = found.mean_difference
    return out | ({"mean": row(lambda x, s: x[s, 0])} if case.personas else {})


def _seeds(case: Case, level: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, scores_RxC in zip(("aware", "unaware"), run_scores(case), strict=True):
        out[name] = {}
        for c, country in enumerate(case.tables.countries):
            values = scores_RxC[~np.isnan(scores_RxC[:, c]), c]
            if len(values):
                bounds = seed_interval(values, level) or (float("nan"),) * 3
                out[name][country] = {
                    "runs": len(values),
                    "values": [points(v) for v in values],
                    **dict(zip(("mean", "low", "high"), map(points, bounds), strict=True)),
                }
    return out


def _interval(bounds: Sequence[float], sign: int, verdict: bool) -> dict[str, Any]:
    value, low, high = bounds if sign > 0 else (-bounds[0], -bounds[2], -bounds[1])
    out: dict[str, Any] = {"value": points(value), "low": points(low), "high": points(high)}
    if verdict and out["low"] is not None:
        out["verdict"] = "above" if low > 0 else "below" if high < 0 else NO_DIFFERENCE
    return out
