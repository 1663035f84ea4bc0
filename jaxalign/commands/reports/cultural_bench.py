"""The report of a CulturalBench run: accuracy by method and country, beside what needs no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.commands.reports.what_it_says import chat_with_model, what_it_says
from jaxalign.methods.base import METHODS, NAIVE, PERMUTED, TUNED
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
    Table,
    Text,
    section,
)
from jaxalign.report.drawing import Panel
from jaxalign.report.figures import Series
from jaxalign.report.palette import MUTED
from jaxalign.report.render import write_report
from jaxalign.report.wording import (
    NO_SIGNAL,
    chance_of_many,
    countries,
    joined,
    number,
    tally,
    verdict,
    with_bounds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AGAINST_PLAIN = "Minus plain question, points"
_ALL = "all questions"
_MOST_ROWS = 24  # of a panel
_LIMITS = (
    "Options are shown in one order, under numbers from 1. A model that prefers a number is scored "
    "for it; the share of its most frequent answer says how much. The published evaluation shows "
    "letters.",
    "Row by row, a question of Hard has one true row and three false ones, so saying false to "
    "everything is right in about 75 % of the rows and in none of the questions. Shares of rows "
    "are given to compare with work that reports them.",
    "Accuracy on Hard moves with how often a model says true, whether or not it knows anything: a "
    "model that says it at random is right in up to 10.5 % of the questions, one that rarely says "
    "it in few. A difference there counts only together with one in the share of true rows that "
    "are the likeliest, which does not depend on that.",
    "Intervals over questions say what other questions like these would give. They do not cover "
    "other wordings, other tunings or other models. Few questions are asked about some countries.",
    "Soft prompts were tuned on a values survey. A difference here says whether that changed what "
    "the model answers to questions of knowledge, against the control of the other countries' "
    "prompts; it does not say that the model holds a country's values.",
)
_TERMS = (
    "Accuracy: share of questions answered rightly. A question of Hard is four proposed answers, "
    "each judged true or false, and is right only when all four are.",
    "True row likeliest: share of the questions of Hard whose true row is the one most likely to "
    "be called true. By chance that is one in four. It shows what is known where the accuracy is "
    "near zero.",
    "No model: what answers that need none would score. A method is only worth something beyond "
    "these.",
    "A number with a range, such as 41.2 (38.0 to 44.5), is an estimate with its 95 % interval "
    "over questions: Wilson's for accuracies, the bootstrap's for shares of rows and for "
    "differences, which are paired by question.",
)


def cultural_bench_report(result: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into `out`, a run's directory.

    Args:
        result: The content of the run's `result.json`.
        out: The run's directory.

    Returns:
        The paths of the two reports.
    """
    names = joined(record["name"] for record in result["sets"].values())
    document = Document(
        title="What a model knows of cultures",
        summary=f"{'The pocket Llama' if result['pocket'] else result['model']} on {names}, under "
        "each way of asking.",
        labels=(
            *warning_notes(result),
            *map(gate_note, result["sets"].values()),
        ),
        sections=tuple(s for s in _sections(result, out) if s.blocks),
    )
    return write_report(document, out)


def gate_note(record: Mapping[str, Any]) -> Note:
    """Return whether a set of questions measures anything on this model, a report's first line."""
    gate = record["gate"]
    best = "one in four" if is_hard(record) else "the best answer that needs no model"
    best = f"{best} ({number(100 * gate['best'])} %)"
    if gate["passes"]:
        above = joined(METHODS[key].title for key in gate["above"])
        return Note(
            f"Above {best}, with its whole interval and without any tuning: {above}.",
            "label",
            f"{record['name']}, validity gate: passed.",
        )
    return Note(
        f"No way of asking that is not tuned is above {best} with its whole interval. Every "
        f"verdict on these questions therefore reads “{NO_SIGNAL}”: a difference and its absence "
        "alike.",
        "label",
        f"{record['name']}, validity gate: not passed.",
    )


