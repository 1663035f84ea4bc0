"""Tables of the culture report, each from the dictionary that `survey.analysis` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.survey_parts import METHODS, group_is_part, line_words
from jaxalign.report.document import Estimate, Table, is_number
from jaxalign.report.words import countries, verdict

_MEAN = "mean of all"


def differences_table(analysis: Mapping[str, Any]) -> Table | None:
    """Persona minus no country named, per country and on average."""
    found = analysis["intervals"].get("difference", {})
    rows = tuple(
        (_name(country), d := Estimate.read(metrics.get("alignment")), verdict(d))
        for country, metrics in _mean_first(found)
    )
    caption = "Persona minus no country named, in points, on the items that both answered"
    return _differences(caption, ("Country", "Difference", "In words"), rows)


def against_lines_table(analysis: Mapping[str, Any]) -> Table | None:
    """Persona minus each trivial line, on average."""
    rows = tuple(
        (line_words(analysis, line), d := Estimate.read(record), verdict(d))
        for line, record in analysis["against_lines"].get("mean", {}).items()
    )
    caption = "Persona minus a line that needs no model, mean over countries, in points"
    return _differences(caption, ("Line", "Difference", "In words"), rows)


def against_lines_by_country(analysis: Mapping[str, Any]) -> Table | None:
    """The same for each country, one column per line."""
    found = {c: row for c, row in analysis["against_lines"].items() if c != "mean"}
    if not found:
        return None
    lines = list(next(iter(found.values())))
    rows = tuple((c, *(Estimate.read(row.get(n)) for n in lines)) for c, row in found.items())
    columns = tuple(line_words(analysis, n) for n in lines)
    caption = "Persona minus each line, per country"
    return Table(caption, ("Country", *columns), rows, 2, signed=columns, folded=True)


def _differences(caption: str, columns: tuple[str, ...], rows: tuple) -> Table | None:
    return Table(caption, columns, rows, digits=2, signed=("Difference",)) if rows else None


def metrics_table(analysis: Mapping[str, Any]) -> Table | None:
    """Every metric on average: a result that holds in one metric only is a weak one."""
    intervals = analysis["intervals"]
    rows = []
    for metric, label in analysis["labels"]["metrics"].items():
        aware, difference = (
            Estimate.read(intervals.get(name, {}).get("mean", {}).get(metric))
            for name in ("aware", "difference")
        )
        cells = (aware, _unaware_mean(analysis, metric), difference, verdict(difference))
        if any(c is not None for c in cells[:3]):
            rows.append((label, *cells))
    columns = ("Metric", *(k.words for k in METHODS.values()), "Difference", "In words")
    count = len(analysis["personas"] or analysis["countries"])
    caption = f"Every metric, mean over {countries(count)}, × 100"
    return Table(caption, columns, tuple(rows), 2, ("Difference",)) if rows else None


def _unaware_mean(analysis: Mapping[str, Any], metric: str) -> Estimate | None:
    """Over the personas' countries; without an interval where these are not all countries."""
    found = analysis["intervals"].get("unaware", {})
    if not group_is_part(analysis):
        return Estimate.read(found.get("mean", {}).get(metric))
    values = [found.get(p, {}).get(metric, {}).get("value") for p in analysis["personas"]]
    known = [v for v in values if is_number(v)]
    return Estimate(sum(known) / len(known)) if known else None


def metrics_by_country(analysis: Mapping[str, Any], method: str) -> Table | None:
    """One method's metrics per country."""
    found = {c: row for c, row in analysis["intervals"].get(method, {}).items() if c != "mean"}
    metrics = analysis["labels"]["metrics"]
    rows = tuple((c, *(Estimate.read(row.get(m)) for m in metrics)) for c, row in found.items())
    caption = f"Every metric per country, × 100: {METHODS[method].words}"
    return Table(caption, ("Country", *metrics.values()), rows, folded=True) if rows else None


