"""The result of a CultureSPA run, and `result.json`.

    warnings                      what to know before any number: kind and text
                                  (`jaxalign.stats.result_warnings`)
    presentations.averaged        names of the presentations that answers are averaged over
        .scores.A.p1              as methods.p1, of the answers in one presentation alone; of every
                                  method, and of rds and cds; only if there are several
        .differences.A            as differences, likewise
    measure                       what the answers say about the instrument (`instrument`)
    methods.{unaware,p1,p2,p3,p1p3,p2p3,joint,specific,cct}
        .countries.USA            alignment score, 0 to 100, mean over seeds
        .country_intervals.USA    [low, high], questions resampled
        .mean, .interval          mean over countries, with its interval over questions
        .seed_interval, .by_seed  Student's interval over seeds (null if seeds cannot matter), and
                                  the values it is computed from
    selection.{crqpc,rds,cds}     the same for the joint model trained on each selection of data;
                                  crqpc is `joint`
    differences.joint_minus_p1    value, interval, seed_interval, by_seed and verdict, paired: over
                                  the items that both methods answered in every run of a seed
    guard                         accuracies in percent before and after, differences in points;
        .tasks                    with the setting `guard_tasks`: the same by task, and the others
                                  are means over tasks
    untrained.joint.models, .all  models that fine-tuning left unchanged, because nothing was
                                  selected for them or no step was taken; a method that has no other
                                  models is in no table
    valid_mass.p1                 probability that a reply begins with an option (if sampled: share
                                  of replies that name one), mean over questions and countries
    retrained.seed0 joint         a model whose loss was not finite: step and learning_rate of that,
                                  and trained_at, the rate of `retry`; only if there are any
    replies.p1                    replies, unreadable, out_of_range; only if replies are sampled
    questions                     asked_for, parsed, removed by each filter (too_long: for the given
                                  `train.longest_example`), left, and the same by seed
    selected                      pairs by country and seed, share changed, sampling noise; under
                                  topics the questions of each topic, and the joint model's pairs
                                  of each topic by country
    prompting                     with the setting `prompting`: the joint and the specific models
                                  under every prompt style (`prompting`)
        .scores.joint.p2          as methods.p2, of "base" (the unchanged model), joint or specific
        .minus_base.joint.p2      fine-tuned minus unchanged model, both under the style, as in
                                  differences
        .minus_p1.joint.p2        a model under the style minus the same model under P1
        .valid_mass, .replies     as below, by model and style
    lines                         scores of answers that need no model
    personas                      identification and agreement of p1, p2, joint, specific and cct
    answer_examples               a few answers in full (`jaxalign.stats.answer_examples`)
    settings, facts, versions     what is needed to make the result again

null stands where nothing was answered, as when no reply can be read, and for a mean that would need
such a value. "Countries" are whatever groups the run was given.

An interval over questions is about other questions like these; an interval over seeds is about
other written questions, other draws and other starts of the same program. Both cover 95 %, and both
are wider by the spread of the value over presentations if there are several (`stats.intervals`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.lm.lora import Adapter
from jaxalign.methods.base import (
    CCT,
    CDS,
    CRQPC,
    CULTURESPA_METHODS,
    JOINT,
    METHODS,
    P1,
    P2,
    RDS,
    SPECIFIC,
    UNAWARE,
)
from jaxalign.methods.culturespa.fine_tune import ModelName
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.instrument import measure_record
from jaxalign.methods.culturespa.measure import PERSONAS, Answers, Measured
from jaxalign.methods.culturespa.result_warnings import warnings_of
from jaxalign.methods.culturespa.select import TRAINED_UNDER
from jaxalign.methods.culturespa.settings import CultureSPASettings, setting_sources
from jaxalign.methods.culturespa.styles import STYLES, reads_answers
from jaxalign.report.wording import IDENTICAL
from jaxalign.runs import settings_of, versions
from jaxalign.stats.alignment import agreement, alignment, culture_lines, identify
from jaxalign.stats.answer_examples import answer_examples
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.intervals import Interval, seed_interval, widened
from jaxalign.stats.paired_scores import Spread, drawn_scores, spread
from jaxalign.surveys.survey import Item

# The model that each selection of training data gives.
SELECTION_MODELS = {CRQPC.key: JOINT.key, RDS.key: RDS.key, CDS.key: CDS.key}
DIFFERENCES = tuple(
    (a.key, b.key)
    for a, b in (
        (P1, UNAWARE),
        (JOINT, P1),
        (SPECIFIC, P1),
        (CCT, P2),
        (JOINT, RDS),
        (RDS, CDS),
        (CDS, P1),
    )
)
GUARD_POINTS = 1.0  # the change of accuracy that the guard tolerates, in percentage points


@dataclasses.dataclass(frozen=True)
class CultureSPAResult:
    """What a CultureSPA run found.

    Attributes:
        out: Directory of the run.
        record: The content of `result.json`.
        answers: Positions of the options chosen, float32 [seeds, runs, countries, items] by method,
            NaN for no answer.
        adapters: The fine-tuned adapters by seed and model ("joint", "specific-CHN", ...), each
            read from its file when it is asked for.
    """

    out: Path
    record: dict[str, Any] = dataclasses.field(repr=False)
    answers: dict[str, Answers] = dataclasses.field(repr=False)
    adapters: Mapping[ModelName, Adapter] = dataclasses.field(repr=False)

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Alignment score in points by method and country, mean over seeds."""
        return {name: dict(row["countries"]) for name, row in self.record["methods"].items()}

    def __str__(self) -> str:
        """The scores as a table, a row per method and a column per country, with the mean."""
        rows = self.record["methods"]
        lines = [("method", *self.record["settings"]["countries"], "mean")]
        for name, row in rows.items():
            scores = (*row["countries"].values(), row["mean"])
            lines.append((name, *("–" if s is None else f"{s:.1f}" for s in scores)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        )


def make_record(
    settings: CultureSPASettings,
    inputs: Inputs,
    measured: Measured,
    written: Mapping[int, Mapping[str, Any]],
    selected: Mapping[int, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all of `result.json`.

    Args:
        settings: The run's settings.
        inputs: What they name.
        measured: What every method answered.
        written: The counts of step 1 by seed.
        selected: The counts of step 3 by seed.
        facts: Hashes and texts that the result depends on.
    """
    unchanged = measured.unchanged
    answers = {name: a for name, a in measured.answers.items() if name not in unchanged}
    by_presentation = {
        presentation: {name: alone[name] for name in answers}
        for presentation, alone in measured.by_presentation.items()
    }
    scored = Scored(settings, inputs, answers, by_presentation)
    groups = settings.countries
    return {
        "warnings": warnings_of(settings, inputs, measured, written, selected),
        "presentations": {
            "averaged": list(inputs.presentations),
            "scores": {
                presentation: {name: alone.method(name) for name in answers}
                for presentation, alone in scored.alone.items()
            },
            "differences": {
                presentation: alone.differences() for presentation, alone in scored.alone.items()
            },
        },
        "measure": measure_record(settings, inputs, measured),
        "methods": {
            method.key: scored.method(method.key)
            for method in CULTURESPA_METHODS
            if method.key in answers
        },
        "selection": {
            selection: scored.method(model)
            for selection, model in SELECTION_MODELS.items()
            if model in answers
        },
        "differences": scored.differences(),
        "untrained": measured.untrained,
        "replies": measured.counts if settings.reading == "sampled" else {},
        "valid_mass": measured.valid_mass,
        "guard": guard_entry(measured, inputs),
        "questions": _questions(written),
        "selected": {f"seed{seed}": counts for seed, counts in selected.items()},
        "lines": _lines(groups, inputs),
        "personas": _personas(inputs, answers),
        "answer_examples": _examples(settings, inputs, measured),
        "survey": {
            "name": inputs.survey.name,
            "items": len(inputs.survey.items),
            "simulated": facts["simulated"],
            **inputs.survey.respondents_record(settings.countries),
            "score": "100 (1 - |answers - majority answers| / |ranges|), answered items",
            "leaky": _leaky_methods() if settings.examples == "paper" else [],
        },
        "settings": settings_of(settings, fixed_only=True),
        "sources": setting_sources(settings, inputs.files),
        "facts": dict(facts),
        "versions": versions(),
    }


def _examples(
    settings: CultureSPASettings, inputs: Inputs, measured: Measured
) -> list[dict[str, Any]]:
    """Return the answers that fine-tuning changed most, averaged over seeds and presentations."""
    keys = [key for key in (UNAWARE.key, P1.key, JOINT.key) if key in measured.shares]
    if JOINT.key not in keys:
        return []
    shares = {METHODS[key].title: measured.shares[key].mean(axis=(0, 1)) for key in keys}
    people = np.stack([inputs.survey.truth_QxO(country) for country in settings.countries])
    shares["people"] = people
    between = P1.title, JOINT.title
    return answer_examples(inputs.survey, shares, settings.countries, between)


class Scored:
    """Answers by method, their scores, and paired differences of these."""

    def __init__(
        self,
        settings: CultureSPASettings,
        inputs: Inputs,
        answers: Mapping[str, Answers],
        by_presentation: Mapping[str, Mapping[str, Answers]] = MappingProxyType({}),
    ) -> None:
        """Score answers on resampled questions.

        Args:
            settings: The run's settings.
            inputs: What they name.
            answers: Answers by method.
            by_presentation: The same in each presentation alone, if there are several.
        """
        self._groups, self._inputs, self._answers = settings.countries, inputs, answers
        self._draws = count_draws(len(inputs.survey.items), settings.resamples, settings.first_seed)
        self.alone = {
            name: Scored(settings, inputs, alone) for name, alone in by_presentation.items()
        }

    def method(self, name: str) -> dict[str, Any]:
        """Return a method's entry in `result.json`."""
        forms = [alone.scores(name, points_only=True) for alone in self.alone.values()]
        return method_record(self._groups, self.scores(name), forms)

    def difference(self, a: str, b: str) -> dict[str, Any]:
        """Return the entry of the difference of two methods."""
        forms = [alone.paired(a, b, points_only=True) for alone in self.alone.values()]
        return difference(*self.paired(a, b), forms)

    def differences(self) -> dict[str, dict[str, Any]]:
        """Return the entries of all of `DIFFERENCES` whose methods are there."""
        return {
            f"{a}_minus_{b}": self.difference(a, b)
            for a, b in DIFFERENCES
            if a in self._answers and b in self._answers
        }

    def scores(self, name: str, points_only: bool = False) -> np.ndarray:
        """Return `run_scores` of a method; of the items themselves alone, or of resamples too."""
        draws = self._draws[:1] if points_only else self._draws
        return run_scores(self._answers[name], self._inputs, draws)

    def paired(self, a: str, b: str, points_only: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return `paired` scores of two methods, likewise."""
        draws = self._draws[:1] if points_only else self._draws
        return paired(self._answers[a], self._answers[b], self._inputs, draws)


def run_scores(answers_RxNxCxQ: np.ndarray, inputs: Inputs, draws: np.ndarray) -> np.ndarray:
    """Compute scores in points, mean over the runs N of sampled replies.

    Args:
        answers_RxNxCxQ: Positions of options by seed, run, group and item; NaN for no answer.
        inputs: What the run was given; its tables hold the groups' own answers.
        draws: How often each item is drawn in each resample, from `count_draws`.

    Returns:
        [1 + resamples, seeds, groups]; the first row is of the items themselves.
    """
    by_run = [
        drawn_scores(answers_RxNxCxQ[:, n], inputs.tables, draws)
        for n in range(answers_RxNxCxQ.shape[1])
    ]
    return np.mean(by_run, axis=0)


def paired(
    a_RxNxCxQ: np.ndarray, b_RxNxCxQ: np.ndarray, inputs: Inputs, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the scores of two methods over the items that both answered in every run.

    Over its own items, a method would look better for not answering what is hard.
    """
    left_out = [np.isnan(x).any(axis=1, keepdims=True) for x in (a_RxNxCxQ, b_RxNxCxQ)]
    both = ~(left_out[0] | left_out[1])
    if not both.all():
        a_RxNxCxQ, b_RxNxCxQ = (np.where(both, x, np.nan) for x in (a_RxNxCxQ, b_RxNxCxQ))
    return run_scores(a_RxNxCxQ, inputs, draws), run_scores(b_RxNxCxQ, inputs, draws)


def method_record(
    groups: tuple[str, ...], scores_NxRxC: np.ndarray, forms: Sequence[np.ndarray] = ()
) -> dict[str, Any]:
    """Return a method's entry in `result.json`.

    Args:
        groups: The groups C.
        scores_NxRxC: Its scores (`run_scores`).
        forms: Its scores in each presentation alone, if there are several; only the first row, of
            the items themselves, counts.
    """
    by_group = {
        group: _score(scores_NxRxC[:, :, c], [form[0, :, c].mean() for form in forms])
        for c, group in enumerate(groups)
    }
    whole = _score(scores_NxRxC.mean(axis=2), [form[0].mean() for form in forms])
    record = {
        "countries": {group: s.value for group, s in by_group.items()},
        "country_intervals": {group: _bounds(s.questions) for group, s in by_group.items()},
        "mean": whole.value,
        **_intervals(whole),
    }
    return finite_or_none(record)


def _score(scores_NxR: np.ndarray, by_form: Sequence[float]) -> Spread:
    """Return a score as `_spread` does; its interval over questions ends where scores end."""
    found = _spread(scores_NxR, by_form)
    if (interval := found.questions) is None:
        return found
    low, high = max(interval.low, 0.0), min(interval.high, 100.0)
    return found._replace(questions=Interval(interval.mean, low, high))


def _spread(scores_NxR: np.ndarray, by_form: Sequence[float]) -> Spread:
    """Return a score and its intervals, widened by its spread over presentations."""
    found = spread(scores_NxR)
    questions, seeds = (
        interval and widened(interval, by_form) for interval in (found.questions, found.seeds)
    )
    return found._replace(questions=questions, seeds=seeds)


def _intervals(score: Spread) -> dict[str, Any]:
    return {
        "interval": _bounds(score.questions),
        "seed_interval": _bounds(score.seeds),
        "by_seed": score.by_seed,
    }


def _bounds(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else interval.bounds


def difference(
    a_NxRxC: np.ndarray, b_NxRxC: np.ndarray, forms: Sequence[tuple[np.ndarray, np.ndarray]] = ()
) -> dict[str, Any]:
    """Return the difference of two methods' means, paired by question, group and seed.

    Args:
        a_NxRxC: Scores of one method (`paired`).
        b_NxRxC: Scores of the other.
        forms: Both in each presentation alone, if there are several.
    """
    score = _spread((a_NxRxC - b_NxRxC).mean(axis=2), [(a[0] - b[0]).mean() for a, b in forms])
    record = {"value": score.value, **_intervals(score), "verdict": _verdict(score)}
    return finite_or_none(record)


def _verdict(score: Spread) -> str:
    """Return whether zero lies outside both intervals, or outside the only one there is.

    Where it is all that there is in them, the two methods give the same answers.
    """
    bounds = [_bounds(i) for i in (score.questions, score.seeds) if i is not None]
    if not bounds:
        return "no answers"
    if all(low == high == 0 for low, high in bounds):
        return IDENTICAL
    only = "" if score.seeds is not None else ", over questions only"
    if all(low > 0 for low, _ in bounds):
        return "higher" + only
    if all(high < 0 for _, high in bounds):
        return "lower" + only
    return "not told apart" + only


def guard_entry(measured: Measured, inputs: Inputs) -> dict[str, Any]:
    """Return the guard's entry: of its own questions, or of another tool's tasks.

    Methods that fine-tuning left unchanged are left out.
    """

    def changed(right: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return {name: values for name, values in right.items() if name not in measured.unchanged}

    right, found = changed(measured.right), measured.abilities
    if not found:
        return guard_record(right, inputs.guard_name, [item for item, _ in inputs.guard])
    asked = found["questions"], found["chance"]
    record = guard_record(right, found["name"], (), *asked)
    tasks = {
        task: guard_record(changed(by_method), task, (), *asked)
        for task, by_method in found["tasks"].items()
    }
    return record | {
        "tasks": {
            task: {
                "before": row["before"],
                "after": {method: after["mean"] for method, after in row["after"].items()},
            }
            for task, row in tasks.items()
        }
    }


def guard_record(
    right: Mapping[str, list[float]],
    name: str,
    questions: Sequence[Item],
    count: int | None = None,
    chance: float | None = None,
) -> dict[str, Any]:
    """Return the guard's entry in `result.json`.

    Args:
        right: Accuracies in [0, 1] by method and seed; one value under "before".
        name: Name of the questions.
        questions: The questions, whose options say what guessing would give.
        count: Number of questions; default: that of `questions`.
        chance: Accuracy in [0, 1] of guessing; default: that of `questions`.
    """
    if chance is None:
        chance = float(np.mean([1 / len(item.options) for item in questions]))
    before = 100 * right["before"][0]
    after, change = {}, {}
    for method, values in right.items():
        if method == "before":
            continue
        percent = 100 * np.array(values)
        interval = seed_interval(percent - before) if np.ptp(percent) > 0 else None
        after[method] = {"mean": float(percent.mean()), "by_seed": percent}
        change[method] = {
            "mean": float(percent.mean() - before),
            "seed_interval": _bounds(interval),
            "within": bool(abs(percent.mean() - before) <= GUARD_POINTS),
        }
    return {
        "test": name,
        "questions": len(questions) if count is None else count,
        "chance": 100 * chance,
        "before": before,
        "after": after,
        "change": change,
        "limit": GUARD_POINTS,
    }


def _questions(written: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of step 1 summed over seeds, and each seed's own."""
    rows = list(written.values())
    total = {k: sum(row[k] for row in rows) for k in ("asked_for", "requests", "parsed", "left")}
    removed = {name: sum(row["removed"][name] for row in rows) for name in rows[0]["removed"]}
    by_seed = {f"seed{seed}": row for seed, row in written.items()}
    return total | {"removed": removed, "by_seed": by_seed}


def _lines(groups: tuple[str, ...], inputs: Inputs) -> dict[str, Any]:
    """Return the scores in points of answers that need no model."""
    record = {
        name: {
            "mean": float(100 * np.mean(values)),
            "countries": dict(zip(groups, (100 * values).tolist(), strict=True)),
        }
        for name, values in culture_lines(inputs.tables).scores.items()
    }
    return finite_or_none(record)


def _personas(inputs: Inputs, answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Return how well personas can be told apart, in the first run, mean over seeds.

    `personas_identified` counts personas that are closest to their own group's majority answers,
    `countries_identified` groups that are closest to their own persona; `agreement` is the mean
    alignment of two personas.
    """
    gold_CxQ = inputs.tables.gold_CxQ
    own_C = np.arange(len(gold_CxQ))
    humans = 100 * agreement(gold_CxQ, inputs.tables)[0]
    record: dict[str, Any] = {"of": len(own_C), "humans": {"agreement": humans}}
    for method in (method for method in PERSONAS if method in answers):
        personas, countries, alike = [], [], []
        for answers_CxQ in answers[method][:, 0]:
            matrix_CxC = alignment(answers_CxQ[:, None], gold_CxQ[None], inputs.tables)
            personas.append(identify(matrix_CxC, own_C).hits)
            countries.append(identify(matrix_CxC.T, own_C).hits)
            alike.append(100 * agreement(answers_CxQ, inputs.tables)[0])
        record[method] = {
            "personas_identified": float(np.mean(personas)),
            "countries_identified": float(np.mean(countries)),
            "agreement": float(np.mean(alike)),
        }
    return finite_or_none(record)


def _leaky_methods() -> list[str]:
    """Return the methods whose prompts read answers of a survey, here the one tested on."""
    style_of = {style: style for style in STYLES} | TRAINED_UNDER
    methods = [method.key for method in CULTURESPA_METHODS]
    return [key for key in methods if reads_answers(style_of.get(key, "p1"))]