def _sections(result: Mapping[str, Any], out: Path) -> list[Section]:
    sets = result["sets"]
    notes = [f"{note}." for note in result["notes"]]
    return [
        section(
            "In short",
            [headline_table(record) for record in sets.values()],
            Listing(tuple(s for r in sets.values() for s in _statements(r)), "Results"),
            Listing(tuple(_what_was_measured(result)), "What was measured"),
            Listing(tuple(notes), "Notes") if notes else None,
            Listing(_TERMS, "Terms"),
        ),
        what_it_says(result, _chat(result)),
        *(_set_section(key, record, out) for key, record in sets.items()),
        section("What these scores do not prove", Listing(_LIMITS)),
        provenance(result),
    ]


def _chat(result: Mapping[str, Any]) -> str:
    """Return what `jaxalign chat` is given: the run whose prompts were asked, or the model."""
    run = result["settings"].get("run")
    return str(run) if run else chat_with_model(result["settings"], ())


def is_hard(record: Mapping[str, Any]) -> bool:
    """Return whether the questions of a set have several rows."""
    return record["items"] > record["questions"]


def percent(interval: Mapping[str, Any] | None) -> Estimate | None:
    """Return a share with its bounds in per cent."""
    return Estimate.read(interval, times=100)


def headline_table(record: Mapping[str, Any]) -> Table:
    """Return the accuracies of a set by method, and what needs no model below them."""
    hard, lines = is_hard(record), record["trivial"]
    rows: list[tuple] = []
    for key, method in record["methods"].items():
        rows.append(
            (
                METHODS[key].title,
                method["accuracy"]["questions"],
                percent(method["accuracy"]),
                percent(method["minus"].get(NAIVE.key)),
                *((percent(method["items"]), percent(method["picked"])) if hard else ()),
                f"{method['answers']['most_common']}: {100 * method['answers']['share']:.0f} %",
                100 * _share_of_options(method),
            )
        )
    blank = (None, None)
    if hard:
        trivial = [("no model: true or false at random", lines["chance"], lines["chance_items"])]
        trivial += [
            (f"no model: always {name}", lines["constant"][i], lines["constant_items"][i])
            for i, name in enumerate(("true", "false"))
        ]
        trivial.append(("no model: one of the four rows at random", lines["one_true"], None))
        rows += [
            (name, record["questions"], 100 * a, None, _times_100(b), None, *blank)
            for name, a, b in trivial
            if a is not None
        ]
    else:
        share, option = best_constant(record)
        trivial = [
            ("no model: an option at random", lines["chance"]),
            (f"no model: always option {option}, the best constant", share),
        ]
        rows += [(name, record["questions"], 100 * a, None, *blank) for name, a in trivial]
    columns = (
        "Method",
        "Questions",
        "Accuracy, %",
        _AGAINST_PLAIN,
        *(("Rows right, %", "True row likeliest, %") if hard else ()),
        "Most frequent answer",
        "Replies that name an option, %",
    )
    what = "a question is right when all four of its rows are" if hard else "four options"
    return Table(f"{record['name']}: {what}", columns, tuple(rows), 1, signed=(_AGAINST_PLAIN,))


def best_constant(record: Mapping[str, Any]) -> tuple[float, int]:
    """Return the accuracy of the best constant answer, and the number of that option."""
    constant = record["trivial"]["constant"]
    option = max(range(len(constant)), key=constant.__getitem__)
    return constant[option], option + 1


def best_without_model(record: Mapping[str, Any]) -> float:
    """Return the highest accuracy that needs no model."""
    lines = record["trivial"]
    return max(lines["chance"], *lines["constant"], lines["one_true"] or 0)


