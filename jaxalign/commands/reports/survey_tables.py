"""Tables of the survey report, each made from an analysis (`jaxalign.stats.analysis`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.survey_figures import MODES, baseline_name, some_lack_a_persona
from jaxalign.commands.reports.validity import allows_verdicts
from jaxalign.report.document import Estimate, Table, is_number
from jaxalign.report.wording import countries, verdict
from jaxalign.stats.metrics import METRICS

_MEAN = "Mean of these countries"
_DIFFERENCE = "Difference in points"
_VERDICT = "Persona is"


def differences_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return persona minus no persona, on average and per country."""
    differences = analysis["intervals"].get("difference", {})
    rows = tuple(
        (
            _MEAN if country == "mean" else country,
            difference := Estimate.read(metrics.get("alignment")),
            _verdict(analysis, difference),
        )
        for country, metrics in sorted(differences.items(), key=lambda pair: pair[0] != "mean")
    )
    caption = "Score of the persona minus score without a persona, on questions that both answered"
    return _differences(caption, "Country", rows)


def against_baselines_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return persona minus each baseline, on average."""
    rows = tuple(
        (
            baseline_name(analysis, line),
            difference := Estimate.read(record),
            _verdict(analysis, difference),
        )
        for line, record in analysis["against_lines"].get("mean", {}).items()
    )
    caption = "Score of the persona minus score of a baseline, mean over countries"
    return _differences(caption, "Baseline", rows)


def against_baselines_by_country(analysis: Mapping[str, Any]) -> Table | None:
    """Return persona minus each baseline per country, one column per baseline."""
    by_country = {c: row for c, row in analysis["against_lines"].items() if c != "mean"}
    if not by_country:
        return None
    lines = list(next(iter(by_country.values())))
    rows = tuple((c, *(Estimate.read(row.get(n)) for n in lines)) for c, row in by_country.items())
    columns = tuple(f"Minus {baseline_name(analysis, line)}" for line in lines)
    caption = "Score of the persona minus score of each baseline, in points, per country"
    return Table(caption, ("Country", *columns), rows, 2, signed=columns, folded=True)


def _verdict(analysis: Mapping[str, Any], difference: Estimate | None) -> str:
    """Return what may be said of a difference, given the validity gate."""
    return verdict(difference, signal=allows_verdicts(analysis["validity"]))


def _differences(caption: str, first: str, rows: tuple) -> Table | None:
    columns = (first, _DIFFERENCE, _VERDICT)
    return Table(caption, columns, rows, digits=2, signed=(_DIFFERENCE,)) if rows else None


def metrics_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return every metric on average: a result that holds in one metric only is a weak one."""
    intervals = analysis["intervals"]
    rows = []
    for metric, label in analysis["labels"]["metrics"].items():
        aware, difference = (
            Estimate.read(intervals.get(name, {}).get("mean", {}).get(metric))
            for name in ("aware", "difference")
        )
        unaware, words = _unaware_mean(analysis, metric), _verdict(analysis, difference)
        cells = (aware, unaware, difference, words)
        if any(c is not None for c in cells[:3]):
            rows.append((label, *cells))
    columns = ("Metric", *(k.label.capitalize() for k in MODES.values()), _DIFFERENCE, _VERDICT)
    count = len(analysis["personas"] or analysis["countries"])
    caption = f"Every metric, mean over {countries(count)}, × 100 (100 is best)"
    return Table(caption, columns, tuple(rows), 2, (_DIFFERENCE,)) if rows else None


def _unaware_mean(analysis: Mapping[str, Any], metric: str) -> Estimate | None:
    """Return the mean without a persona over the personas' countries.

    It has an interval only where these are all countries.
    """
    by_country = analysis["intervals"].get("unaware", {})
    if not some_lack_a_persona(analysis):
        return Estimate.read(by_country.get("mean", {}).get(metric))
    values = [by_country.get(p, {}).get(metric, {}).get("value") for p in analysis["personas"]]
    known = [v for v in values if is_number(v)]
    return Estimate(sum(known) / len(known)) if known else None


def metric_definitions(analysis: Mapping[str, Any]) -> Table:
    """Return where each metric comes from, and which questions it is about."""
    rows = tuple(
        (
            label,
            f"{100 * METRICS[name].range[0]:g} to {100 * METRICS[name].range[1]:g}",
            "with ordered options" if METRICS[name].needs_order else "all",
            METRICS[name].source,
        )
        for name, label in analysis["labels"]["metrics"].items()
        if name in METRICS
    )
    columns = ("Metric", "Range, × 100", "Questions", "Source")
    return Table("What the metrics are", columns, rows, folded=True)


