"""Figures of the survey report, each made from an analysis (`jaxalign.stats.analysis`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure, matrix_table
from jaxalign.report.document import Estimate, Figure, Key, Table, is_number
from jaxalign.report.figures import Series
from jaxalign.report.palette import BLUE, INK, MUTED, ORANGE, VERMILION
from jaxalign.report.wording import countries

# The two ways of asking, under their keys in an analysis.
MODES = {
    "aware": Key("persona of the country", BLUE, "-", "D", 2.4),
    "unaware": Key("without a persona", ORANGE, "--", "o"),
}
_OTHERS = Key("mean of the other majorities", MUTED, ":", "", 2.0)
_METRIC = "alignment"
_AXIS = "score in points"
# The three baselines that say most; more marks per row could not be told apart.
_MARKED_BASELINES = {"midpoint": MUTED, "mean_of_others": VERMILION, "own_mean": INK}


def baseline_name(analysis: Mapping[str, Any], line: str) -> str:
    """Return what a baseline is called in the report."""
    return analysis["labels"]["lines"].get(line, line)


def mode_estimates(analysis: Mapping[str, Any], mode: str) -> dict[str, Estimate | None]:
    """Return a mode's score against each country, with its interval where there is one."""
    intervals = analysis["intervals"].get(mode, {})
    return {
        country: Estimate.read(intervals.get(country, {}).get(_METRIC) or scores.get(mode))
        for country, scores in analysis["scores"].items()
    }


def mean_estimate(analysis: Mapping[str, Any], mode: str) -> Estimate | None:
    """Return the mean over the countries that have a persona; over all where there is none."""
    group = "personas" if analysis["personas"] else "all"
    interval = Estimate.read(analysis["intervals"].get(mode, {}).get("mean", {}).get(_METRIC))
    same_countries = mode == "aware" or not some_lack_a_persona(analysis)
    if interval and same_countries:
        return interval
    return Estimate.read(analysis["means"][group].get(mode))


def some_lack_a_persona(analysis: Mapping[str, Any]) -> bool:
    """Return whether some countries have a persona and others do not.

    The mean without a persona, and its interval, are then over all countries and cannot be set
    beside the personas' mean.
    """
    return 0 < len(analysis["personas"]) < len(analysis["countries"])


def mean_entries(analysis: Mapping[str, Any]) -> list[tuple[str, bool, Estimate]]:
    """Return (name, is it the model, mean score) of modes and baselines, lowest score first."""
    group = "personas" if analysis["personas"] else "all"
    entries = [(key.label, True, mean_estimate(analysis, mode)) for mode, key in MODES.items()]
    entries += [
        (baseline_name(analysis, line), False, Estimate.read(value))
        for line, value in analysis["means"][group]["lines"].items()
    ]
    return sorted((e for e in entries if e[2] and e[2].known), key=lambda e: e[2].mean)


def means_figure(analysis: Mapping[str, Any], out: Path) -> Figure:
    """Draw the mean scores of the model and of the baselines in one ranking."""
    entries = mean_entries(analysis)
    keys = Key("the model", BLUE, "-", "D", 1.8), Key("baseline without a model", MUTED, "", "|")
    series = [
        Series(key, tuple(value if is_model == kind else None for _, is_model, value in entries))
        for key, kind in zip(keys, (True, False), strict=True)
    ]
    rows = tuple(
        (name, "model" if is_model else "baseline", value) for name, is_model, value in entries
    )
    count = countries(len(analysis["personas"] or analysis["countries"]))
    return make_figure(
        out / FIGURES / "means.png",
        [figures.dots("", [name for name, _, _ in entries], series, _AXIS)],
        f"Mean score over {count}: the model among the baselines, lowest first.",
        "A row for each way of asking the model and for each baseline, lowest first, with its mean "
        "score over countries.",
        Table(f"Mean score over {count}", ("Answers", "Kind", "Score"), rows, digits=2),
        keys,
    )


def scores_figure(analysis: Mapping[str, Any], out: Path) -> Figure:
    """Draw the model's scores against each country, with intervals and three baselines."""
    scores = analysis["scores"]
    series = [
        Series(key.as_mark(True), tuple(mode_estimates(analysis, mode).values()))
        for mode, key in MODES.items()
    ]
    series += [
        Series(
            Key(baseline_name(analysis, line), colour, "", "|"),
            tuple(entry["lines"].get(line) for entry in scores.values()),
        )
        for line, colour in _MARKED_BASELINES.items()
    ]
    return make_figure(
        out / FIGURES / "scores.png",
        [figures.dots("", list(scores), series, _AXIS)],
        f"Score against each country. Bars are {level_text(analysis)} intervals over questions, "
        "upright strokes are baselines; the other baselines are in the table.",
        "A row per country: the model's scores with their intervals, and three baselines.",
        scores_table(analysis),
        [s.key for s in series],
    )


def scores_table(analysis: Mapping[str, Any]) -> Table:
    """Return the scores against every country: the model, its number of questions, baselines."""
    lines = list(analysis["labels"]["lines"])
    aware, unaware = (mode_estimates(analysis, mode) for mode in MODES)
    rows = tuple(
        (
            country,
            aware[country],
            unaware[country],
            entry["items"] if country in analysis["personas"] else None,
            entry["unaware_items"],
            *map(entry["lines"].get, lines),
        )
        for country, entry in analysis["scores"].items()
    )
    columns = (
        "Country",
        *(key.label.capitalize() for key in MODES.values()),
        *(f"Questions answered, {key.label}" for key in MODES.values()),
        *(f"Baseline: {baseline_name(analysis, line)}" for line in lines),
    )
    return Table("Scores in points beside the baselines", columns, rows, digits=2)


