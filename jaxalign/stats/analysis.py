"""Score answers to a survey against how countries answered it: the analysis behind a report.

`score_replies` reads files of free-text replies and analyses them; `analyse` takes responses that
are in memory. Both return one plain dictionary, which `jaxalign score` writes as `result.json`. All
scores in it are in points, 100 × a score in [0, 1], and None means that there is no value. COUNTRY,
LINE and METRIC stand for keys: lines are those of `jaxalign.stats.alignment.LINES`, metrics those
of `jaxalign.stats.metrics`. "aware" replies were given as a person of a country (a persona),
"unaware" ones without a country named.

    format         "jaxalign analysis 1"
    warnings       what to know before any number: kind and text
                   (`jaxalign.stats.result_warnings`)
    instrument     the survey: name, version, source, wording, simulated, sha256, items,
                   ordinal_items, nominal_items; of a file of respondents also respondents
                   {COUNTRY: {number, effective}}
    settings       level (of intervals), resamples, seed
    countries      [COUNTRY] in the survey; personas: those of them with aware replies
    labels         lines {LINE: text}, metrics {METRIC: text}
    scores         {COUNTRY: {aware, unaware, aware_ordinal, unaware_ordinal, items, unaware_items,
                   lines {LINE}, best_neighbour}}: alignment over all items as published, and over
                   ordinal items only; items: how many enter `aware` (else `unaware`) in the first
                   run; unaware_items: how many enter `unaware`
    means          all, personas: {countries, aware, unaware, lines {LINE}} over all countries, and
                   over those with a persona; None where one of them has no value
    intervals      {aware, unaware, difference: {COUNTRY or "mean": {METRIC: {value, low, high}}}}:
                   bootstrap over items; difference: aware − unaware, paired, with a `verdict`;
                   "mean" is over the countries that are there. A difference is over the items that
                   both answered in each of their runs, so it need not be the difference of their
                   scores
    against_lines  {COUNTRY or "mean": {LINE: {value, low, high, verdict}}}: aware − line, paired,
                   in alignment; for lines that are one set of answers per country
    seeds          {aware, unaware: {COUNTRY: {runs, values [..], mean, low, high}}}: Student's
                   interval over runs; mean, low and high are None with one run
    identification rows, columns: {hits, of, percent, nearest {COUNTRY: COUNTRY}}; rows: is a
                   persona nearest to its own country; columns: is a country nearest to its own
                   persona; chance_percent of each
    dispersion     personas, humans: {agreement, pairs}: mean alignment between two personas, and
                   between two countries' majority answers; humans_same: of the personas' countries;
                   homogenising: whether personas agree more than humans_same
    long_items     items of ten options or more: count, share_of_denominator, share_of_error
                   {COUNTRY} (percent), and alignment on them and on the others: long {COUNTRY},
                   short {COUNTRY}
    constant       {aware: {COUNTRY: K}, unaware: K, people: {COUNTRY: K}} with K {code, share,
                   position, position_share, answers}: the most frequent code and its share in
                   percent of all answers, and the same for the position of an option, counted from
                   1; people: of majority answers. None where there are no answers
    unreadable     {aware: {COUNTRY: U}, unaware: U} with U {runs, replies, unreadable,
                   out_of_range, option_lists, items [id]} over all runs; total: {replies,
                   unreadable, out_of_range, option_lists}
    topics         [{topic, items, long_items, aware {COUNTRY}, unaware {COUNTRY},
                   mean_of_others {COUNTRY}}] for personas
    items          [{id, topic, scale, options (number of), majority {COUNTRY}, aware {COUNTRY},
                   unaware, error {COUNTRY}}] with answers in the survey's codes, means over runs,
                   and error |aware − majority| in percent of the range, None for nominal items
    alignment      countries: {rows, columns, values [[..]]}; personas: the same with personas as
                   rows and countries as columns
    map            points [{label, kind: country | persona | unaware, country, x, y}], explained
                   (percent of squared distances): classical scaling of 1 − alignment
    validity       does the survey measure anything on this model? The gate of
                   `jaxalign.stats.validity` for the personas; None without personas
    presentations  None where answers have one presentation; else {names, aware {COUNTRY: {NAME}},
                   unaware {COUNTRY: {NAME}}, correlation {aware, unaware: {value, low, high}}}:
                   alignment under each presentation alone, and the correlation of item means
                   between the first two, from -1 to 1. All intervals over items then include the
                   spread over presentations
    notes          [what a reader of the scores should know about the files of replies]; only
                   from `score_replies`

"verdict" is "no clear difference" where zero lies in the interval, "identical" where it is all
that lies there, else "above" or "below".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import finite_or_none
from jaxalign.report.wording import IDENTICAL, NO_DIFFERENCE
from jaxalign.stats import analysis_tables as sections
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis_case import (
    Case,
    Runs,
    complete_mean,
    make_case,
    mean_over_runs,
    points,
    run_scores,
)
from jaxalign.stats.comparison import Comparison, compare, item_stats, widened_comparison
from jaxalign.stats.intervals import Interval, seed_interval
from jaxalign.stats.metrics import DEFAULT_METRICS, Metric, select
from jaxalign.stats.validity import validity_gate
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.names import find_country
from jaxalign.surveys.options import SurveyOptions
from jaxalign.surveys.presentations import PUBLISHED
from jaxalign.surveys.replies import Numbering, ReaderName, items_left_out, read_answers
from jaxalign.surveys.reply_files import Mode, Replies, read_replies
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import make_tables

FORMAT = "jaxalign analysis 1"


def score_replies(
    survey: Survey | Path | str,
    replies: Sequence[Path | str],
    *,
    distributions: Path | str | None = None,
    wording: Path | str | None = None,
    by: Sequence[str] | None = None,
    min_respondents: int | None = None,
    format: str | None = None,
    reader: ReaderName = "first_integer",
    numbering: Numbering = "codes",
    country: str | None = None,
    mode: Mode | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Score free-text replies, from any tool, against how countries answered a survey.

    Args:
        survey: a survey that says how countries, or other groups, answered, or its file or folder.
        replies: files of replies in one of the layouts of `jaxalign.surveys.reply_files`. Several
            files of the same country and mode are runs.
        distributions: where `survey` is a CSV file: the CSV file with the columns country, item,
            code and share.
        wording: where `survey` is a file that holds codes alone, such as the World Values Survey:
            the file or folder that words its items.
        by: where `survey` is such a file: variables that divide its countries into groups, such as
            "sex" and "age"; see `jaxalign.surveys.groups`.
        min_respondents: where `survey` is such a file: fewest respondents of a group, and fewest
            answers of a group to an item; default: 50.
        format: name of the format of `survey`; default: it is recognised by the file's content.
        reader: how a reply is read. "first_integer" takes the first integer, wherever it stands, as
            published; with "strict" the reply must be the number.
        numbering: what a number means: "codes" are the survey's own, some of which start at 0;
            "positions" means the options were shown as 1, 2, ...
        country: the country or other group of all files; default: what the files say.
        mode: whether the model was told to answer as a person of the country ("aware") or not
            ("unaware"); default: what the files say.
        metrics: names of metrics to compute; see `jaxalign.stats.metrics`.
        resamples: number of resamples of the bootstrap over items, 1 to 1,000,000.
        level: level of all intervals.
        seed: seed of the bootstrap.

    Returns:
        The analysis that the module `jaxalign.stats.analysis` describes.

    Raises:
        UserError: a file is not what it should be, no reply can be read, or a country is not in the
            survey.

    Source:
        Score: Xu et al. 2025 (CultureSPA, arXiv 2410.12971).

    Example:
        >>> import json, pathlib, tempfile
        >>> from jaxalign.stats import score_replies
        >>> from jaxalign.surveys import Item, Survey
        >>> item = Item("q1", "Is the sky blue?", ("yes", "perhaps", "no"), (1, 2, 3))
        >>> shares = {"USA": {"q1": (0.7, 0.2, 0.1)}, "CHN": {"q1": (0.1, 0.2, 0.7)}}
        >>> survey = Survey("sky", "1", "made up", "official", (item,), shares)
        >>> row = {"Q_id": "q1", "question": item.text, "option_lst": item.options}
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "replies_culture_aware_USA_0.json"
        >>> _ = file.write_text(json.dumps([row | {"answer": "I would say 2."}]))
        >>> analysis = score_replies(survey, [file], resamples=100)
        >>> analysis["scores"]["USA"]["aware"], analysis["scores"]["USA"]["lines"]["midpoint"]
        (50.0, 50.0)
    """
    if not replies:
        raise UserError("`replies`: name at least one file")
    if not 1 <= resamples <= 1_000_000:
        raise UserError(f"`resamples` {resamples}: give 1 to 1000000")
    if repeated := {str(path) for path in replies if list(replies).count(path) > 1}:
        raise UserError(f"`replies`: {min(repeated)} is named twice")
    select(metrics)  # an unknown name must not be found after the files have been read
    if not isinstance(survey, Survey):
        options = SurveyOptions(
            wording=None if wording is None else Path(wording),
            by=None if by is None else tuple(by),
            min_respondents=min_respondents,
            format=format,
        )
        survey = read_answered(
            survey, "survey", distributions, worded=False, options=options, quiet=True
        )
    runs = _read_runs(survey, replies, country, mode)
    responses = [read_answers(run, survey, reader, numbering) for run in runs]
    # If no reply is an answer, there is nothing to score, and a wrong setting is the likely cause.
    if all(np.isnan(r.answers()).all() for r in responses):
        count = sum(r.counts()["replies"] for r in responses)
        raise UserError(
            f"`replies` {replies[0]}: no answer in {count} replies to {survey.name}; is it the "
            f"right survey, `reader` ({reader}) and `numbering` ({numbering})?"
        )
    # Group the runs by persona, in the survey's order of countries.
    aware: dict[str, list[Responses]] = {name: [] for name in survey.distributions}
    unaware: list[Responses] = []
    for run, answers in zip(runs, responses, strict=True):
        (unaware if run.country is None else aware[run.country]).append(answers)
    personas = {name: answers for name, answers in aware.items() if answers}
    analysis = analyse(
        survey,
        personas,
        unaware,
        resamples=resamples,
        level=level,
        seed=seed,
        metrics=metrics,
    )
    notes = dict.fromkeys(f"{run.source}: {note}" for run in runs for note in run.notes)
    notes |= dict.fromkeys(_left_out(run, survey) for run in runs if items_left_out(run, survey))
    notes |= dict.fromkeys(f"{survey.name}: {note}" for note in survey.notes)
    return analysis | {"notes": list(notes)}


