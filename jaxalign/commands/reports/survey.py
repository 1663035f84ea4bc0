"""Report of a survey analysis: how near personas come to countries, and to what else is near."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import survey_parts as parts
from jaxalign.commands.reports import survey_tables as tables
from jaxalign.report.common import provenance
from jaxalign.report.document import Document, Estimate, Listing, Note, Section, Text, section
from jaxalign.report.render import write_report
from jaxalign.report.words import (
    chance_of_many,
    joined,
    number,
    tally,
    verdict,
    with_bounds,
)  # fmt: skip

_SIMULATED = (
    "Simulated: nobody was asked. The countries' answers to this survey are made up by a program; "
    "no number here is a finding about people."
)
_LIMITS = (
    "A score is to be read beside the lines that need no model. A model below the mean of the "
    "other countries' majority answers knows less about a country than its neighbours do.",
    "The score squares distances in options, so long scales outweigh short ones, and it treats "
    "options without an order as if they had one. The other metrics show what depends on that.",
    "Intervals over questions speak for other questions like these, not for other runs, wordings "
    "or models; intervals over runs, where there are several, speak for other runs only.",
    "A majority answer stands for a country's most frequent answer, not for the people in it.",
)


def culture_report(analysis: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into `out`; the two reports' paths.

    `analysis` is what `jaxalign.stats.analysis.analyse` returns. A key "simulated" (bool) added
    to it says whether the countries' answers are made up; without it the survey's own source does.
    Keys "settings" and "versions" are printed at the end.
    """
    count, personas, about = (
        len(analysis["countries"]), analysis["personas"], analysis["instrument"],
    )  # fmt: skip
    who = f"{len(personas)} personas" if len(personas) > 6 else f"Personas of {joined(personas)}"
    document = Document(
        title="How near the answers come to countries",
        summary=f"{who if personas else 'A model without a persona'} against the people of {count} "
        f"countries: {about['items']} items, {about['name']}.",
        labels=(Note(_SIMULATED, "label"),) if is_simulated(analysis) else (),
        sections=tuple(s for s in _sections(analysis, out) if s.blocks),
    )
    return write_report(document, out)


def is_simulated(analysis: Mapping[str, Any]) -> bool:
    said = analysis.get("simulated")
    return "simulated" in analysis["instrument"]["source"].lower() if said is None else bool(said)


def _sections(analysis: Mapping[str, Any], out: Path) -> list[Section]:
    record = {
        "settings": analysis["settings"],
        "facts": {"instrument": analysis["instrument"]},
        "versions": analysis.get("versions"),
    }
    return [
        section(
            "In short",
            Listing(_statements(analysis), "What came out"),
            Listing(_what_was_measured(analysis), "What was measured"),
        ),
        _scores(analysis, out),
        section(
            "Other metrics",
            tables.metrics_table(analysis),
            *(tables.metrics_by_country(analysis, m) for m in parts.METHODS),
        ),
        _personas(analysis, out),
        section("Topics", parts.topics_figure(analysis, out)),
        section(
            "Long scales", Text(_long_words(analysis)), tables.long_items_table(analysis)
        ),
        section(
            "Unreadable replies",
            Text(_unreadable_words(analysis)), tables.unreadable_table(analysis),
        ),
        section("Items", tables.errors_table(analysis), tables.answers_table(analysis)),
        section("What these scores do not prove", Listing(_LIMITS)),
        provenance(record),
    ]  # fmt: skip


