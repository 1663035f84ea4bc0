"""The result of asking a survey, and `result.json`.

    warnings          what to know before any number: kind and text
                      (`jaxalign.stats.result_warnings`)
    survey            what was asked: name, version, source, items, simulated ...
    countries         the groups spoken as and compared with
    rows.KEY          KEY is SYSTEM-STYLE, such as model-p1:
        .title, .system, .style, .countries (spoken as; null where none is named)
        .reads_test   whether its prompts hold answers of the tested survey
        .valid_mass   probability that a reply begins with an option (if sampled: share of replies
                      that name one), mean over what was asked
        .replies      replies, unreadable, out_of_range, option_lists
        .constant     {COUNTRY or "": {code, share, position, position_share, answers}}: the most
                      frequent code, its share of the answers in percent, and the same of positions
        .scores, .mean  {COUNTRY: {value, low, high}}: alignment in points, with its interval over
                      questions, and the mean over the countries spoken as, which may be fewer
                      than `countries` where adapters or prompts speak for one country each
        .analysis     key of the analysis that they come from
    differences       [{a, b, value, low, high, verdict, countries {COUNTRY: {value, low, high}}}]:
                      a − b, paired by question: over those that both answered in each of their runs
    lines.LINE        {mean, countries}: scores of answers that need no model
    vsm               where the survey holds the VSM's items: constant, edition, published
                      {COUNTRY}, scores {KEY: {COUNTRY or "": {pdi, ...}}}, lines {COUNTRY}, and
                      distance {KEY: {COUNTRY: points}}, the sum of absolute differences to the
                      published scores
    test              where questions have right answers: questions, places, accuracy {KEY: {COUNTRY
                      or "": {value, low, high, places {PLACE: {value, low, high, questions}},
                      minus_first {value, low, high}}}} in percent, with Wilson's interval over
                      questions, and lines {chance, constant}
    measure           what the answers say about the instrument (`instrument`): the validity gate,
                      and every row under each presentation
    answer_examples   a few answers in full (`jaxalign.stats.answer_examples`)
    settings, facts, versions  what is needed to make the result again

null stands where there is nothing to score. Of a survey that does not say how countries answered,
and of a test, there are no scores, differences and lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import finite_or_none
from jaxalign.methods.ask_survey.inputs import MODEL, AskInputs, Row
from jaxalign.methods.ask_survey.instrument import measure_record
from jaxalign.methods.ask_survey.result_warnings import warnings_of
from jaxalign.methods.ask_survey.settings import OF_SOFT_PROMPTS, AskSettings, needs_examples
from jaxalign.methods.base import ICL, NAIVE, UNAWARE
from jaxalign.report.wording import IDENTICAL, NO_DIFFERENCE
from jaxalign.runs import settings_of, versions
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis import analyse
from jaxalign.stats.analysis_tables import about, most_frequent
from jaxalign.stats.answer_examples import answer_examples
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.choice_scores import (
    choice_scores,
    paired_difference,
    questions_of,
    share_interval,
    trivial_answers,
)
from jaxalign.stats.intervals import Interval, widened
from jaxalign.stats.paired_scores import drawn_scores, spread
from jaxalign.stats.scores import vsm_scores
from jaxalign.stats.vsm import other_groups_lines, trivial_lines, value_columns
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.hofstede import DIMENSIONS, edition_scores
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.tables import Tables, make_tables, option_table

ByRow = dict[str, dict[str | None, Responses]]  # by a row's key and group; of one condition each
_METRIC = "alignment"
_MOST_SHOWN = 4  # ways of asking whose answers are shown in full
_BOUNDS = ("value", "low", "high")


def analyses_of(
    settings: AskSettings, inputs: AskInputs, responses: ByRow
) -> dict[str, dict[str, Any]]:
    """Analyse the answers of every row as replies are analysed (`jaxalign.stats.analysis`).

    A row that speaks as countries is set beside a row that names none, paired; that one gets an
    analysis of its own only if no other has it.

    Returns:
        The analyses by row; none if the survey does not say how countries answered.
    """
    if not inputs.has_answers:
        return {}
    references = {row.key: _reference(row, inputs.rows) for row in inputs.rows}
    used = {reference.key for reference in references.values() if reference}
    analyses = {}
    for row in inputs.rows:
        by_group, reference = responses[row.key], references[row.key]
        if row.groups == (None,):
            if row.key in used:
                continue
            aware, unaware = {}, _runs(by_group[None])
        else:
            aware = {group: _runs(answers) for group, answers in by_group.items()}
            unaware = _runs(responses[reference.key][None]) if reference else ()
        analyses[row.key] = analyse(
            inputs.survey,
            aware,
            unaware,
            inputs.countries,
            resamples=settings.resamples,
            seed=settings.seed,
            by_presentation=_by_presentation(by_group, reference and responses[reference.key]),
        )
    return analyses


def _by_presentation(
    by_group: Mapping[str | None, Responses], reference: Mapping[str | None, Responses] | None
) -> dict[str, tuple[dict[str, list[Responses]], list[Responses]]] | None:
    """Return the runs of a row, and of the row that it is set beside, in each presentation alone.

    None where there is one presentation.
    """
    unaware = by_group.get(None) or (reference or {}).get(None)
    aware = {group: answers for group, answers in by_group.items() if group is not None}
    every = [*aware.values(), *([unaware] if unaware else [])]
    if any(answers.by_presentation is None for answers in every):
        return None
    return {
        name: (
            {group: _runs(answers.by_presentation[name]) for group, answers in aware.items()},
            _runs(unaware.by_presentation[name]) if unaware else [],
        )
        for name in every[0].by_presentation
    }


def _reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row without a country that a row is set beside: its own system's, or the model's.

    Styles of the soft-prompt paper are set beside its plain question, CultureSPA's beside unaware.
    """
    if row.groups == (None,):
        return None
    first = NAIVE.key if row.style in OF_SOFT_PROMPTS else UNAWARE.key
    candidates = [other for other in rows if other.groups == (None,)]
    candidates = [c for c in candidates if c.system.key in (row.system.key, MODEL)]
    # Python sorts False before True, and keeps the order of equals.
    candidates.sort(key=lambda c: (c.system.key != row.system.key, c.style != first))
    return candidates[0] if candidates else None