def _left_out(run: Replies, survey: Survey) -> str:
    """Return a sentence about the replies to items that the survey lacks."""
    ids = items_left_out(run, survey)
    named = ", ".join(ids[:8]) + (" ..." if len(ids) > 8 else "")
    many = "1 reply" if len(ids) == 1 else f"{len(ids)} replies"
    return f"{run.source}: left out {many} to items that {survey.name} lacks: {named}"


def _read_runs(
    survey: Survey, paths: Sequence[Path | str], country: str | None, mode: Mode | None
) -> list[Replies]:
    """Read all runs of all files. Raise UserError for a run given twice and an unknown country."""
    runs: list[Replies] = []
    for path in paths:
        for run in read_replies(Path(path), country, mode):
            if run.country is not None and run.country not in survey.distributions:
                # A tool may write "United States" where the survey has USA.
                run = dataclasses.replace(run, country=find_country(run.country) or run.country)
            # The same replies under another file's name are one run copied, not two runs.
            for other in runs:
                if run == dataclasses.replace(other, source=run.source):
                    raise UserError(f"{run.source}: holds the same replies as {other.source}")
            if run.country is not None and run.country not in survey.distributions:
                raise UserError(f"{run.source}: {survey.why_absent(run.country)}")
            runs.append(run)
    return runs