def _statements(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    found = [_means_words(analysis), _items_words(analysis), _lines_words(analysis)]
    if analysis["personas"]:
        found += [_identification_words(analysis), _dispersion_words(analysis)]
    return tuple(s for s in (*found, _long_words(analysis), _unreadable_words(analysis)) if s)


def _means_words(analysis: Mapping[str, Any]) -> str:
    aware, unaware = (parts.mean_estimate(analysis, m) for m in parts.METHODS)
    if not (aware and aware.known):
        return f"Mean score without a country named: {with_bounds(unaware, 2)} points."
    said = f"Mean score of the personas: {with_bounds(aware, 2)} points"
    if not (unaware and unaware.known):
        return said + "."
    differences = analysis["intervals"].get("difference", {})
    mean = Estimate.read(differences.get("mean", {}).get("alignment"))
    each = [Estimate.read(d.get("alignment")) for c, d in differences.items() if c != "mean"]
    return (
        f"{said}; without a country named, on the same countries: {with_bounds(unaware, 2)}. The "
        f"difference, on the items that both answered, is {with_bounds(mean, 2, signed=True)}, in "
        f"words: {verdict(mean)}. By country the persona is {tally(each, 'higher', 'lower')}."
    )


def _items_words(analysis: Mapping[str, Any]) -> str:
    """A perfect score on two items says little."""
    rows = [analysis["scores"][c] for c in analysis["personas"] or analysis["countries"]]
    fewest, most = (f(row["items"] for row in rows) for f in (min, max))
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    total = analysis["instrument"]["items"]
    return f"A country's score rests on {span} of the survey's {total} items."


def _lines_words(analysis: Mapping[str, Any]) -> str:
    """Which lines beat the model's best mean."""
    entries = parts.mean_entries(analysis)
    models = [value.mean for _, model, value in entries if model]
    if not models:
        return ""
    lines = [(words, value.mean) for words, model, value in entries if not model]
    higher = [f"{words} ({number(mean)})" for words, mean in lines if mean > max(models)]
    said = f"Of {len(lines)} lines that need no model, {len(higher) or 'none'} "
    ending = f": {joined(higher)}" if higher else ""
    return f"{said}score{'s' if len(higher) == 1 else ''} higher than the model{ending}."


def _identification_words(analysis: Mapping[str, Any]) -> str:
    rows, columns = (analysis["identification"][way] for way in ("rows", "columns"))
    return (
        f"A persona is nearest to its own country in {rows['hits']} of {rows['of']} (chance: "
        f"{number(rows['chance_percent'])} %); a country is nearest to its own persona in "
        f"{columns['hits']} of {columns['of']} (chance: {number(columns['chance_percent'])} %)."
    )


def _dispersion_words(analysis: Mapping[str, Any]) -> str:
    found = analysis["dispersion"]
    if found["homogenising"] is None:
        return ""
    end = "more alike than people are" if found["homogenising"] else "no more alike than people are"
    return (
        f"Two personas agree at {number(found['personas']['agreement'])} points, two of the same "
        f"countries' people at {number(found['humans_same']['agreement'])}: the personas are {end}."
    )


def _long_words(analysis: Mapping[str, Any]) -> str:
    found = analysis["long_items"]
    return (
        f"{found['count']} of {analysis['instrument']['items']} items have ten options or more and "
        f"carry {number(found['share_of_denominator'])} % of the score's squared denominator."
    )


def _unreadable_words(analysis: Mapping[str, Any]) -> str:
    total = analysis["unreadable"]["total"]
    return (
        f"Of {number(total['replies'], 0)} replies {number(total['unreadable'], 0)} held no number "
        f"and {number(total['out_of_range'], 0)} a number that no option has; these are left out."
    )


def _what_was_measured(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    about, settings = analysis["instrument"], analysis["settings"]
    wording = {"official": "official wording", "paraphrase": "a paraphrase"}
    return (
        f"Survey: {about['name']}, version {about['version']}, "
        f"{wording.get(about['wording'], about['wording'])}: {about['ordinal_items']} ordinal and "
        f"{about['nominal_items']} nominal items.",
        f"Source: {about['source']}",
        "Countries' answers: " + ("simulated." if is_simulated(analysis) else "real."),
        f"Intervals: {parts.level_words(analysis)}, {number(settings.get('resamples'), 0)} "
        "resamples of the questions.",
        _runs_words(analysis),
    )


def _runs_words(analysis: Mapping[str, Any]) -> str:
    runs = sorted({r["runs"] for table in analysis["seeds"].values() for r in table.values()})
    if runs in ([], [1]):
        return "Runs: one. Nothing is known of how other runs would come out."
    return f"Runs: {joined(map(str, runs), 'or')} per persona, averaged."


def _scores(analysis: Mapping[str, Any], out: Path) -> Section:
    lines = [n for c, n in analysis["against_lines"].items() if c != "mean"]
    return section(
        "Scores beside the lines that need no model",
        Text(
            "The score is 100 × (1 − ‖answers − majority answers‖ / ‖ranges‖) over the items that "
            "were answered: 100 is identity with the country's majority answers, 0 the far end of "
            "every scale."
        ),
        parts.means_figure(analysis, out),
        parts.scores_figure(analysis, out),
        tables.differences_table(analysis),
        Text(chance_of_many(len(lines))) if len(lines) > 1 else None,
        tables.against_lines_table(analysis),
        tables.against_lines_by_country(analysis),
        tables.seeds_table(analysis),
    )


def _personas(analysis: Mapping[str, Any], out: Path) -> Section:
    blocks = [
        Text(f"{_identification_words(analysis)} {_dispersion_words(analysis)}"),
        parts.personas_figure(analysis, out),
        tables.identification_table(analysis),
        tables.dispersion_table(analysis),
    ]
    return section(
        "Personas and countries",
        *(blocks if analysis["personas"] else ()),
        parts.map_figure(analysis, out),
        parts.countries_figure(analysis, out),
    )
