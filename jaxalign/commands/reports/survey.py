"""The report of a survey analysis: how close answers come to countries, and what else comes close.

It is made from the dictionary that `jaxalign.stats.analysis.analyse` returns and documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import survey_figures as figures
from jaxalign.commands.reports import survey_tables as tables
from jaxalign.commands.reports.constant import constant_statement, constant_table
from jaxalign.commands.reports.presentations import correlations_table, presentations_table
from jaxalign.commands.reports.validity import allows_verdicts, gate_blocks, gate_note, judged
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.report.common import provenance
from jaxalign.report.document import (
    Block,
    Document,
    Estimate,
    Listing,
    Section,
    Table,
    Text,
    section,
)
from jaxalign.report.render import write_report
from jaxalign.report.wording import (
    NO_SIGNAL,
    chance_of_many,
    groups_note,
    joined,
    number,
    tally,
    verdict,
    with_bounds,
)

_TERMS = (
    "Persona: the model was told to answer as a person of the country.",
    "Without a persona: the model was asked the same questions and no country was named.",
    "Majority answers: for each question the answer that most people of the country gave.",
    "Score: 100 × (1 − ‖answers − majority answers‖ / ‖ranges‖) over the questions that were "
    "answered (the cultural alignment score of Xu et al. 2025, arXiv 2410.12971). 100 means the "
    "country's majority answers, 0 the opposite end of every scale.",
    "Baseline: the score of answers that need no model, such as the middle of every scale. A "
    "model's score is only worth something beyond these.",
    "A number with a range, such as 71.1 (68.2 to 73.9), is an estimate with its interval.",
)
_LIMITS = (
    "Read a score beside the baselines. A model below the mean of the other countries' majority "
    "answers knows less about a country than its neighbours do.",
    "The score squares distances, so questions with long scales outweigh those with short ones. It "
    "also treats options without an order as if they had one. The other metrics show which results "
    "depend on that.",
    "Intervals over questions say what other questions like these would give; they do not cover "
    "other runs, wordings or models. Intervals over runs, where there are several, cover other "
    "runs only.",
    "A majority answer is a country's most frequent answer. It does not describe the people who "
    "answered otherwise.",
)


def survey_report(analysis: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into a folder.

    Args:
        analysis: what `jaxalign.stats.analysis.analyse` returns. A key "versions" that is added to
            it is printed at the end.
        out: the folder; it is created.

    Returns:
        The paths of the two reports.
    """
    count, personas = len(analysis["countries"]), analysis["personas"]
    survey = analysis["instrument"]
    who = f"{len(personas)} personas" if len(personas) > 6 else f"Personas of {joined(personas)}"
    gate = analysis["validity"]
    analysis = judged(analysis, gate)
    notes = (*warning_notes(analysis), *((gate_note(gate),) if personas else ()))
    document = Document(
        title="How close the answers come to countries",
        summary=f"{who if personas else 'A model without a persona'}, compared with the people of "
        f"{count} countries on the {survey['items']} questions of {survey['name']}."
        f"{groups_note(analysis['countries'])}",
        labels=notes,
        sections=tuple(s for s in _sections(analysis, out) if s.blocks),
    )
    return write_report(document, out)


def _sections(analysis: Mapping[str, Any], out: Path) -> list[Section]:
    record = {
        "settings": analysis["settings"],
        "facts": {"survey": analysis["instrument"]},
        "versions": analysis.get("versions"),
    }
    return [
        section(
            "In short",
            Listing(_statements(analysis), "Results"),
            Listing(_what_was_measured(analysis), "What was measured"),
            Listing(_TERMS, "Terms"),
        ),
        section(
            "Validity gate: does the survey measure anything on this model?",
            *gate_blocks({"Personas": analysis["validity"]}),
        ),
        _scores(analysis, out),
        section("What the scores owe to the presentation", *_presentations(analysis)),
        section(
            "Other metrics",
            tables.metrics_table(analysis),
            tables.metric_definitions(analysis),
            *(tables.metrics_by_country(analysis, mode) for mode in figures.MODES),
        ),
        _personas(analysis, out),
        section("Topics", figures.topics_figure(analysis, out)),
        section(
            "Questions with long scales",
            Text(_long_item_statement(analysis)),
            tables.long_items_table(analysis),
        ),
        section(
            "Constant answers",
            Text(_constant_statement(analysis)),
            constant_table(
                {
                    figures.MODES["aware"].label: analysis["constant"]["aware"],
                    figures.MODES["unaware"].label: {"": analysis["constant"]["unaware"]},
                    "people's majority answers": analysis["constant"]["people"],
                }
            ),
        ),
        section(
            "Unreadable replies",
            Text(_unreadable_statement(analysis)),
            tables.unreadable_table(analysis),
        ),
        section("Questions", tables.errors_table(analysis), tables.answers_table(analysis)),
        section("What these scores do not prove", Listing(_LIMITS)),
        provenance(record),
    ]


