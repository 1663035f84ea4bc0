"""Sections of an analysis that describe: identification, dispersion, unreadable replies, topics,
items, alignments, the map. Their keys are documented in `jaxalign.stats.analysis`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.stats.alignment import (
    agreement,
    alignment,
    between_countries,
    classical_scaling,
    identify,
    long_error_share,
    long_item_share,
)
from jaxalign.stats.analysis_case import (
    Case,
    Runs,
    code,
    mean_over_runs,
    persona_scores,
    points,
    run_scores,
)  # fmt: skip
from jaxalign.surveys.survey import Survey


def identification(case: Case) -> dict[str, Any]:
    scores_PxC, countries = persona_scores(case), case.tables.countries
    n = len(case.personas)
    rows = identify(scores_PxC, case.rows_P)
    columns = identify(scores_PxC[:, case.rows_P].T, np.arange(n))

    def part(found: Any, names: Sequence[str]) -> dict[str, Any]:
        near = [names[i] if i >= 0 else None for i in found.nearest]
        return {
            "hits": found.hits,
            "of": found.of,
            "percent": points(found.hits / found.of) if found.of else None,
            "nearest": dict(zip(case.personas, near, strict=True)),
        }

    return {
        "rows": part(rows, countries) | {"chance_percent": points(1 / len(countries))},
        "columns": part(columns, case.personas) | {"chance_percent": points(1 / n if n else None)},
    }


def dispersion(case: Case) -> dict[str, Any]:
    """Runs are compared with runs of the same number, so that one run is compared with one."""
    per_run = [agreement(run[case.rows_P], case.tables) for run in case.aware_RxCxQ]
    per_run = [(value, pairs) for value, pairs in per_run if pairs]
    personas = float(np.mean([v for v, _ in per_run])) if per_run else float("nan")
    same = agreement(case.tables.gold_CxQ[case.rows_P], case.tables)
    humans = agreement(case.tables.gold_CxQ, case.tables)
    known = not (math.isnan(personas) or math.isnan(same[0]))
    return {
        "personas": {"agreement": points(personas), "pairs": per_run[0][1] if per_run else 0},
        "humans": {"agreement": points(humans[0]), "pairs": humans[1]},
        "humans_same": {"agreement": points(same[0]), "pairs": same[1]},
        "homogenising": personas > same[0] if known else None,
    }


def long_items(case: Case) -> dict[str, Any]:
    tables, long_Q = case.tables, case.tables.long_Q
    long, short = (mean_over_runs(run_scores(case, counts)[0]) for counts in (long_Q, ~long_Q))
    persona_rows = list(zip(case.personas, case.rows_P, strict=True))
    share = {p: [long_error_share(run[c], tables.gold_CxQ[c], tables) for run in case.aware_RxCxQ]
             for p, c in persona_rows}  # fmt: skip
    return {
        "count": int(long_Q.sum()),
        "share_of_denominator": points(long_item_share(tables)),
        "share_of_error": {p: points(mean_over_runs(np.array(s))) for p, s in share.items()},
        "long": {p: points(long[c]) for p, c in persona_rows},
        "short": {p: points(short[c]) for p, c in persona_rows},
    }


def unreadable(aware: Mapping[str, Runs], unaware: Runs) -> dict[str, Any]:
    def part(runs: Runs) -> dict[str, Any]:
        return {
            "runs": len(runs),
            "replies": sum(a.counts()["replies"] for a in runs),
            "unreadable": sum(a.counts()["unreadable"] for a in runs),
            "out_of_range": sum(a.counts()["out_of_range"] for a in runs),
            "items": sorted({i for a in runs for i in a.unreadable_items()}),
        }

    parts = {country: part(runs) for country, runs in aware.items()}
    own = part(unaware)
    counted = ("replies", "unreadable", "out_of_range")
    total = {k: sum(p[k] for p in (*parts.values(), own)) for k in counted}
    return {"aware": parts, "unaware": own, "total": total}


def topics(case: Case) -> list[dict[str, Any]]:
    topic_Q = np.array([item.topic for item in case.instrument.items])
    persona_rows = list(zip(case.personas, case.rows_P, strict=True))
    others = case.lines.answers["mean_of_others"]
    out = []
    for name in dict.fromkeys(topic_Q.tolist()):
        counts_Q = topic_Q == name
        aware, unaware = (mean_over_runs(s) for s in run_scores(case, counts_Q))
        line = alignment(others, case.tables.gold_CxQ, case.tables, counts_Q)
        out.append({
            "topic": name,
            "items": int(counts_Q.sum()),
            "long_items": int((counts_Q & case.tables.long_Q).sum()),
            "aware": {p: points(aware[c]) for p, c in persona_rows},
            "unaware": {p: points(unaware[c]) for p, c in persona_rows},
            "mean_of_others": {p: points(line[c]) for p, c in persona_rows},
        })  # fmt: skip
    return out


def items(case: Case) -> list[dict[str, Any]]:
    gold_CxQ, aware_CxQ = case.tables.gold_CxQ, mean_over_runs(case.aware_RxCxQ)
    unaware_Q = mean_over_runs(case.unaware_RxQ)
    gap_RxCxQ = np.abs(case.aware_RxCxQ - gold_CxQ)
    error_CxQ = mean_over_runs(gap_RxCxQ) / case.tables.range_Q
    persona_rows = list(zip(case.personas, case.rows_P, strict=True))
    out = []
    for q, item in enumerate(case.instrument.items):
        ordinal = item.scale == "ordinal"
        out.append({
            "id": item.id,
            "topic": item.topic,
            "scale": item.scale,
            "options": len(item.options),
            "majority": {p: code(gold_CxQ[c, q], item.codes) for p, c in persona_rows},
            "aware": {p: code(aware_CxQ[c, q], item.codes) for p, c in persona_rows},
            "unaware": code(unaware_Q[q], item.codes),
            "error": {p: points(error_CxQ[c, q]) if ordinal else None for p, c in persona_rows},
        })  # fmt: skip
    return out


def alignments(case: Case) -> dict[str, Any]:
    countries = list(case.tables.countries)

    def part(rows: Sequence[str], values: np.ndarray) -> dict[str, Any]:
        shown = [[points(v) for v in row] for row in values]
        return {"rows": list(rows), "columns": countries, "values": shown}

    return {
        "countries": part(countries, between_countries(case.tables)),
        "personas": part(case.personas, persona_scores(case)),
    }


def plane(case: Case) -> dict[str, Any]:
    """Countries by their majority answers, personas and the unaware model by their first run."""
    rows = [(c, "country", c) for c in case.tables.countries]
    rows += [(f"{p} persona", "persona", p) for p in case.personas]
    answers = [*case.tables.gold_CxQ, *case.aware_RxCxQ[0, case.rows_P]]
    if not np.isnan(case.unaware_RxQ[0]).all():
        rows.append(("unaware", "unaware", None))
        answers.append(case.unaware_RxQ[0])
    found = classical_scaling(np.stack(answers), case.tables)
    placed = [
        {"label": label, "kind": kind, "country": country, "x": round(x, 6), "y": round(y, 6)}
        for (label, kind, country), (x, y) in zip(rows, found.xy_Px2.tolist(), strict=True)
    ]
    return {"points": placed, "explained": points(found.explained)}


def about(instrument: Survey) -> dict[str, Any]:
    ordinal = sum(item.scale == "ordinal" for item in instrument.items)
    return {
        "name": instrument.name,
        "version": instrument.version,
        "source": instrument.source,
        "wording": instrument.wording,
        "sha256": instrument.sha256,
        "items": len(instrument.items),
        "ordinal_items": ordinal,
        "nominal_items": len(instrument.items) - ordinal,
    }