def analyse(
    survey: Survey,
    aware: Mapping[str, Runs],
    unaware: Runs = (),
    countries: Sequence[str] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] = DEFAULT_METRICS,
    by_presentation: Mapping[str, tuple[Mapping[str, Runs], Runs]] | None = None,
) -> dict[str, Any]:
    """Analyse the answers of personas and of the model without a persona.

    Args:
        survey: a survey that says how countries, or other groups, answered.
        aware: each persona's runs; a run is `Responses` under one condition.
        unaware: the runs without a persona.
        countries: the countries to compare with; default: all of the survey.
        resamples: number of resamples of the bootstrap over items.
        level: level of all intervals, in (0, 1).
        seed: seed of the bootstrap.
        metrics: names of metrics; the headline metric is always included.
        by_presentation: by the name of a presentation, `aware` and `unaware` under it alone, where
            `aware` and `unaware` are averaged over several.

    Returns:
        The dictionary described in the module's docstring.

    Raises:
        UserError: a persona's country is not among those compared with, or there are no answers.
    """
    tables = make_tables(survey, countries)
    case = make_case(survey, tables, aware, unaware)
    chosen = select(metrics)
    forms = {
        name: make_case(survey, tables, *runs) for name, runs in (by_presentation or {}).items()
    }
    comparison = _compare(case, forms.values(), chosen, resamples, level, seed)
    scores = _scores(case)
    constant = sections.constant(case)
    unreadable = sections.unreadable(aware, unaware)
    return {
        "format": FORMAT,
        "warnings": _warnings(survey, case, constant, unreadable["total"]),
        "instrument": sections.about(survey),
        "settings": {"level": level, "resamples": resamples, "seed": seed},
        "countries": list(tables.countries),
        "personas": list(case.personas),
        "labels": {"lines": dict(LINES), "metrics": {m.name: m.label for m in chosen}},
        "scores": scores,
        "means": {
            "all": _means(scores, tables.countries),
            "personas": _means(scores, case.personas),
        },
        "intervals": _intervals(case, chosen, comparison),
        "against_lines": _against_lines(case, comparison),
        "seeds": _seeds(case, level),
        "identification": sections.identification(case),
        "dispersion": sections.dispersion(case),
        "long_items": sections.long_items(case),
        "constant": constant,
        "unreadable": unreadable,
        "topics": sections.topics(case),
        "items": sections.items(case),
        "alignment": sections.alignments(case),
        "map": sections.plane(case),
        "validity": _validity(survey, aware, by_presentation, resamples, level, seed),
        "presentations": sections.presentations(forms, resamples, level, seed),
    }