def _statements(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    """State the results, one sentence or two each."""
    statements = [
        _mean_statement(analysis),
        _item_statement(analysis),
        _baseline_statement(analysis),
    ]
    if analysis["personas"]:
        statements += [_identification_statement(analysis), _dispersion_statement(analysis)]
    statements += [
        _constant_statement(analysis),
        _long_item_statement(analysis),
        _unreadable_statement(analysis),
    ]
    # A file of replies may be incomplete, which a reader of the scores must know.
    statements += analysis.get("notes", ())
    return tuple(s for s in statements if s)


def _mean_statement(analysis: Mapping[str, Any]) -> str:
    aware, unaware = (figures.mean_estimate(analysis, mode) for mode in figures.MODES)
    if not (aware and aware.known):
        return f"Mean score without a persona: {with_bounds(unaware, 2)} points."
    statement = f"Mean score of the personas: {with_bounds(aware, 2)} points"
    if not (unaware and unaware.known):
        return statement + "."
    signal = allows_verdicts(analysis["validity"])
    differences = analysis["intervals"].get("difference", {})
    mean = Estimate.read(differences.get("mean", {}).get("alignment"))
    each = [Estimate.read(d.get("alignment")) for c, d in differences.items() if c != "mean"]
    by_country = tally(each, "higher", "lower")
    return (
        f"{statement}; without a persona, against the same countries: {with_bounds(unaware, 2)}. "
        f"On the questions that both answered, the difference is "
        f"{with_bounds(mean, 2, signed=True)}: {verdict(mean, signal=signal)}."
        f"{f' By country the persona is {by_country}.' if signal else ''}"
    )


def _item_statement(analysis: Mapping[str, Any]) -> str:
    """State on how many questions the scores rest: a perfect score on two of them says little."""
    rows = [analysis["scores"][c] for c in analysis["personas"] or analysis["countries"]]
    fewest, most = (f(row["items"] for row in rows) for f in (min, max))
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    total = analysis["instrument"]["items"]
    return f"A country's score rests on {span} of the survey's {total} questions."


def _baseline_statement(analysis: Mapping[str, Any]) -> str:
    """State which baselines score higher than the model at its best."""
    entries = figures.mean_entries(analysis)
    models = [estimate.mean for _, is_model, estimate in entries if is_model]
    if not models:
        return ""
    baselines = [(name, estimate.mean) for name, is_model, estimate in entries if not is_model]
    higher = [f"{name} ({number(mean)})" for name, mean in baselines if mean > max(models)]
    verb = "scores" if len(higher) == 1 else "score"
    ending = f": {joined(higher)}" if higher else ""
    return (
        f"Of {len(baselines)} baselines that need no model, {len(higher) or 'none'} {verb} higher "
        f"than the model{ending}."
    )


def _identification_statement(analysis: Mapping[str, Any]) -> str:
    rows, columns = (analysis["identification"][way] for way in ("rows", "columns"))
    return (
        f"A persona is nearest to its own country in {rows['hits']} of {rows['of']} cases "
        f"({number(rows['chance_percent'])} % by chance). A country is nearest to its own persona "
        f"in {columns['hits']} of {columns['of']} cases ({number(columns['chance_percent'])} % by "
        "chance)."
    )


def _dispersion_statement(analysis: Mapping[str, Any]) -> str:
    dispersion = analysis["dispersion"]
    if dispersion["homogenising"] is None:
        return ""
    more = "more alike than people are"
    alike = f"the personas are {more if dispersion['homogenising'] else f'no {more}'}"
    if not allows_verdicts(analysis["validity"]):
        alike = NO_SIGNAL
    return (
        f"Two personas score {number(dispersion['personas']['agreement'])} points against each "
        f"other on average, the people of two of the same countries "
        f"{number(dispersion['humans_same']['agreement'])}: {alike}."
    )


def _constants(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer given most often, by persona, and without one."""
    constant = analysis["constant"]
    return {**constant["aware"], figures.MODES["unaware"].label: constant["unaware"]}


def _constant_statement(analysis: Mapping[str, Any]) -> str:
    return constant_statement(_constants(analysis), analysis["constant"]["people"])


def _long_item_statement(analysis: Mapping[str, Any]) -> str:
    long_items = analysis["long_items"]
    return (
        f"{long_items['count']} of {analysis['instrument']['items']} questions have ten options or "
        f"more; they make up {number(long_items['share_of_denominator'])} % of the score's weight."
    )


def _unreadable_statement(analysis: Mapping[str, Any]) -> str:
    total = analysis["unreadable"]["total"]
    return (
        f"Of {number(total['replies'], 0)} replies, {number(total['unreadable'], 0)} held no "
        f"number, {number(total['out_of_range'], 0)} held a number that belongs to no option and "
        f"{number(total['option_lists'], 0)} repeated the options without taking one; these are "
        "left out."
    )


def _what_was_measured(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    survey, settings = analysis["instrument"], analysis["settings"]
    wording = {"official": "official wording", "paraphrase": "a paraphrase"}
    return (
        f"Survey: {survey['name']}, version {survey['version']}, "
        f"{wording.get(survey['wording'], survey['wording'])}; {survey['ordinal_items']} questions "
        f"with ordered options and {survey['nominal_items']} without an order.",
        f"Source: {survey['source']}",
        "Countries' answers: " + ("simulated." if survey["simulated"] else "real."),
        f"Intervals: {figures.level_text(analysis)}, from {number(settings.get('resamples'), 0)} "
        "resamples of the questions (bootstrap).",
        _run_statement(analysis),
    )


def _run_statement(analysis: Mapping[str, Any]) -> str:
    runs = sorted({r["runs"] for table in analysis["seeds"].values() for r in table.values()})
    if runs in ([], [1]):
        return "Runs: one. How much other runs would differ is not known."
    return f"Runs: {joined(map(str, runs), 'or')} per persona; scores are means over runs."


def _scores(analysis: Mapping[str, Any], out: Path) -> Section:
    baselines = [row for c, row in analysis["against_lines"].items() if c != "mean"]
    return section(
        "Scores beside baselines that need no model",
        figures.means_figure(analysis, out),
        figures.scores_figure(analysis, out),
        tables.differences_table(analysis),
        Text(chance_of_many(len(baselines))) if len(baselines) > 1 else None,
        tables.against_baselines_table(analysis),
        tables.against_baselines_by_country(analysis),
        tables.runs_table(analysis),
    )


def _presentations(analysis: Mapping[str, Any]) -> list[Block]:
    """Return the scores under each presentation alone; nothing where there was one."""
    found = analysis["presentations"]
    if not found:
        return []
    names = found["names"]
    correlations = {
        mode.label.capitalize(): {"": found["correlation"][key]}
        for key, mode in figures.MODES.items()
        if found["correlation"].get(key)
    }
    rows = tuple(
        (f"{country}, {mode.label}", *(by_name.get(name) for name in names))
        for key, mode in figures.MODES.items()
        for country, by_name in found[key].items()
    )
    columns = ("Country and way of asking", *(f"{name} alone" for name in names))
    caption = "Score under each presentation alone, in points"
    return [
        presentations_table(dict.fromkeys(names, "averaged")),
        Table(caption, columns, rows, 2, folded=len(rows) > 12),
        *filter(None, [correlations_table(correlations, {"": "Correlation"}, names[:2])]),
    ]


def _personas(analysis: Mapping[str, Any], out: Path) -> Section:
    blocks = [
        Text(f"{_identification_statement(analysis)} {_dispersion_statement(analysis)}"),
        figures.personas_figure(analysis, out),
        tables.identification_table(analysis),
        tables.dispersion_table(analysis),
    ]
    return section(
        "Personas and countries",
        *(blocks if analysis["personas"] else ()),
        figures.map_figure(analysis, out),
        figures.countries_figure(analysis, out),
    )
