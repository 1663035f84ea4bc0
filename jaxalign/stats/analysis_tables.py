"""The descriptive sections of an analysis, whose keys `jaxalign.stats.analysis` documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.stats.alignment import (
    Identification,
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
)
from jaxalign.stats.presentations import form_correlation
from jaxalign.surveys.responses import NOT_ANSWERS
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table


def about(survey: Survey) -> dict[str, Any]:
    """Describe the survey."""
    ordinal = sum(item.scale == "ordinal" for item in survey.items)
    return {
        "name": survey.name,
        "version": survey.version,
        "source": survey.source,
        "wording": survey.wording,
        "simulated": survey.simulated,
        "sha256": survey.sha256,
        "items": len(survey.items),
        "ordinal_items": ordinal,
        "nominal_items": len(survey.items) - ordinal,
        **survey.respondents_record(),
    }


def identification(case: Case) -> dict[str, Any]:
    """Count the personas nearest to their own country, and the countries nearest to their own
    persona."""
    scores_PxC, countries = persona_scores(case), case.tables.countries
    n = len(case.personas)
    # Rows: each persona among all countries. Columns: each persona's country among the personas.
    rows = identify(scores_PxC, case.rows_P)
    columns = identify(scores_PxC[:, case.rows_P].T, np.arange(n))

    def record(result: Identification, names: Sequence[str]) -> dict[str, Any]:
        nearest = [names[i] if i >= 0 else None for i in result.nearest]
        return {
            "hits": result.hits,
            "of": result.of,
            "percent": points(result.hits / result.of) if result.of else None,
            "nearest": dict(zip(case.personas, nearest, strict=True)),
        }

    return {
        "rows": record(rows, countries) | {"chance_percent": points(1 / len(countries))},
        "columns": record(columns, case.personas)
        | {"chance_percent": points(1 / n if n else None)},
    }


def dispersion(case: Case) -> dict[str, Any]:
    """Compare how alike personas are with how alike people are.

    Personas are compared within a run: means over runs would be more alike than single runs.
    """
    per_run = [agreement(run[case.rows_P], case.tables) for run in case.aware_RxCxQ]
    # Runs in which fewer than two personas answered have no pairs.
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
    """Describe the weight of items with ten options or more, and the scores with and without."""
    tables, long_Q = case.tables, case.tables.long_Q
    long_C, short_C = (
        mean_over_runs(run_scores(case, counts_Q)[0]) for counts_Q in (long_Q, ~long_Q)
    )
    # The share of the error is taken run by run and then averaged.
    persona_rows = _persona_rows(case)
    shares = {
        persona: [long_error_share(run[c], tables.gold_CxQ[c], tables) for run in case.aware_RxCxQ]
        for persona, c in persona_rows
    }
    return {
        "count": int(long_Q.sum()),
        "share_of_denominator": points(long_item_share(tables)),
        "share_of_error": {
            persona: points(mean_over_runs(np.array(share))) for persona, share in shares.items()
        },
        "long": {persona: points(long_C[c]) for persona, c in persona_rows},
        "short": {persona: points(short_C[c]) for persona, c in persona_rows},
    }


def constant(case: Case) -> dict[str, Any]:
    """Find how much of a persona's answers is one number, as of a model that says 1 throughout.

    All runs count together. The same share of people's majority answers stands beside it: scales
    alike make some number frequent whoever answers.
    """
    _, codes_QxO = option_table(case.survey)
    rows = _persona_rows(case)
    without = most_frequent(case.unaware_RxQ, codes_QxO)
    return {
        "aware": {p: most_frequent(case.aware_RxCxQ[:, c], codes_QxO) for p, c in rows},
        "unaware": without,
        "people": {
            country: most_frequent(gold_Q[None], codes_QxO)
            for country, gold_Q in zip(case.tables.countries, case.tables.gold_CxQ, strict=True)
        },
    }


def most_frequent(answers_RxQ: np.ndarray, codes_QxO: np.ndarray) -> dict[str, Any] | None:
    """Find the most frequent code and the most frequent position among answers.

    Args:
        answers_RxQ: positions of options, NaN for no answer.
        codes_QxO: the items' codes.

    Returns:
        The code, the position counted from 1, and the share of each in percent; None without
        answers.
    """
    known = ~np.isnan(answers_RxQ)
    if not known.any():
        return None
    runs, items = np.nonzero(known)
    positions = answers_RxQ[runs, items].astype(int)

    def most(values: np.ndarray) -> tuple[int, float | None]:
        found, counts = np.unique(values, return_counts=True)
        return int(found[counts.argmax()]), points(counts.max() / counts.sum())

    code, share = most(codes_QxO[items, positions])
    position, position_share = most(positions)
    return {
        "code": code,
        "share": share,
        "position": position + 1,
        "position_share": position_share,
        "answers": len(positions),
    }


def unreadable(aware: Mapping[str, Runs], unaware: Runs) -> dict[str, Any]:
    """Count the replies that name no option."""

    def record(runs: Runs) -> dict[str, Any]:
        counts = [responses.counts() for responses in runs]
        return {
            "runs": len(runs),
            **{key: sum(c[key] for c in counts) for key in ("replies", *NOT_ANSWERS)},
            "items": sorted({i for responses in runs for i in responses.unreadable_items()}),
        }

    personas = {country: record(runs) for country, runs in aware.items()}
    without = record(unaware)
    total = {
        key: sum(r[key] for r in (*personas.values(), without)) for key in ("replies", *NOT_ANSWERS)
    }
    return {"aware": personas, "unaware": without, "total": total}


def topics(case: Case) -> list[dict[str, Any]]:
    """Score each topic of the survey by itself."""
    topic_Q = np.array([item.topic for item in case.survey.items])
    persona_rows = _persona_rows(case)
    others_CxQ = case.lines.answers["mean_of_others"]
    out = []
    # Topics in the order in which they first occur in the survey.
    for name in dict.fromkeys(topic_Q.tolist()):
        counts_Q = topic_Q == name
        aware_C, unaware_C = (mean_over_runs(s) for s in run_scores(case, counts_Q))
        others_C = alignment(others_CxQ, case.tables.gold_CxQ, case.tables, counts_Q)
        record = {
            "topic": name,
            "items": int(counts_Q.sum()),
            "long_items": int((counts_Q & case.tables.long_Q).sum()),
            "aware": {persona: points(aware_C[c]) for persona, c in persona_rows},
            "unaware": {persona: points(unaware_C[c]) for persona, c in persona_rows},
            "mean_of_others": {persona: points(others_C[c]) for persona, c in persona_rows},
        }
        out.append(record)
    return out


def items(case: Case) -> list[dict[str, Any]]:
    """Describe the answers to each item, in the survey's codes."""
    gold_CxQ, aware_CxQ = case.tables.gold_CxQ, mean_over_runs(case.aware_RxCxQ)
    unaware_Q = mean_over_runs(case.unaware_RxQ)
    # The mean of the distances, which is not the distance of the mean answer.
    gap_RxCxQ = np.abs(case.aware_RxCxQ - gold_CxQ)
    error_CxQ = mean_over_runs(gap_RxCxQ) / case.tables.range_Q
    persona_rows = _persona_rows(case)
    out = []
    for q, item in enumerate(case.survey.items):
        ordinal = item.scale == "ordinal"
        record = {
            "id": item.id,
            "topic": item.topic,
            "scale": item.scale,
            "options": len(item.options),
            "majority": {p: code(gold_CxQ[c, q], item.codes) for p, c in persona_rows},
            "aware": {p: code(aware_CxQ[c, q], item.codes) for p, c in persona_rows},
            "unaware": code(unaware_Q[q], item.codes),
            "error": {p: points(error_CxQ[c, q]) if ordinal else None for p, c in persona_rows},
        }
        out.append(record)
    return out