def _share_of_options(method: Mapping[str, Any]) -> float:
    """Return the probability that a reply begins with an option, or the share of drawn ones."""
    exact = method["valid_mass"]
    return 1 - method["answers"]["unreadable"] if exact is None else exact


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _statements(record: Mapping[str, Any]) -> list[str]:
    """State the results of a set, one sentence or two each."""
    methods, name, signal = record["methods"], record["name"], record["gate"]["passes"]
    best_line = best_without_model(record)
    known = [k for k, m in methods.items() if m["accuracy"]["low"] > best_line]
    above = joined(METHODS[key].title for key in known) if known else "no method"
    statements = [
        f"{name}: above what needs no model ({number(100 * best_line)} %), with its whole "
        f"interval: {above}."
    ]
    for key, method in methods.items():
        if (difference := percent(method["minus"].get(NAIVE.key))) is not None:
            statements.append(
                f"{name}, {METHODS[key].title} against the plain question, on the "
                f"{method['minus'][NAIVE.key]['questions']} questions that both were asked: "
                f"{with_bounds(difference, 1, signed=True)} points, "
                f"{verdict(difference, signal=signal)}."
                f"{_picked_statement(method, NAIVE.key, signal)}"
            )
    if TUNED.key in methods:
        tuned = methods[TUNED.key]
        against = percent(tuned["minus"].get(PERMUTED.key))
        if against is not None:
            statements.append(
                f"{name}, the country's own tuned prompt against the other countries' prompts: "
                f"{with_bounds(against, 1, signed=True)} points, "
                f"{verdict(against, signal=signal)}."
                f"{_picked_statement(tuned, PERMUTED.key, signal)}"
            )
        each = [percent(c["minus"].get(NAIVE.key)) for c in tuned["countries"].values()]
        if len(each) > 1:
            statements.append(
                f"{name}, tuned prompt against the plain question, by country: "
                f"{tally(each, 'better', 'worse', signal)}. {chance_of_many(len(each))}"
            )
    return statements


def _picked_statement(method: Mapping[str, Any], other: str, signal: bool) -> str:
    """Return the same difference in the share of true rows that are the likeliest, for Hard."""
    if method["picked"] is None or not (record := method["picked"]["minus"].get(other)):
        return ""
    difference = percent(record)
    return (
        f" True row likeliest: {with_bounds(difference, 1, signed=True)} points, "
        f"{verdict(difference, signal=signal)}."
    )


def _what_was_measured(result: Mapping[str, Any]) -> list[str]:
    statements = []
    for record in result["sets"].values():
        rows = f" in {record['items']} rows" if is_hard(record) else ""
        statements.append(
            f"{record['name']}: {record['questions']} questions{rows} about "
            f"{countries(len(record['countries']))}, from the user's own file."
        )
    resamples = number(result["settings"]["resamples"], 0)
    return [
        *statements,
        f"Presentation: {result['presentation']}.",
        f"Reading: {result['reading']}.",
        f"Examples in context: {result['examples']}.",
        f"Bootstrap: {resamples} resamples of the questions.",
    ]


def _set_section(key: str, record: Mapping[str, Any], out: Path) -> Section:
    many = (len(record["methods"]) - 1) * len(record["countries"])
    return section(
        record["name"],
        countries_figure(key, record, out),
        groups_table(record, "regions", "Region"),
        differences_table(record),
        Text(chance_of_many(many)) if many > 1 else None,
        examples_table(record),
    )


