"""The report of `jaxalign ask`: every way of asking side by side, then each by itself.

It is made from the record and the analyses that `jaxalign.methods.ask_survey` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import ask_tables as tables
from jaxalign.commands.reports.ask_measure import (
    gate_of,
    how_read,
    measure_sections,
    measure_statements,
)
from jaxalign.commands.reports.constant import constant_statement, constant_table
from jaxalign.commands.reports.survey import survey_report
from jaxalign.commands.reports.validity import gate_note, judged
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.commands.reports.what_it_says import chat_with_model, what_it_says
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure, provenance
from jaxalign.report.document import (
    Document,
    Estimate,
    Figure,
    Key,
    Listing,
    Note,
    Section,
    Text,
    section,
)
from jaxalign.report.figures import Series
from jaxalign.report.palette import BLUE, MUTED
from jaxalign.report.render import write_report
from jaxalign.report.wording import (
    chance_of_many,
    countries,
    groups_note,
    joined,
    number,
    with_bounds,
)
from jaxalign.stats.alignment import LINES

Record = Mapping[str, Any]

_LIMITS = (
    "Read a score beside the baselines. A model below the mean of the other countries' majority "
    "answers knows less about a country than its neighbours do.",
    "Intervals over questions say what other questions like these would give; they do not cover "
    "other wordings, prompts or models.",
    "Several ways of asking were compared: the best of them looks better than it is.",
)


def ask_report(record: Record, analyses: Mapping[str, Record], out: Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` with figures, and a report of each analysis.

    Args:
        record: The content of `result.json`.
        analyses: By key, the analysis of each way of asking.
        out: The run's directory.

    Returns:
        The paths of the two reports.
    """
    record = judged(record, gate_of(record))
    for key, analysis in analyses.items():
        survey_report(analysis | {"versions": record["versions"]}, out / "analyses" / key)
    survey, rows = record["survey"], record["rows"]
    ways = "one way" if len(rows) == 1 else f"{len(rows)} ways"
    compared = f", compared with {countries(len(record['countries']))}" if record["lines"] else ""
    document = Document(
        title="What the model answers",
        summary=f"{survey['items']} questions of {survey['name']}, asked in {ways}{compared}; "
        f"{how_read(record)}.{groups_note(record['countries'])}",
        labels=verdict_notes(record),
        sections=tuple(s for s in _sections(record, analyses, out) if s.blocks),
    )
    return write_report(document, out)


def verdict_notes(record: Record) -> tuple[Note, ...]:
    """Return what a reader must know before any number.

    A survey that does not say how people answered has no validity gate.
    """
    gate = (gate_note(gate_of(record)),) if record["lines"] else ()
    return (*warning_notes(record), *gate)


def _sections(record: Record, analyses: Mapping[str, Record], out: Path) -> list[Section]:
    pairs = record["differences"]
    return [
        section("In short", Listing(statements(record, analyses))),
        what_it_says(record, chat_with_model(record["settings"], record["countries"])),
        section(
            "Scores",
            _scores_figure(record, out),
            tables.overview_table(record),
            tables.scores_table(record),
        ),
        section(
            "Differences",
            tables.differences_table(record),
            Text(chance_of_many(len(pairs))) if len(pairs) > 1 else None,
            tables.differences_by_country(record),
        ),
        section("Questions with right answers", *tables.test_tables(record)),
        section("Scores on the VSM's six dimensions", *tables.vsm_tables(record)),
        *measure_sections(record),
        section(
            "Constant answers by country",
            Text(_constant_statement(record, analyses)),
            constant_table(
                {row["title"]: row["constant"] for row in record["rows"].values()}
                | ({"people's majority answers": people} if (people := _people(analyses)) else {})
            ),
        ),
        section("Replies", tables.replies_table(record)),
        section("Each way of asking by itself", _reports(analyses, record)),
        section("What these scores do not prove", Listing(_LIMITS) if record["lines"] else None),
        provenance(record),
    ]


def statements(record: Record, analyses: Mapping[str, Record]) -> tuple[str, ...]:
    """State the results, a sentence or two each."""
    record = judged(record, gate_of(record))
    said = [_score_statement(record, key) for key in record["rows"]] if record["lines"] else []
    said.append(_baseline_statement(record))
    said += [_identification_statement(record, key, a) for key, a in analyses.items()]
    said += tables.test_statements(record) + tables.vsm_statements(record)
    said += measure_statements(record)
    said.append(_constant_statement(record, analyses))
    if leaking := [row["title"] for row in record["rows"].values() if row["reads_test"]]:
        said.append(
            f"{joined(leaking)}: these prompts hold answers of the very survey that is asked, as "
            "published; with --examples leak_free they hold those of another one."
        )
    return tuple(s for s in said if s)