def alignments(case: Case) -> dict[str, Any]:
    """Return the alignment of countries and of personas with every country, as matrices."""
    countries = list(case.tables.countries)

    def matrix(rows: Sequence[str], values: np.ndarray) -> dict[str, Any]:
        cells = [[points(v) for v in row] for row in values]
        return {"rows": list(rows), "columns": countries, "values": cells}

    return {
        "countries": matrix(countries, between_countries(case.tables)),
        "personas": matrix(case.personas, persona_scores(case)),
    }


def plane(case: Case) -> dict[str, Any]:
    """Place countries by their majority answers in a plane, personas and the model without a
    persona by their first run."""
    rows = [(c, "country", c) for c in case.tables.countries]
    rows += [(f"{p} persona", "persona", p) for p in case.personas]
    answers = [*case.tables.gold_CxQ, *case.aware_RxCxQ[0, case.rows_P]]
    if not np.isnan(case.unaware_RxQ[0]).all():
        rows.append(("unaware", "unaware", None))
        answers.append(case.unaware_RxQ[0])
    scaled = classical_scaling(np.stack(answers), case.tables)
    placed = [
        {"label": label, "kind": kind, "country": country, "x": round(x, 6), "y": round(y, 6)}
        for (label, kind, country), (x, y) in zip(rows, scaled.xy_Px2.tolist(), strict=True)
    ]
    return {"points": placed, "explained": points(scaled.explained)}


def presentations(
    forms: Mapping[str, Case], resamples: int, level: float, seed: int
) -> dict[str, Any] | None:
    """Score the answers under each presentation alone, and correlate them between the first two.

    Args:
        forms: by the name of a presentation, the answers under it alone.
        resamples: number of resamples of the items, for the correlation.
        level: level of its interval.
        seed: seed of the resamples.

    Returns:
        None with fewer than two presentations.
    """
    if len(forms) < 2:
        return None
    scores = {name: [mean_over_runs(s) for s in run_scores(case)] for name, case in forms.items()}
    first, second = list(forms.values())[:2]
    countries = first.tables.countries

    def by_country(which: int, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        return {
            country: {name: points(values[which][c]) for name, values in scores.items()}
            for c, country in enumerate(countries)
            if country in names
        }

    def correlation(answers: Sequence[np.ndarray]) -> dict[str, float] | None:
        means = (x_xQ / first.tables.range_Q for x_xQ in answers)
        found = form_correlation(*means, seed, resamples, level)
        bounds = found and zip(("value", "low", "high"), found, strict=True)
        return bounds and {name: round(value, 4) for name, value in bounds}

    cases = (first, second)
    return {
        "names": list(forms),
        "aware": by_country(0, first.personas),
        "unaware": by_country(1, countries),
        "correlation": {
            "aware": correlation([mean_over_runs(x.aware_RxCxQ)[x.rows_P] for x in cases]),
            "unaware": correlation([mean_over_runs(x.unaware_RxQ) for x in cases]),
        },
    }


def _persona_rows(case: Case) -> list[tuple[str, int]]:
    """Return each persona with the row of its country."""
    return list(zip(case.personas, case.rows_P, strict=True))
