"""Figures of the culture report, each from the dictionary that `survey.analysis` describes."""

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
from jaxalign.report.words import countries

METHODS = {
    "aware": Key("persona of the country", BLUE, "-", "D", 2.4),
    "unaware": Key("no country named", ORANGE, "--", "o"),
}
_OTHERS = Key("mean of the other majorities", MUTED, ":", "", 2.0)
_METRIC = "alignment"
_UNIT = "score in points"
# Of the trivial lines the three that say most; more strokes could not be told apart.
_STROKES = {"midpoint": MUTED, "mean_of_others": VERMILION, "own_mean": INK}


def line_words(analysis: Mapping[str, Any], line: str) -> str:
    return analysis["labels"]["lines"].get(line, line)


def method_estimates(analysis: Mapping[str, Any], method: str) -> dict[str, Estimate | None]:
    """Alignment of a method with each country, with its interval where one was found."""
    found = analysis["intervals"].get(method, {})
    return {
        country: Estimate.read(found.get(country, {}).get(_METRIC) or scores.get(method))
        for country, scores in analysis["scores"].items()
    }


def mean_estimate(analysis: Mapping[str, Any], method: str) -> Estimate | None:
    """Mean over the countries that have a persona; over all where there is no persona."""
    group = "personas" if analysis["personas"] else "all"
    found = Estimate.read(analysis["intervals"].get(method, {}).get("mean", {}).get(_METRIC))
    same = method == "aware" or not group_is_part(analysis)
    return found if found and same else Estimate.read(analysis["means"][group].get(method))


def group_is_part(analysis: Mapping[str, Any]) -> bool:
    """Whether only some countries have a persona. The mean without a country named, and its
    interval, are over all countries then, and not to be set beside the personas' mean."""
    return 0 < len(analysis["personas"]) < len(analysis["countries"])


def mean_entries(analysis: Mapping[str, Any]) -> list[tuple[str, bool, Estimate]]:
    """(words, is the model, mean score) of methods and trivial lines, the lowest first."""
    group = "personas" if analysis["personas"] else "all"
    entries = [(key.words, True, mean_estimate(analysis, m)) for m, key in METHODS.items()]
    entries += [
        (line_words(analysis, line), False, Estimate.read(value))
        for line, value in analysis["means"][group]["lines"].items()
    ]
    return sorted((e for e in entries if e[2] and e[2].known), key=lambda e: e[2].mean)


def means_figure(analysis: Mapping[str, Any], out: Path) -> Figure:
    entries = mean_entries(analysis)
    keys = Key("the model", BLUE, "-", "D", 1.8), Key("needs no model", MUTED, "", "|")
    series = [
        Series(key, tuple(value if model == kind else None for _, model, value in entries))
        for key, kind in zip(keys, (True, False), strict=True)
    ]
    rows = tuple((words, "model" if m else "trivial line", value) for words, m, value in entries)
    panel = figures.dots("", [words for words, _, _ in entries], series, _UNIT)
    count = len(analysis["personas"] or analysis["countries"])
    return make_figure(
        out / FIGURES / "means.png", [panel],
        f"Mean over {countries(count)}: the model among lines that need no model, lowest first.",
        "A row per method and trivial line, lowest first, with its mean score over countries.",
        Table("Mean scores over countries", ("What", "Kind", "Score"), rows, digits=2), keys,
    )  # fmt: skip


def scores_figure(analysis: Mapping[str, Any], out: Path) -> Figure:
    """A row per country: the model's scores with their intervals and some of the lines."""
    scores = analysis["scores"]
    by_method = {m: method_estimates(analysis, m) for m in METHODS}
    series = [
        *(Series(METHODS[m].as_mark(True), tuple(v.values())) for m, v in by_method.items()),
        *(
            Series(
                Key(line_words(analysis, line), colour, "", "|"),
                tuple(entry["lines"].get(line) for entry in scores.values()),
            )
            for line, colour in _STROKES.items()
        ),
    ]
    return make_figure(
        out / FIGURES / "scores.png", [figures.dots("", list(scores), series, _UNIT)],
        "Score against each country with 95 % intervals over questions; upright strokes need no "
        "model. The other lines are in the table.".replace("95 %", level_words(analysis)),
        "A row per country: the model's scores with their intervals, and three trivial lines.",
        scores_table(analysis), [s.key for s in series],
    )  # fmt: skip


def scores_table(analysis: Mapping[str, Any]) -> Table:
    """Every country with every line."""
    lines = list(analysis["labels"]["lines"])
    by_method = {m: method_estimates(analysis, m) for m in METHODS}
    rows = tuple(
        (
            country, *(v[country] for v in by_method.values()),
            entry["items"] if country in analysis["personas"] else None, entry["unaware_items"],
            *map(entry["lines"].get, lines),
        )
        for country, entry in analysis["scores"].items()
    )  # fmt: skip
    words = (
        *(METHODS[m].words for m in METHODS), *(f"items, {METHODS[m].words}" for m in METHODS),
        *(line_words(analysis, n) for n in lines),
    )  # fmt: skip
    caption = "Scores in points beside the lines that need no model"
    return Table(caption, ("Country", *words), rows, digits=2)