def metrics_by_country(analysis: Mapping[str, Any], mode: str) -> Table | None:
    """Return one mode's metrics per country."""
    intervals = analysis["intervals"].get(mode, {})
    metrics = analysis["labels"]["metrics"]
    rows = tuple(
        (country, *(Estimate.read(row.get(m)) for m in metrics))
        for country, row in intervals.items()
        if country != "mean"
    )
    caption = f"Every metric per country, × 100: {MODES[mode].label}"
    return Table(caption, ("Country", *metrics.values()), rows, folded=True) if rows else None


def runs_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return the scores of the runs, with the interval over runs where there are several."""
    rows = []
    for mode, by_country in analysis["seeds"].items():
        for country, record in by_country.items():
            values = ", ".join(f"{v:.2f}" for v in record["values"])
            name = f"{country}, {MODES[mode].label}"
            rows.append((name, record["runs"], values, Estimate.read(record)))
    columns = ("Country and way of asking", "Runs", "Score of each run", "Mean over runs")
    caption = "Scores of single runs in points, and their mean with Student's interval over runs"
    return Table(caption, columns, tuple(rows), 2, folded=True) if rows else None


def identification_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return what each persona and each country is nearest to."""
    rows, columns = (analysis["identification"][way]["nearest"] for way in ("rows", "columns"))
    cells = tuple(
        (p, _nearest(p, rows.get(p)), _nearest(p, columns.get(p))) for p in analysis["personas"]
    )
    heads = ("Country", "Its persona is nearest to", "Its people are nearest to the persona of")
    return Table("Who is nearest to whom", heads, cells, folded=True) if cells else None


def _nearest(own: str, nearest: str | None) -> str | None:
    return f"{nearest}, its own" if nearest == own else nearest


def dispersion_table(analysis: Mapping[str, Any]) -> Table:
    """Return how alike personas are, and how alike people are."""
    names = {
        "personas": "two personas",
        "humans_same": "the people of two of the personas' countries",
        "humans": "the people of any two countries",
    }
    dispersion = analysis["dispersion"]
    rows = tuple(
        (text, dispersion[name]["agreement"], dispersion[name]["pairs"])
        for name, text in names.items()
    )
    caption = "How alike: mean score in points of one against the other"
    return Table(caption, ("Between", "Score", "Pairs"), rows)


def long_items_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return the scores on questions with long and with short scales."""
    long_items = analysis["long_items"]
    rows = tuple(
        (p, *(long_items[name].get(p) for name in ("long", "short", "share_of_error")))
        for p in analysis["personas"]
    )
    columns = (
        "Persona",
        "Score on questions with ten options or more",
        "Score on the other questions",
        "Share of the squared error on the long ones, %",
    )
    return Table("Questions with long and short scales, in points", columns, rows) if rows else None


def unreadable_table(analysis: Mapping[str, Any]) -> Table:
    """Return how many replies gave no answer, and to which questions."""
    unreadable = analysis["unreadable"]
    groups = [*unreadable["aware"].items(), (MODES["unaware"].label, unreadable["unaware"])]
    rows = tuple(
        (
            name,
            group["runs"],
            group["replies"],
            group["unreadable"],
            group["out_of_range"],
            group["option_lists"],
            _first_names(group["items"]),
        )
        for name, group in groups
        if group["runs"]
    )
    columns = (
        "Persona",
        "Runs",
        "Replies",
        "No number",
        "Number of no option",
        "Options repeated",
        "Questions",
    )
    return Table("Replies that gave no answer", columns, rows)


def _first_names(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def answers_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return each question's majority answer and the persona's, in the survey's codes."""
    personas = analysis["personas"]
    rows = tuple(
        (
            item["id"],
            item["topic"],
            item["scale"],
            item["options"],
            _code(item["unaware"]),
            *(
                f"{_code(item['majority'].get(p))} → {_code(item['aware'].get(p))}"
                for p in personas
            ),
        )
        for item in analysis["items"]
    )
    columns = (
        "Question",
        "Topic",
        "Scale",
        "Options",
        MODES["unaware"].label.capitalize(),
        *(f"{p}: people → persona" for p in personas),
    )
    caption = (
        "Answers in the survey's codes: the people's majority answer → the persona's (mean over "
        "runs)"
    )
    return Table(caption, columns, rows, folded=True) if rows else None


def errors_table(analysis: Mapping[str, Any]) -> Table | None:
    """Return how far the personas are off on each question, the worst first."""
    personas = analysis["personas"]
    rows = [
        (item["id"], item["topic"], *(item["error"].get(p) for p in personas))
        for item in analysis["items"]
    ]
    known = {row[0]: [e for e in row[2:] if e is not None] for row in rows}
    rows = [row for row in rows if known[row[0]]]
    rows.sort(key=lambda row: -sum(known[row[0]]) / len(known[row[0]]))
    caption = "Distance of the persona from the majority answer, % of the scale, worst first"
    columns = ("Question", "Topic", *personas)
    return Table(caption, columns, tuple(rows), 0, folded=True) if rows else None


def _code(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