def seeds_table(analysis: Mapping[str, Any]) -> Table | None:
    """Scores of the runs, and the interval over runs where there are several."""
    rows = []
    for method, by_country in analysis["seeds"].items():
        for country, record in by_country.items():
            values = ", ".join(f"{v:.2f}" for v in record["values"])
            name = f"{country}, {METHODS[method].words}"
            rows.append((name, record["runs"], values, Estimate.read(record)))
    columns = ("Country and method", "Runs", "Scores of the runs", "Mean over runs")
    return Table("Runs", columns, tuple(rows), 2, folded=True) if rows else None


def identification_table(analysis: Mapping[str, Any]) -> Table | None:
    """What each persona and each country is nearest to."""
    rows, columns = (analysis["identification"][way]["nearest"] for way in ("rows", "columns"))
    cells = tuple((p, _hit(p, rows.get(p)), _hit(p, columns.get(p))) for p in analysis["personas"])
    heads = ("Country", "Its persona is nearest to", "Its people are nearest to the persona of")
    return Table("Who is nearest to whom", heads, cells, folded=True) if cells else None


def _hit(own: str, nearest: str | None) -> str | None:
    return f"{nearest}, its own" if nearest == own else nearest


def dispersion_table(analysis: Mapping[str, Any]) -> Table:
    words = {
        "personas": "two personas",
        "humans_same": "two of the same countries' people",
        "humans": "two of all countries' people",
    }
    found = analysis["dispersion"]
    rows = tuple(
        (text, found[name]["agreement"], found[name]["pairs"]) for name, text in words.items()
    )
    return Table("How alike, mean score of one with the other", ("Who", "Score", "Pairs"), rows)


def long_items_table(analysis: Mapping[str, Any]) -> Table | None:
    found = analysis["long_items"]
    rows = tuple(
        (p, *(found[n].get(p) for n in ("long", "short", "share_of_error")))
        for p in analysis["personas"]
    )
    columns = (
        "Persona", "Score on items of ten options or more", "Score on the other items",
        "Share of the squared error on the long ones, per cent",
    )  # fmt: skip
    return Table("Long and short items apart", columns, rows) if rows else None


def unreadable_table(analysis: Mapping[str, Any]) -> Table:
    found = analysis["unreadable"]
    parts = [*found["aware"].items(), (METHODS["unaware"].words, found["unaware"])]
    rows = tuple(
        (
            name, part["runs"], part["replies"], part["unreadable"], part["out_of_range"],
            _some(part["items"]),
        )
        for name, part in parts
        if part["runs"]
    )  # fmt: skip
    columns = ("Replies of", "Runs", "Replies", "Without a number", "No such option", "Items")
    return Table("Replies that gave no answer", columns, rows)


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def answers_table(analysis: Mapping[str, Any]) -> Table | None:
    """Each item's majority answer and the persona's, in the survey's codes."""
    personas = analysis["personas"]
    rows = tuple(
        (
            item["id"], item["topic"], item["scale"], item["options"], _code(item["unaware"]),
            *(_pair(item, p) for p in personas),
        )
        for item in analysis["items"]
    )  # fmt: skip
    columns = ("Item", "Topic", "Scale", "Options", METHODS["unaware"].words, *personas)
    caption = (
        "Answers per item: people's majority → persona (mean over runs), in the survey's codes"
    )
    return Table(caption, columns, rows, folded=True) if rows else None


def errors_table(analysis: Mapping[str, Any]) -> Table | None:
    """How far the persona is off on each item, the worst first."""
    personas = analysis["personas"]
    rows = [
        (i["id"], i["topic"], *(i["error"].get(p) for p in personas)) for i in analysis["items"]
    ]
    known = {row[0]: [e for e in row[2:] if e is not None] for row in rows}
    rows = [row for row in rows if known[row[0]]]
    rows.sort(key=lambda row: -sum(known[row[0]]) / len(known[row[0]]))
    caption = "Distance from the majority answer per item, per cent of the scale, worst first"
    return (
        Table(caption, ("Item", "Topic", *personas), tuple(rows), 0, folded=True) if rows else None
    )


def _pair(item: Mapping[str, Any], persona: str) -> str:
    return f"{_code(item['majority'].get(persona))} → {_code(item['aware'].get(persona))}"


def _code(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _name(country: str) -> str:
    return _MEAN if country == "mean" else country


def _mean_first(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(found.items(), key=lambda pair: pair[0] != "mean")