def _warnings(
    survey: Survey, case: Case, constant: Mapping[str, Any], replies: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return what a reader must know before any score."""
    frequent = {**constant["aware"], "without a persona": constant["unaware"]}
    lost = sum(count for name, count in replies.items() if name != "replies")
    personas = {
        f"persona {p}": case.aware_RxCxQ[:, c]
        for p, c in zip(case.personas, case.rows_P, strict=True)
    }
    return warn.warning_records(
        [
            warn.ResultWarning("simulated", warn.SIMULATED) if survey.simulated else None,
            warn.one_option(
                {
                    name: {"": k | {"mark": k["code"], "share": k["share"] / 100}}
                    for name, k in frequent.items()
                    if k
                }
            ),
            warn.identical({**personas, "no persona": case.unaware_RxQ}),
            warn.few_items(len(survey.items)),
            warn.unread("the files", replies["replies"] - lost, replies["replies"]),
        ]
    )


def _scores(case: Case) -> dict[str, Any]:
    """Return the scores per country over all items and over ordinal ones, means over runs."""
    aware_C, unaware_C = (mean_over_runs(s) for s in run_scores(case))
    aware_ordinal_C, unaware_ordinal_C = (
        mean_over_runs(s) for s in run_scores(case, case.tables.ordinal_Q)
    )
    scores = {}
    for c, country in enumerate(case.tables.countries):
        unaware_items = _items_scored(case, c, case.unaware_RxQ[0])
        has_persona = country in case.personas
        aware_items = _items_scored(case, c, case.aware_RxCxQ[0, c])
        scores[country] = {
            "aware": points(aware_C[c]),
            "unaware": points(unaware_C[c]),
            "aware_ordinal": points(aware_ordinal_C[c]),
            "unaware_ordinal": points(unaware_ordinal_C[c]),
            "items": aware_items if has_persona else unaware_items,
            "unaware_items": unaware_items,
            "lines": {name: points(values[c]) for name, values in case.lines.scores.items()},
            "best_neighbour": case.lines.best_neighbour[c] or None,
        }
    return scores


def _items_scored(case: Case, c: int, answers_Q: np.ndarray) -> int:
    """Return how many items both the country and the model answered."""
    return int((case.tables.asked_CxQ[c] & ~np.isnan(answers_Q)).sum())


def _means(scores: Mapping[str, Any], countries: Sequence[str]) -> dict[str, Any]:
    # The mean of values that were rounded to four decimals, so that it agrees with what is printed.
    rows = [scores[c] for c in countries]
    return {
        "countries": len(rows),
        "aware": complete_mean([r["aware"] for r in rows]),
        "unaware": complete_mean([r["unaware"] for r in rows]),
        "lines": {name: complete_mean([r["lines"][name] for r in rows]) for name in LINES},
    }


def _compare(
    case: Case,
    forms: Collection[Case],
    metrics: Sequence[Metric],
    resamples: int,
    level: float,
    seed: int,
) -> Comparison:
    """Compare the systems aware, unaware, then the lines that are one set of answers each.

    `forms` holds the same answers under each presentation alone.
    """
    names = [m.name for m in metrics]
    stats = item_stats(case.tables, _systems(case), names)
    # Blocks of 500 resamples keep the memory small; the random numbers depend on the block.
    comparison = compare(stats, jax.random.key(seed), resamples, level, min(resamples, 500))
    alone = [item_stats(form.tables, _systems(form), names) for form in forms]
    return jax.tree.map(np.asarray, widened_comparison(comparison, alone, level))


def _systems(case: Case) -> np.ndarray:
    """Return the answers of aware, unaware and the lines, [S, R, C, Q]."""
    shape = case.aware_RxCxQ.shape
    unaware_RxCxQ = np.broadcast_to(case.unaware_RxQ[:, None], shape)
    lines = [np.full(shape, np.nan, np.float32) for _ in case.lines.answers]
    for line_RxCxQ, answers_CxQ in zip(lines, case.lines.answers.values(), strict=True):
        line_RxCxQ[0] = answers_CxQ  # a line has one run
    return np.stack([case.aware_RxCxQ, unaware_RxCxQ, *lines])


def _validity(
    survey: Survey,
    aware: Mapping[str, Runs],
    by_presentation: Mapping[str, tuple[Mapping[str, Runs], Runs]] | None,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any] | None:
    """Return what the validity gate says of the personas; None without any."""
    personas = [country for country, runs in aware.items() if runs]
    if not personas:
        return None
    tables = make_tables(survey, personas)
    forms = {PUBLISHED: aware}
    if by_presentation:
        forms = {name: form for name, (form, _) in by_presentation.items()}
    shares_FxPxQxO = np.stack(
        [np.concatenate([_mean_shares(runs[p]) for p in personas]) for runs in forms.values()]
    )
    # Answers are shares of replies unless they are exact.
    counts = [
        sum(len(run.positions) for form in forms.values() for run in form[p])
        for p in personas
        if all(run.positions is not None for form in forms.values() for run in form[p])
    ]
    gate = validity_gate(
        shares_FxPxQxO,
        tables,
        tuple(forms),
        replies=min(counts) if len(counts) == len(personas) else None,
        resamples=resamples,
        level=level,
        seed=seed,
    )
    return finite_or_none(gate.record())


def _mean_shares(runs: Runs) -> np.ndarray:
    """Return the mean of the distributions of several runs, [1, Q, O]; NaN for no answer."""
    shares_RxQxO = np.concatenate([run.distributions()[:1] for run in runs])
    known_RxQx1 = ~np.isnan(shares_RxQxO).any(axis=-1, keepdims=True)
    total_QxO = np.where(known_RxQx1, shares_RxQxO, 0.0).sum(axis=0)
    count_Qx1 = known_RxQx1.sum(axis=0)
    return np.where(count_Qx1 > 0, total_QxO / np.maximum(count_Qx1, 1), np.nan)[None]


def _intervals(
    case: Case, metrics: Sequence[Metric], comparison: Comparison
) -> dict[str, dict[str, Any]]:
    """Return the intervals of every metric per country and of the mean over countries."""

    def table(
        by_country: Interval, mean: Interval, system: int, write: Callable[[Interval], dict]
    ) -> dict[str, Any]:
        rows = {
            country: Interval(*(bound[system, c] for bound in by_country))
            for c, country in enumerate(case.tables.countries)
        }
        rows["mean"] = Interval(*(bound[system] for bound in mean))
        return {
            name: {
                m.name: write(Interval(*(bound[i] for bound in row))) for i, m in enumerate(metrics)
            }
            for name, row in rows.items()
            if not np.isnan(row.mean).all()
        }

    c = comparison
    return {
        "aware": table(c.countries, c.country_mean, 0, _record),
        "unaware": table(c.countries, c.country_mean, 1, _record),
        "difference": table(c.differences, c.mean_difference, 0, _aware_minus),
    }


def _against_lines(case: Case, comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return aware − line in the headline metric, per persona and on average."""

    def row(interval_SxM: Interval) -> dict[str, Any]:
        # Differences start with unaware; the lines follow. The headline metric is the first.
        return {
            name: _aware_minus(Interval(*(bound[1 + n, 0] for bound in interval_SxM)))
            for n, name in enumerate(case.lines.answers)
        }

    rows = {
        country: row(Interval(*(bound[:, c] for bound in comparison.differences)))
        for country, c in zip(case.personas, case.rows_P, strict=True)
    }
    return rows | ({"mean": row(comparison.mean_difference)} if case.personas else {})


def _seeds(case: Case, level: float) -> dict[str, Any]:
    """Return the score of each run, and Student's interval over runs, per country."""
    out: dict[str, Any] = {}
    for name, scores_RxC in zip(("aware", "unaware"), run_scores(case), strict=True):
        out[name] = {}
        for c, country in enumerate(case.tables.countries):
            values = scores_RxC[~np.isnan(scores_RxC[:, c]), c]
            if len(values):
                interval = seed_interval(values, level) or Interval(np.nan, np.nan, np.nan)
                out[name][country] = {
                    "runs": len(values),
                    "values": [points(v) for v in values],
                    **{bound: points(value) for bound, value in interval._asdict().items()},
                }
    return out


def _record(interval: Interval) -> dict[str, Any]:
    """Return an interval of a score in points."""
    return {
        "value": points(interval.mean),
        "low": points(interval.low),
        "high": points(interval.high),
    }


def _aware_minus(interval: Interval) -> dict[str, Any]:
    """Return the interval of aware − other in points with its verdict, from that of other − aware.

    A comparison gives differences from the first system, which is aware; so the sign is turned.
    """
    low, high = interval.negated().bounds
    record = _record(interval.negated())
    if record["low"] is not None:
        record["verdict"] = "above" if low > 0 else "below" if high < 0 else NO_DIFFERENCE
        if low == high == 0:
            record["verdict"] = IDENTICAL
    return record