def level_text(analysis: Mapping[str, Any]) -> str:
    """Return the level of the intervals, such as "95 %"."""
    return f"{100 * analysis['settings'].get('level', 0.95):g} %"


def personas_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    """Draw every persona's score against every country as a heat map."""
    return _heat_map(
        analysis["alignment"]["personas"],
        out / FIGURES / "personas.png",
        "persona",
        "people of the country",
        "Score in points of each persona (row) against each country's majority answers (column). "
        "Frames mark a persona's own country. A persona that knows its country is highest there in "
        "its row. A country that is told apart from others is highest there in its column.",
    )


def countries_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    """Draw the scores of the countries' majority answers against each other as a heat map."""
    matrix = analysis["alignment"]["countries"]
    others = [
        [None if r == c else value for c, value in enumerate(row)]
        for r, row in enumerate(matrix["values"])
    ]
    return _heat_map(
        {**matrix, "values": others},
        out / FIGURES / "countries.png",
        "country",
        "country",
        "For comparison, how much people differ: score in points of each country's majority "
        "answers against those of each other. A country against itself, always 100, is left out.",
    )


def _heat_map(
    matrix: Mapping[str, Any], png: Path, row_name: str, column_name: str, caption: str
) -> Figure | None:
    rows, columns, values = matrix["rows"], matrix["columns"], matrix["values"]
    if not rows:
        return None
    # Frame the cell of each row's own column, where both exist.
    own = [(r, columns.index(name)) for r, name in enumerate(rows) if name in columns]
    own = [(r, c) for r, c in own if values[r][c] is not None]
    return make_figure(
        png,
        [figures.heat_map("", rows, columns, values, row_name, column_name, 1, own)],
        caption,
        f"Heat map, {row_name} by {column_name}; the numbers are in its cells and in the table.",
        matrix_table("Scores in points", row_name.capitalize(), rows, columns, values, 1),
    )


def map_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    """Draw countries and personas in a plane where near points answer alike."""
    points = analysis["map"]["points"]
    if len(points) < 3:
        return None
    keys = {
        "country": Key("people of a country", INK, "", "o"),
        "persona": Key("persona of a country", BLUE, "", "D"),
        "unaware": Key("without a persona", ORANGE, "", "s"),
    }
    groups = [
        (key, {p["country"] or p["label"]: (p["x"], p["y"]) for p in points if p["kind"] == kind})
        for kind, key in keys.items()
    ]
    rows = tuple((p["label"], keys[p["kind"]].label, p["x"], p["y"]) for p in points)
    explained = analysis["map"].get("explained")
    note = (
        f" The plane keeps {explained:.0f} % of the squared distances."
        if is_number(explained)
        else ""
    )
    return make_figure(
        out / FIGURES / "map.png",
        [figures.point_map("", groups)],
        "Points that are near each other answer alike: distances are about 1 − score / 100. A thin "
        f"line joins a persona to the people of its country.{note}",
        "Points of countries, of personas and of the model without a persona in a plane.",
        Table(
            "Coordinates in the map, in units of 1 − score / 100",
            ("Point", "Kind", "Horizontal", "Vertical"),
            rows,
            digits=3,
        ),
        [key for key, members in groups if members],
    )


def topics_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    """Draw a radar per persona whose axes are the topics."""
    topics = analysis["topics"]
    series = {"aware": MODES["aware"], "unaware": MODES["unaware"], "mean_of_others": _OTHERS}
    values = [v for t in topics for name in series for v in t[name].values() if is_number(v)]
    if len(topics) < 3 or not values:
        return None
    # The rim is the next ten above all values, the centre at least half a step below them.
    low, high = 10 * math.floor(min(values) / 10 - 0.5), min(100, 10 * math.ceil(max(values) / 10))
    panels = [
        figures.radar(
            country,
            [t["topic"] for t in topics],
            [
                Series(key.as_line(), tuple(t[name].get(country) for t in topics))
                for name, key in series.items()
            ],
            low,
            high,
            (4.1, 3.6),
        )
        for country in analysis["personas"]
    ]
    return make_figure(
        out / FIGURES / "topics.png",
        panels,
        f"Score in points by topic. The axes run from {low} at the centre to {high} at the rim; "
        "the centre is not zero.",
        "One radar per persona whose axes are the topics, with a line for each way of asking.",
        topics_table(topics, analysis["personas"], series),
        [key.as_line() for key in series.values()],
    )


def topics_table(
    topics: Sequence[Mapping[str, Any]], personas: Sequence[str], series: Mapping[str, Key]
) -> Table:
    """Return the scores by topic, for each persona and way of asking."""
    rows = tuple(
        (
            t["topic"],
            t["items"],
            t["long_items"],
            *(t[name].get(country) for country in personas for name in series),
        )
        for t in topics
    )
    columns = [f"{country}, {key.label}" for country in personas for key in series.values()]
    head = ("Topic", "Questions", "With ten options or more")
    return Table("Score in points by topic", (*head, *columns), rows)