def level_words(analysis: Mapping[str, Any]) -> str:
    return f"{100 * analysis['settings'].get('level', 0.95):g} %"


def personas_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    return _heat(
        analysis["alignment"]["personas"], out / FIGURES / "personas.png", "persona",
        "people of the country",
        "Each persona's answers (row) against each country's majority answers (column), in points. "
        "Framed: its own country. A persona that knows its country is highest there in its row; a "
        "country that is told apart is highest there in its column.",
    )  # fmt: skip


def countries_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    found = analysis["alignment"]["countries"]
    others = [[None if r == c else v for c, v in enumerate(row)]
              for r, row in enumerate(found["values"])]  # fmt: skip
    return _heat(
        {**found, "values": others}, out / FIGURES / "countries.png", "country", "country",
        "Majority answers of each country against those of each other, in points: how far apart "
        "people are, for comparison. A country against itself, always 100, is left out.",
    )  # fmt: skip


def _heat(
    matrix: Mapping[str, Any], png: Path, row_words: str, column_words: str, caption: str
) -> Figure | None:
    rows, columns, values = matrix["rows"], matrix["columns"], matrix["values"]
    if not rows:
        return None
    own = [(i, columns.index(name)) for i, name in enumerate(rows) if name in columns]
    own = [(r, c) for r, c in own if values[r][c] is not None]
    panel = figures.heat_map("", rows, columns, values, row_words, column_words, 1, own)
    return make_figure(
        png, [panel], caption,
        f"Heat map, {row_words} by {column_words}; the numbers are in its cells and in the table.",
        matrix_table("Scores in points", row_words.capitalize(), rows, columns, values, 1),
    )  # fmt: skip


def map_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    points = analysis["map"]["points"]
    if len(points) < 3:
        return None
    keys = {
        "country": Key("people of a country", INK, "", "o"),
        "persona": Key("persona of a country", BLUE, "", "D"),
        "unaware": Key("no country named", ORANGE, "", "s"),
    }
    groups = [
        (key, {p["country"] or p["label"]: (p["x"], p["y"]) for p in points if p["kind"] == kind})
        for kind, key in keys.items()
    ]
    rows = tuple((p["label"], keys[p["kind"]].words, p["x"], p["y"]) for p in points)
    kept = analysis["map"].get("explained")
    share = f"The plane keeps {kept:.0f} % of the squared distances." if is_number(kept) else ""
    return make_figure(
        out / FIGURES / "map.png", [figures.point_map("", groups)],
        "Near is alike: distances are about 1 − score. A thin line joins a persona to the people "
        f"it stands for. {share}",
        "Points of countries, of personas and of the model without a country on a plane.",
        Table("Coordinates", ("Who", "What", "First", "Second"), rows, digits=3),
        [key for key, found in groups if found],
    )  # fmt: skip


def topics_figure(analysis: Mapping[str, Any], out: Path) -> Figure | None:
    """A radar per persona whose axes are the topics."""
    topics = analysis["topics"]
    series = {"aware": METHODS["aware"], "unaware": METHODS["unaware"], "mean_of_others": _OTHERS}
    every = [v for t in topics for name in series for v in t[name].values() if is_number(v)]
    if len(topics) < 3 or not every:
        return None
    low, high = 10 * math.floor(min(every) / 10 - 0.5), min(100, 10 * math.ceil(max(every) / 10))
    panels = [
        figures.radar(
            country, [t["topic"] for t in topics],
            [Series(key.as_line(), tuple(t[name].get(country) for t in topics))
             for name, key in series.items()],
            low, high, (4.1, 3.6),
        )
        for country in analysis["personas"]
    ]  # fmt: skip
    return make_figure(
        out / FIGURES / "topics.png", panels,
        f"Score in points per topic, from {low} in the middle to {high} at the rim: the middle is "
        "not zero.",
        "One radar per persona whose axes are the topics, a line for each method.",
        topics_table(topics, analysis["personas"], series), [k.as_line() for k in series.values()],
    )  # fmt: skip


def topics_table(
    topics: Sequence[Mapping[str, Any]], personas: Sequence[str], series: Mapping[str, Key]
) -> Table:
    rows = tuple(
        (
            t["topic"], t["items"], t["long_items"],
            *(t[name].get(country) for country in personas for name in series),
        )
        for t in topics
    )  # fmt: skip
    columns = [f"{country}, {key.words}" for country in personas for key in series.values()]
    head = ("Topic", "Items", "Of ten options or more")
    return Table("Scores in points per topic", (*head, *columns), rows)
