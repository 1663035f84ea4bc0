"""What `experiments.culturespa` reports: `result.json`.

    methods.{unaware,p1,p2,p3,p1p3,p2p3,joint,specific,cct}
        .countries.USA            alignment score, 0 to 100, mean over seeds
        .country_intervals.USA    [low, high], questions resampled
        .mean, .interval          over countries, with the interval over questions
        .seed_interval, .by_seed  Student's interval over seeds (null: seeds cannot matter), values
    selection.{crqpc,rds,cds}     the same for the joint model trained on each; crqpc is `joint`
    differences.joint_minus_p1    value, interval, seed_interval, by_seed, verdict: paired, over
                                  the items that both answered in every run of a seed
    guard                         accuracies in percent before and after, differences in points
    untrained.joint.models, .all  models that are as they came, as nothing was selected for them or
                                  no step was taken; a method with no others is in no table
    replies.p1                    replies, unreadable, out_of_range: where replies are sampled
    questions                     asked_for, parsed, removed by each filter (too_long: for the given
                                  --train.row-length), left, by seed
    selected                      pairs by country and seed, share changed, sampling noise
    lines                         the score of answers that need no model
    personas                      identification and agreement of p1, joint, specific and cct
    settings, facts, versions

null stands where nothing was answered, as when no reply can be read, and where a mean would need
it.

An interval over questions speaks for other questions like these, one over seeds for other questions
written, other draws and other starts of the same program; 95 % each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_measure import Measured
from jaxalign.methods.culturespa.study import Study
from jaxalign.runs import finite_or_none, settings_of, versions
from jaxalign.stats.alignment import agreement, alignment, culture_lines, identify
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.intervals import seed_interval
from jaxalign.stats.paired_scores import Spread, drawn_scores, spread

METHODS = {
    "unaware": "unaware",
    "p1": "culture-aware (P1)",
    "p2": "cross-culture thinking (P2)",
    "p3": "self-alignment (P3)",
    "p1p3": "P1 + P3",
    "p2p3": "P2 + P3",
    "joint": "CultureSPA joint",
    "specific": "CultureSPA specific",
    "cct": "CultureSPA CCT",
}
SELECTION = {"crqpc": "joint", "rds": "rds", "cds": "cds"}
DIFFERENCES = (
    ("p1", "unaware"), ("joint", "p1"), ("specific", "p1"), ("cct", "p2"), ("joint", "rds"),
    ("rds", "cds"), ("cds", "p1"),
)  # fmt: skip
GUARD_POINTS = 1.0  # how much accuracy fine-tuning may change


def make_result(
    config: Config,
    study: Study,
    measured: Measured,
    written: Mapping[int, Mapping[str, Any]],
    selected: Mapping[int, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """All of `result.json`."""
    same = {name for name, models in measured.untrained.items() if models["all"]}
    answers = {name: a for name, a in measured.answers.items() if name not in same}
    right = {name: values for name, values in measured.right.items() if name not in same}
    draws = count_draws(len(study.survey.items), config.resamples, config.first_seed)
    scores = {name: run_scores(a, study, draws) for name, a in answers.items()}
    methods = {name: method_record(config, scores[name]) for name in METHODS if name in scores}
    return {
        "methods": methods,
        "selection": {
            n: method_record(config, scores[m]) for n, m in SELECTION.items() if m in scores
        },
        "differences": {
            f"{a}_minus_{b}": difference(*paired(answers[a], answers[b], study, draws))
            for a, b in DIFFERENCES
            if a in scores and b in scores
        },
        "untrained": measured.untrained,
        "replies": measured.counts if config.reading == "sampled" else {},
        "guard": guard_record(right, study.guard_name, len(study.guard)),
        "questions": _questions(written),
        "selected": {f"seed{seed}": entry for seed, entry in selected.items()},
        "lines": _lines(config, study),
        "personas": _personas(config, study, answers),
        "survey": {
            "name": study.survey.name,
            "items": len(study.survey.items),
            "simulated": facts["simulated"],
            "score": "100 (1 - |answers - majority answers| / |ranges|), answered items",
            "leaky": [s for s in METHODS if s in ("p2", "p3", "p1p3", "p2p3", "cct")]
            if config.examples == "paper"
            else [],
        },
        "settings": settings_of(config, fixed_only=True),
        "facts": dict(facts),
        "versions": versions(),
    }


def run_scores(answers_RxNxCxQ: np.ndarray, study: Study, draws: np.ndarray) -> np.ndarray:
    """Scores in points [1 + resamples, seeds, C], mean over runs."""
    by_run = [
        drawn_scores(answers_RxNxCxQ[:, n], study.tables, draws)
        for n in range(answers_RxNxCxQ.shape[1])
    ]
    return np.mean(by_run, axis=0)


def paired(
    a_RxNxCxQ: np.ndarray, b_RxNxCxQ: np.ndarray, study: Study, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both over the items that both answered in every run: else the one that leaves out
    what is hard is the better for it."""
    left_out = [np.isnan(x).any(axis=1, keepdims=True) for x in (a_RxNxCxQ, b_RxNxCxQ)]
    both = ~(left_out[0] | left_out[1])
    if not both.all():
        a_RxNxCxQ, b_RxNxCxQ = (np.where(both, x, np.nan) for x in (a_RxNxCxQ, b_RxNxCxQ))
    return run_scores(a_RxNxCxQ, study, draws), run_scores(b_RxNxCxQ, study, draws)