def countries_figure(key: str, record: Mapping[str, Any], out: Path) -> Figure:
    """Draw each method's accuracy on all questions and by country, with intervals."""
    codes = list(record["countries"])
    names = [_ALL, *(record["countries"][code]["name"] for code in codes)]
    best = 100 * best_without_model(record)
    line = Key("best without a model", MUTED, "", "|")
    keys = [METHODS[name].legend().as_mark(True) for name in record["methods"]]
    values = {
        name: [
            percent(value)
            for value in (method["accuracy"], *(method["countries"].get(code) for code in codes))
        ]
        for name, method in record["methods"].items()
    }
    highest = max(v.high for of_method in values.values() for v in of_method if v is not None)
    # Panels of a length that can be read, side by side, on one scale.
    panels, many = [], -(-len(names) // _MOST_ROWS)
    for rows in np.array_split(np.arange(len(names)), many):
        series = [
            Series(mark, tuple(values[name][row] for row in rows))
            for mark, name in zip(keys, values, strict=True)
        ]
        series.append(Series(line, (best,) * len(rows)))
        panel = figures.dots("", [names[row] for row in rows], series, "accuracy, % of questions")
        panels.append(_scaled(panel, max(highest, best)))
    what = "all four rows right" if is_hard(record) else "four options"
    return make_figure(
        out / FIGURES / f"{key}.png",
        panels,
        f"{record['name']} ({what}): accuracy on all questions and by country. Bars are 95 % "
        "intervals over questions; the upright stroke is the best score that needs no model, over "
        "all questions.",
        "A row for all questions and one per country: the accuracy of each method, its interval.",
        groups_table(record, "countries", "Country"),
        [*keys, line],
    )


def _scaled(panel: Panel, highest: float) -> Panel:
    """Return a panel whose horizontal axis runs from 0 to `highest`, with a margin."""

    def draw(axes: Axes) -> None:
        panel.draw(axes)
        axes.set_xlim(-0.03 * highest, 1.03 * highest)

    return dataclasses.replace(panel, draw=draw)


def groups_table(record: Mapping[str, Any], by: str, corner: str) -> Table:
    """Return the accuracies by country or by region."""
    groups = list(dict.fromkeys(g for m in record["methods"].values() for g in m[by]))
    names = {code: c["name"] for code, c in record["countries"].items()}
    rows = tuple(
        (
            names.get(group, group),
            *_questions(record, by, group),
            *(percent(method[by].get(group)) for method in record["methods"].values()),
        )
        for group in sorted(groups, key=lambda g: names.get(g, g))
    )
    titles = (METHODS[key].title for key in record["methods"])
    columns = (corner, "Questions", *titles)
    return Table(f"{record['name']}: accuracy by {corner.lower()}, %", columns, rows)


def _questions(record: Mapping[str, Any], by: str, group: str) -> tuple[int]:
    counts = [m[by][group]["questions"] for m in record["methods"].values() if group in m[by]]
    return (max(counts),)


def differences_table(record: Mapping[str, Any]) -> Table | None:
    """Return the paired differences to the plain question by country."""
    keys = [key for key in record["methods"] if key != NAIVE.key]
    rows = []
    for code, country in record["countries"].items():
        found = [record["methods"][key]["countries"].get(code) for key in keys]
        differences = [percent(f and f["minus"].get(NAIVE.key)) for f in found]
        tuned = record["methods"].get(TUNED.key, {}).get("countries", {}).get(code)
        against = percent(tuned and tuned["minus"].get(PERMUTED.key))
        rows.append((country["name"], country["questions"], *differences, against))
    titles = [f"{METHODS[key].title} − plain" for key in keys]
    own = "own tuned − others' tuned"
    with_own = TUNED.key in record["methods"] and PERMUTED.key in record["methods"]
    if not keys:
        return None
    columns = ("Country", "Questions", *titles, *((own,) if with_own else ()))
    rows = [row if with_own else row[:-1] for row in rows]
    caption = f"{record['name']}: paired differences by country, points"
    signed = (*titles, own)
    return Table(caption, columns, tuple(rows), 1, signed=signed, folded=len(rows) > 12)


def examples_table(record: Mapping[str, Any]) -> Table | None:
    """Return which questions were shown as examples."""
    rows = tuple(
        (country["name"], ", ".join(country["examples"]))
        for country in record["countries"].values()
        if country["examples"]
    )
    caption = f"{record['name']}: questions shown as examples, by their labels in the file"
    return Table(caption, ("Country", "Questions"), rows, folded=True) if rows else None