def _runs(answers: Responses) -> list[Responses]:
    """Return each run of replies by itself; exact answers are one run."""
    if answers.positions is None:
        return [answers]
    survey, labels = answers.survey, answers.conditions
    return [Responses.from_positions(survey, labels, run[None]) for run in answers.positions]


def make_record(
    settings: AskSettings,
    inputs: AskInputs,
    responses: ByRow,
    analyses: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return all of `result.json`.

    Args:
        settings: The run's settings.
        inputs: What they name.
        responses: The answers.
        analyses: What `analyses_of` returns.
    """
    record = {
        "warnings": warnings_of(settings, inputs, responses),
        "survey": about(inputs.survey),
        "countries": list(inputs.countries),
        "rows": {row.key: _row(inputs, row, responses[row.key]) for row in inputs.rows},
        "differences": [],
        "lines": {},
        "vsm": _vsm(settings, inputs, responses),
        "test": None if inputs.test is None else _test(settings, inputs, responses),
        "measure": measure_record(settings, inputs, responses),
        "answer_examples": _examples(inputs, responses),
        "settings": settings_of(settings, fixed_only=True),
        "facts": inputs.facts,
        "versions": versions(),
    }
    if inputs.has_answers:
        _add_scores(record["rows"], inputs, analyses)
        record["differences"] = _differences(settings, inputs, responses, analyses)
        record["lines"] = _lines(analyses)
    return finite_or_none(record)


def _examples(inputs: AskInputs, responses: ByRow) -> list[dict[str, Any]]:
    """Return what the first ways of asking answer to the first items, or where they differ most."""
    spoken = next((row.groups for row in inputs.rows if row.groups != (None,)), (None,))
    shares = {}
    for row in inputs.rows:
        by_group = responses[row.key]
        each = [by_group.get(group, by_group.get(None)) for group in spoken]
        if None not in each and len(shares) < _MOST_SHOWN:
            shares[row.title] = np.concatenate([answers.distributions() for answers in each])
    if not shares:
        return []
    between = tuple(list(shares)[:2]) if len(shares) > 1 else None
    if inputs.has_answers and spoken != (None,):
        shares["people"] = np.stack([inputs.survey.truth_QxO(group) for group in spoken])
    return answer_examples(inputs.survey, shares, [group or "" for group in spoken], between)


def _row(inputs: AskInputs, row: Row, by_group: Mapping[str | None, Responses]) -> dict[str, Any]:
    """Return what is known of a row without any country's answers."""
    counts = [answers.counts() for answers in by_group.values()]
    _, codes_QxO = option_table(inputs.survey)
    masses = np.concatenate([answers.valid_mass.ravel() for answers in by_group.values()])
    known = masses[~np.isnan(masses)]
    return {
        "title": row.title,
        "system": row.system.title,
        "style": row.style,
        "countries": None if row.groups == (None,) else list(row.groups),
        "reads_test": row.style != ICL.key and needs_examples(row.style) and inputs.shows_test,
        "valid_mass": float(known.mean()) if len(known) else None,
        "replies": {name: sum(count[name] for count in counts) for name in counts[0]},
        "constant": {
            group or "": most_frequent(answers.answers()[:, 0], codes_QxO)
            for group, answers in by_group.items()
        },
        "mean": None,
        "scores": {},
        "analysis": None,
    }


# Scores by country


def _add_scores(
    rows: dict[str, dict[str, Any]], inputs: AskInputs, analyses: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add each row's scores, from its own analysis or from one that it is the reference of."""
    for row in inputs.rows:
        key, mode = row.key, "aware" if row.groups != (None,) else "unaware"
        if key not in analyses:
            used_by = (other for other in inputs.rows if _reference(other, inputs.rows) == row)
            key = next(used_by).key
        table = analyses[key]["intervals"][mode]
        scores = {country: record[_METRIC] for country, record in table.items()}
        rows[row.key] |= {"mean": scores.pop("mean", None), "scores": scores, "analysis": key}


def _differences(
    settings: AskSettings,
    inputs: AskInputs,
    responses: ByRow,
    analyses: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return which rows are compared, and their differences.

    Every row that speaks as countries is compared with its reference; one of an adapter with the
    unchanged model under the same style; and one of soft prompts also with every style of the
    unchanged model that names countries, as the prompts are tuned to do without naming any.
    """
    found = []
    for row in inputs.rows:
        reference = _reference(row, inputs.rows)
        if reference is not None:
            table = analyses[row.key]["intervals"]["difference"]
            countries = {country: record[_METRIC] for country, record in table.items()}
            mean = countries.pop("mean", None)
            if mean is not None:
                names = {"a": row.key, "b": reference.key}
                found.append(names | mean | {"countries": countries})
    unchanged = [row for row in inputs.rows if row.system.key == MODEL]
    changed = [row for row in inputs.rows if row.system.key != MODEL]
    if unchanged and changed:
        tables = make_tables(inputs.survey, inputs.countries)
        draws = count_draws(len(inputs.survey.items), settings.resamples, settings.seed)
        known = {(difference["a"], difference["b"]) for difference in found}
        for a in changed:
            for b in unchanged:
                instead = a.system.is_soft and b.groups != (None,)
                if (a.key, b.key) not in known and (a.style == b.style or instead):
                    pair = responses[a.key], responses[b.key]
                    record = _paired(*_pair(pair, tables), tables, draws, _alone(pair, tables))
                    found.append({"a": a.key, "b": b.key} | record)
    return found


def _positions(by_group: Mapping[str | None, Responses], tables: Tables) -> np.ndarray:
    """Return the answers as positions [N, C, Q], NaN for groups that nobody speaks for."""
    answers = {group: found.answers()[:, 0] for group, found in by_group.items()}
    runs, items = next(iter(answers.values())).shape
    missing = np.full((runs, items), np.nan, np.float32)
    everyone = answers.get(None, missing)
    return np.stack([answers.get(country, everyone) for country in tables.countries], axis=1)


_Pair = tuple[Mapping[str | None, Responses], Mapping[str | None, Responses]]


def _pair(pair: _Pair, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    a, b = (_positions(by_group, tables) for by_group in pair)
    return a, b


def _alone(pair: _Pair, tables: Tables) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the positions of both rows in each presentation alone; none if there is only one."""
    every = [answers for by_group in pair for answers in by_group.values()]
    if any(answers.by_presentation is None for answers in every):
        return []
    forms = []
    for name in every[0].by_presentation:
        a, b = ({g: found.by_presentation[name] for g, found in rows.items()} for rows in pair)
        forms.append(_pair((a, b), tables))
    return forms


def _paired(
    a_NxCxQ: np.ndarray,
    b_NxCxQ: np.ndarray,
    tables: Tables,
    draws: np.ndarray,
    alone: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> dict[str, Any]:
    """Return the difference of two rows over the items that both answered in each of their runs.

    Over its own items, a row would look better for not answering what is hard. Intervals include
    the spread over presentations, where `alone` holds the answers in each of several.
    """
    difference_NxC, there_C = _resampled_difference(a_NxCxQ, b_NxCxQ, tables, draws)
    there = np.flatnonzero(there_C).tolist()
    if not there:
        return {"value": None, "low": None, "high": None, "verdict": "no answers", "countries": {}}
    forms = [_resampled_difference(*pair, tables, draws[:1])[0][0] for pair in alone]

    def interval_of(columns: list[int]) -> Interval:
        found = spread(difference_NxC[:, columns].mean(axis=1, keepdims=True)).questions
        return widened(found, [form_C[columns].mean() for form_C in forms]) if forms else found

    by_country = {tables.countries[c]: _points(interval_of([c])) for c in there}
    interval = interval_of(there)
    return _points(interval) | {"verdict": _verdict(interval), "countries": by_country}


def _resampled_difference(
    a_NxCxQ: np.ndarray, b_NxCxQ: np.ndarray, tables: Tables, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference on every resample, [N, C], and which countries have one, bool [C]."""
    both_CxQ = ~(np.isnan(a_NxCxQ).any(axis=0) | np.isnan(b_NxCxQ).any(axis=0))
    means = [
        np.mean(drawn_scores(np.where(both_CxQ, x, np.nan), tables, draws), axis=1)
        for x in (a_NxCxQ, b_NxCxQ)
    ]
    return means[0] - means[1], both_CxQ.any(axis=1)


def _points(interval: Interval) -> dict[str, float]:
    return {
        name: round(float(x), 4) for name, x in zip(("value", "low", "high"), interval, strict=True)
    }


def _verdict(interval: Interval) -> str:
    """Return "above" or "below" where zero lies outside the interval, "identical" at 0 alone."""
    low, high = interval.bounds
    if low == high == 0:
        return IDENTICAL
    return "above" if low > 0 else "below" if high < 0 else NO_DIFFERENCE


def _lines(analyses: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of answers that need no model; every analysis has the same."""
    analysis = next(iter(analyses.values()))
    return {
        line: {
            "mean": analysis["means"]["all"]["lines"][line],
            "countries": {c: row["lines"][line] for c, row in analysis["scores"].items()},
        }
        for line in LINES
    }


# The six scores of the VSM


def _vsm(settings: AskSettings, inputs: AskInputs, responses: ByRow) -> dict[str, Any] | None:
    """Return the six scores of every row, and how far they are from the published ones."""
    try:
        value_columns(inputs.survey)
    except UserError:  # the survey does not hold the items of the module
        return None
    edition = edition_scores(settings.edition)
    published = {c: edition[c] for c in inputs.countries if c in edition}
    scores, distance = {}, {}
    for row in inputs.rows:
        by_group = {
            group: vsm_scores(answers, settings.constant, mas_weight=settings.mas_weight).values[0]
            for group, answers in responses[row.key].items()
        }
        scores[row.key] = {
            group or "": dict(zip(DIMENSIONS, values.tolist(), strict=True))
            for group, values in by_group.items()
        }
        everyone = by_group.get(None)
        distance[row.key] = {
            country: float(np.abs(by_group.get(country, everyone) - _target(target))[used].sum())
            for country, target in published.items()
            if (country in by_group or everyone is not None)
            and (used := ~np.isnan(_target(target))).any()
        }
    constants = np.full(len(DIMENSIONS), settings.constant)
    return {
        "constant": settings.constant,
        "mas_weight": settings.mas_weight,
        "edition": settings.edition,
        "published": published,
        "scores": scores,
        "distance": distance,
        "lines": {
            country: _vsm_lines(country, edition, constants, settings.mas_weight)
            for country in published
        },
    }


def _vsm_lines(
    country: str,
    edition: Mapping[str, Mapping[str, float]],
    constants: np.ndarray,
    mas_weight: int,
) -> dict[str, float]:
    """Return the distances of answers that need no model, and of other countries' scores."""
    target = _target(edition[country])
    others = [_target(scores) for name, scores in edition.items() if name != country]
    used = ~np.isnan(target)
    return trivial_lines(target, used, constants, mas_weight) | other_groups_lines(
        target, np.array(others), used
    )


def _target(scores: Mapping[str, float]) -> np.ndarray:
    """Return the published scores as an array [6], NaN where one is not published."""
    return np.array([scores.get(dimension, np.nan) for dimension in DIMENSIONS])


# Questions with right answers


def _test(settings: AskSettings, inputs: AskInputs, responses: ByRow) -> dict[str, Any]:
    """Return how many questions each row answers rightly, over all and by place."""
    test = inputs.test
    labels, question_Q = questions_of(test)
    place_of = dict(zip(question_Q.tolist(), test.countries, strict=True))
    place_G = np.array([place_of[g] for g in range(len(labels))])
    right = {
        (key, group): _right(test, answers)
        for key, by_group in responses.items()
        for group, answers in by_group.items()
    }
    first_G = next(iter(right.values()))
    accuracy: dict[str, dict[str, Any]] = {key: {} for key in responses}
    for (key, group), right_G in right.items():
        difference = paired_difference(right_G, first_G, settings.resamples, settings.seed)
        accuracy[key][group or ""] = _percent(right_G) | {
            "places": {
                place: _percent(right_G[place_G == place])
                for place in dict.fromkeys(place_G.tolist())
                if place
            },
            "minus_first": None if right_G is first_G else _difference(difference),
        }
    lines = trivial_answers(test)
    return {
        "questions": len(labels),
        "places": [place for place in dict.fromkeys(place_G.tolist()) if place],
        "accuracy": accuracy,
        "lines": {
            "chance": 100 * lines.chance,
            "constant": {str(n + 1): 100 * share for n, share in enumerate(lines.constant)},
        },
    }


def _right(test: ChoiceTest, answers: Responses) -> np.ndarray:
    """Return float64 [G]: the share of replies that answer each question rightly."""
    positions_NxQ = answers.answers()[:, 0]
    return choice_scores(test, np.nan_to_num(positions_NxQ, nan=-1).astype(int)).right_G


def _percent(right_G: np.ndarray) -> dict[str, Any]:
    interval, questions = share_interval(right_G)
    return {
        "value": 100 * interval.mean,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "questions": questions,
    }


def _difference(found: tuple[Interval, int] | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {
        name: 100 * float(x) for name, x in zip(("value", "low", "high"), found[0], strict=True)
    }