def method_record(config: Config, scores_NxRxC: np.ndarray) -> dict[str, Any]:
    """A method's entry in `result.json`."""
    each = {c: spread(scores_NxRxC[:, :, i]) for i, c in enumerate(config.countries)}
    record = {
        "countries": {c: s.value for c, s in each.items()},
        "country_intervals": {c: s.questions and s.questions.bounds for c, s in each.items()},
        "mean": (whole := spread(scores_NxRxC.mean(axis=2))).value,
        **_intervals(whole),
    }
    return finite_or_none(record)


def _intervals(found: Spread) -> dict[str, Any]:
    return {
        "interval": found.questions and found.questions.bounds,
        "seed_interval": found.seeds and found.seeds.bounds,
        "by_seed": found.by_seed,
    }


def difference(a_NxRxC: np.ndarray, b_NxRxC: np.ndarray) -> dict[str, Any]:
    """The difference of two methods' means, paired by question, country and seed; see `paired`."""
    found = spread((a_NxRxC - b_NxRxC).mean(axis=2))
    record = {"value": found.value, **_intervals(found), "verdict": _verdict(found)}
    return finite_or_none(record)


def _verdict(found: Spread) -> str:
    """Whether zero lies outside both intervals, and where there is but one of them."""
    known = [i.bounds for i in (found.questions, found.seeds) if i is not None]
    if not known:
        return "no answers"
    only = "" if found.seeds is not None else ", over questions only"
    if all(low > 0 for low, _ in known):
        return "higher" + only
    if all(high < 0 for _, high in known):
        return "lower" + only
    return "not told apart" + only


def guard_record(right: Mapping[str, list[float]], name: str, count: int) -> dict[str, Any]:
    """Accuracies in percent, changes in points, and whether the mean change is within a point."""
    before = 100 * right["before"][0]
    after, change = {}, {}
    for method, values in right.items():
        if method == "before":
            continue
        percent = 100 * np.array(values)
        found = seed_interval(percent - before) if np.ptp(percent) > 0 else None
        after[method] = {"mean": float(percent.mean()), "by_seed": percent}
        change[method] = {
            "mean": float(percent.mean() - before),
            "seed_interval": None if found is None else found.bounds,
            "within": bool(abs(percent.mean() - before) <= GUARD_POINTS),
        }
    return {
        "test": name,
        "questions": count,
        "before": before,
        "after": after,
        "change": change,
        "limit": GUARD_POINTS,
    }


def _questions(written: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over seeds, and each seed's own counts."""
    rows = list(written.values())
    total = {k: sum(row[k] for row in rows) for k in ("asked_for", "requests", "parsed", "left")}
    removed = {name: sum(row["removed"][name] for row in rows) for name in rows[0]["removed"]}
    by_seed = {f"seed{seed}": row for seed, row in written.items()}
    return total | {"removed": removed, "by_seed": by_seed}


def _lines(config: Config, study: Study) -> dict[str, Any]:
    scores = culture_lines(study.tables).scores
    record = {
        name: {
            "mean": float(100 * np.mean(values)),
            "countries": dict(zip(config.countries, (100 * values).tolist(), strict=True)),
        }
        for name, values in scores.items()
    }
    return finite_or_none(record)


def _personas(config: Config, study: Study, answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How often the nearest is one's own, and how alike two of them are; first run, seeds' mean."""
    own, gold = np.arange(len(config.countries)), study.tables.gold_CxQ
    humans = 100 * agreement(gold, study.tables)[0]
    out: dict[str, Any] = {"of": len(own), "humans": {"agreement": humans}}
    for method in (m for m in ("p1", "p2", "joint", "specific", "cct") if m in answers):
        rows, columns, alike = [], [], []
        for answers_CxQ in answers[method][:, 0]:
            matrix = alignment(answers_CxQ[:, None], gold[None], study.tables)
            rows.append(identify(matrix, own).hits)
            columns.append(identify(matrix.T, own).hits)
            alike.append(100 * agreement(answers_CxQ, study.tables)[0])
        out[method] = {
            "personas_identified": float(np.mean(rows)),
            "countries_identified": float(np.mean(columns)),
            "agreement": float(np.mean(alike)),
        }
    return finite_or_none(out)