def _score_statement(record: Record, key: str) -> str:
    row = record["rows"][key]
    mean = Estimate.read(row["mean"])
    statement = f"{tables.title_of(record, key)}: {with_bounds(mean, 2)} points"
    for difference in record["differences"]:
        if difference["a"] == key and difference["b"] == _first_reference(record, key):
            other = record["rows"][difference["b"]]["title"]
            change = with_bounds(Estimate.read(difference), 2, signed=True)
            statement += f"; against {other} {change}, {tables.VERDICTS[difference['verdict']]}"
    return statement + "."


def _first_reference(record: Record, key: str) -> str | None:
    return next((d["b"] for d in record["differences"] if d["a"] == key), None)


def _baseline_statement(record: Record) -> str:
    """State which baselines score higher than the model at its best."""
    lines = {name: line["mean"] for name, line in record["lines"].items()}
    known = {name: mean for name, mean in lines.items() if mean is not None}
    count = len(record["countries"])
    means = [
        row["mean"]["value"]
        for row in record["rows"].values()
        # A mean over some of the countries cannot be set beside baselines over all of them.
        if row["mean"] and len(row["countries"] or record["countries"]) == count
    ]
    if not known or not means:
        return ""
    higher = [f"{LINES[n]} ({number(mean)})" for n, mean in known.items() if mean > max(means)]
    verb = "scores" if len(higher) == 1 else "score"
    ending = f": {joined(higher)}" if higher else ""
    return (
        f"Of {len(known)} baselines that need no model, {len(higher) or 'none'} {verb} higher than "
        f"the best of these{ending}."
    )


def _identification_statement(record: Record, key: str, analysis: Record) -> str:
    if len(analysis["personas"]) < 2:
        return ""
    rows, alike = analysis["identification"]["rows"], analysis["dispersion"]
    words = (
        f"{record['rows'][key]['title']}: a persona is nearest to its own country in "
        f"{rows['hits']} of {rows['of']} cases ({number(rows['chance_percent'])} % by chance)"
    )
    if alike["homogenising"] is not None:
        words += (
            f"; two personas score {number(alike['personas']['agreement'])} against each other, "
            f"people of two of the same countries {number(alike['humans_same']['agreement'])}"
        )
    return words + "."


def _constants(record: Record) -> dict[str, Any]:
    """Return the answer given most often, by way of asking and country."""
    return {
        f"{row['title']}, {country}" if country else row["title"]: constant
        for row in record["rows"].values()
        for country, constant in row["constant"].items()
    }


def _people(analyses: Mapping[str, Record]) -> Mapping[str, Any]:
    return next(iter(analyses.values()))["constant"]["people"] if analyses else {}


def _constant_statement(record: Record, analyses: Mapping[str, Record]) -> str:
    return constant_statement(_constants(record), _people(analyses))


def _scores_figure(record: Record, out: Path) -> Figure | None:
    """Draw the mean of every way of asking among the baselines."""
    if not record["lines"]:
        return None
    entries = [
        (tables.title_of(record, key), True, Estimate.read(row["mean"]))
        for key, row in record["rows"].items()
    ] + [
        (LINES[name], False, Estimate.read(line["mean"])) for name, line in record["lines"].items()
    ]
    entries = sorted((e for e in entries if e[2] and e[2].known), key=lambda e: e[2].mean)
    keys = Key("the model", BLUE, "-", "D", 1.8), Key("baseline without a model", MUTED, "", "|")
    series = [
        Series(key, tuple(value if is_model == kind else None for _, is_model, value in entries))
        for key, kind in zip(keys, (True, False), strict=True)
    ]
    count = countries(len(record["countries"]))
    return make_figure(
        out / FIGURES / "overview.png",
        [figures.dots("", [name for name, _, _ in entries], series, "score in points")],
        f"Mean score over {count}, lowest first: ways of asking with their 95 % intervals over "
        "questions, among baselines that need no model.",
        "A row for each way of asking and for each baseline, lowest first, with its mean score.",
        tables.ranking_table(entries, count),
        keys,
    )


def _reports(analyses: Mapping[str, Record], record: Record) -> Listing | None:
    items = tuple(f"{record['rows'][key]['title']}: analyses/{key}/report.html" for key in analyses)
    return Listing(items, "Reports in the run's directory") if items else None
