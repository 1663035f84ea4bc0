"""`report.md` and `report.html` of `jaxalign culturespa`, from its result and its pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.culturespa_measure import (
    gate_of,
    measure_sections,
    measure_sentences,
)
from jaxalign.commands.reports.culturespa_plots import (
    SHOWN_LINES,
    country_keys,
    country_panels,
    country_score,
    draw_methods,
    draw_rows,
    pair_shares,
    pairs_panel,
    prompting_keys,
    prompting_panels,
    shown_methods,
    with_p1,
)
from jaxalign.commands.reports.culturespa_tables import (
    REPLY_COLUMNS,
    difference_label,
    model_title,
    pair_count,
    prompting_differences,
    prompting_sentences,
    reply_rows,
    title,
    untrained_sentences,
)
from jaxalign.commands.reports.validity import gate_note, judged
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.commands.reports.what_it_says import CHAT_WITH_RUN, what_it_says
from jaxalign.methods.base import METHODS
from jaxalign.methods.culturespa.prompting import OTHER_STYLES
from jaxalign.methods.culturespa.result import SELECTION_MODELS
from jaxalign.report.common import provenance
from jaxalign.report.document import (
    Cell,
    Document,
    Estimate,
    Figure,
    Key,
    Listing,
    Section,
    Table,
    Text,
    section,
)
from jaxalign.report.drawing import Panel, drawings
from jaxalign.report.palette import BLUE, INK, PURPLE, VERMILION
from jaxalign.report.render import write_report
from jaxalign.report.wording import IDENTICAL, NO_SIGNAL, groups_note, joined, number
from jaxalign.stats.alignment import LINES

_ROW_KEYS = (
    Key("mean", INK, marker="o"),
    Key("95 %, questions", BLUE, "-"),
    Key("95 %, seeds", VERMILION, "-"),
    Key("each seed", PURPLE, marker="|"),
)
_NAMES = (
    "P1 names the country, P2 also the most similar and the most different countries, P3 shows "
    "questions with the country's answers. Joint, specific and CCT (cross-culture thinking) are "
    "fine-tuned models. CRQPC, RDS and CDS are ways to select the training data: changed, random "
    "and unchanged answers. “What the methods are”, under Scores, has a sentence on each."
)
_LIMITS = (
    "Read a score beside the scores of answers that need no model.",
    "Intervals over questions are about other questions like these. Intervals over seeds are about "
    "other written questions, draws and adapters of the same program. Neither is about other "
    "models.",
    "The written questions are modelled on the survey's own, as published: exact copies are "
    "removed, close ones are not. The test does not consist of unrelated questions.",
    "Fine-tuning teaches a model what it said itself in character. It cannot teach what the model "
    "does not know about a country; the model can only say it more firmly, or in other places.",
)
_QUESTION_COUNTS = {
    "asked_for": "questions asked for",
    "requests": "requests sent to the model",
    "parsed": "replies that were a question",
}


def write_culturespa_report(result: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write both reports and return their paths.

    Args:
        result: The content of `result.json`.
        out: The run's directory, which must hold `methods.png` and `selection.png`.
    """
    result = judged(result, gate_of(result))
    survey, seeds = result["survey"], result["settings"]["seeds"]
    document = Document(
        title="CultureSPA: do a model's own answers bring it nearer to cultures?",
        summary=f"{len(result['settings']['countries'])} countries, {survey['items']} items of "
        f"{survey['name']}, {seeds} {'seed' if seeds == 1 else 'seeds'}."
        f"{groups_note(result['settings']['countries'])}",
        labels=(*warning_notes(result), gate_note(gate_of(result))),
        sections=(
            section(
                "In short",
                Text(_NAMES),
                Listing(statements(result), "Findings, in points of the score"),
            ),
            what_it_says(result, CHAT_WITH_RUN),
            _methods(result, out),
            *measure_sections(result),
            _countries(result, out),
            *_prompting(result, out),
            _selections(result, out),
            section("Guard: what fine-tuning must not break", *_guard(result["guard"])),
            section("Written questions", *_questions(result["questions"])),
            *_replies(result),
            section("What these scores do not prove", Listing(_LIMITS)),
            provenance(result),
        ),
    )
    return write_report(document, out)


def statements(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the differences that the paper's claims rest on, and the guard, as sentences."""
    result = judged(result, gate_of(result))
    sentences = [_difference_sentence(name, d) for name, d in result["differences"].items()]
    sentences += prompting_sentences(result)
    limit = result["guard"]["limit"]
    sentences += guessing_sentences(result["guard"])
    for method, change in result["guard"]["change"].items():
        within = "within" if change["within"] else "not within"
        points = number(change["mean"], 2, signed=True)
        sentences.append(
            f"Guard, {METHODS[method].label}: accuracy changes by {points} points, {within} the "
            f"limit of {limit:g}."
        )
    sentences += measure_sentences(result)
    sentences += untrained_sentences(result)
    if leaky := result["survey"]["leaky"]:
        sentences.append(
            f"{joined(METHODS[key].label for key in leaky)} read answers of the very survey they "
            "are tested on, as published; with --examples leak_free they do not."
        )
    return tuple(sentences)


def _difference_sentence(name: str, difference: Mapping[str, Any]) -> str:
    methods, verdict = difference_label(name), difference["verdict"]
    if difference["interval"] is None:
        return f"{methods}: {verdict}."
    spans = []
    for key, over in (("interval", "questions"), ("seed_interval", "seeds")):
        if difference[key] is not None:
            low, high = (number(bound, 2, signed=True) for bound in difference[key])
            spans.append(f"{low} to {high} over {over}")
    points = number(difference["value"], 2, signed=True)
    ending = f"The first is {verdict}." if verdict != NO_SIGNAL else f"Verdict: {verdict}."
    if verdict == IDENTICAL:
        ending = "The answers are identical."
    return f"{methods}: {points} points (95 %: {', '.join(spans)}). {ending}"


def _over_questions(record: Mapping[str, Any]) -> Estimate:
    bounds = record["interval"] or (None, None)
    return Estimate(record.get("mean", record.get("value")), *bounds)


def _over_seeds(record: Mapping[str, Any]) -> Cell:
    if record["seed_interval"] is None:
        return None
    return Estimate(record.get("mean", record.get("value")), *record["seed_interval"])


def _methods(result: Mapping[str, Any], out: Path) -> Section:
    countries = result["settings"]["countries"]
    rows = tuple(
        (
            title(key),
            *(record["countries"][country] for country in countries),
            _over_questions(record),
            _over_seeds(record),
        )
        for key, record in result["methods"].items()
    )
    table = Table(
        "Score of each method by country, and its mean with 95 % intervals",
        ("Method", *countries, "Mean (over questions)", "Mean (over seeds)"),
        rows,
        digits=2,
    )
    panel = Panel("", functools.partial(draw_methods, result=result), (5.0, 4.6))
    figure = Figure(
        "Mean score of each method",
        "One row per method with its mean and intervals, and vertical lines for answers that need "
        "no model",
        out / "methods.png",
        drawings("methods", [panel]),
        table,
        (*_ROW_KEYS, *(Key(words, color, style) for words, style, color in SHOWN_LINES.values())),
    )
    lines = tuple((LINES[name], line["mean"]) for name, line in result["lines"].items())
    described = tuple((title(key), METHODS[key].description) for key in result["methods"])
    return section(
        "Scores",
        Text(
            "The score is 100 × (1 − ‖answers − majority answers‖ / ‖ranges‖) over the items that "
            "were answered: 100 means that the model chose the majority answer to every question."
        ),
        figure,
        Table("What the methods are", ("Method", "What it does"), described, folded=True),
        Table("Answers that need no model", ("Answers", "Mean score"), lines, digits=2),
        _differences(result),
    )


def _differences(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (difference_label(name), _over_questions(d), _over_seeds(d), d["verdict"])
        for name, d in result["differences"].items()
    )
    columns = ("Difference", "Points (over questions)", "Points (over seeds)", "The first is")
    return Table(
        "Differences between methods, paired by question, country and seed, with 95 % intervals",
        columns,
        rows,
        digits=2,
        signed=columns[1:3],
    )


def _countries(result: Mapping[str, Any], out: Path) -> Section:
    methods = shown_methods(result)
    rows = tuple(
        (country, *(country_score(result, key, country) for key in methods))
        for country in result["settings"]["countries"]
    )
    table = Table(
        "Scores by country with 95 % intervals over questions",
        ("Country", *(METHODS[key].label for key in methods)),
        rows,
    )
    return section(
        "Country by country",
        Figure(
            "Score of the main methods in each country, with 95 % intervals over questions",
            "One row per country, ordered by the unaware model's score, with a mark and a bar for "
            "each method",
            out / "countries.png",
            drawings("countries", country_panels(result)),
            table,
            tuple(country_keys(result)),
        ),
    )


def _prompting(result: Mapping[str, Any], out: Path) -> tuple[Section, ...]:
    """Return a section on the fine-tuned models under every style, if they were asked."""
    if "prompting" not in result:
        return ()
    prompting = result["prompting"]
    models = list(prompting["scores"])
    styles = list(prompting["scores"][models[0]])
    table = Table(
        "Mean score by prompt style and model, with 95 % intervals over questions",
        ("Style", *map(model_title, models)),
        tuple(
            (
                METHODS[style].title,
                *(_over_questions(prompting["scores"][model][style]) for model in models),
            )
            for style in styles
        ),
    )
    columns = ("Difference", "Points (over questions)", "Points (over seeds)", "The first is")
    differences = Table(
        "What fine-tuning adds under each style, and what each style adds to P1",
        columns,
        tuple(
            (name, _over_questions(row), _over_seeds(row), row["verdict"])
            for name, row in prompting_differences(prompting).items()
        ),
        digits=2,
        signed=columns[1:3],
    )
    figure = Figure(
        "Models under every prompt style",
        "Left: one row per style with the score of each model. Right: what fine-tuning adds",
        out / "prompting.png",
        drawings("prompting", prompting_panels(prompting)),
        table,
        tuple(prompting_keys(prompting)),
    )
    replies = tuple(
        (f"{model_title(model)}, {METHODS[style].label}", *(counts[key] for key in REPLY_COLUMNS))
        for model, by_style in prompting["replies"].items()
        for style, counts in by_style.items()
    )
    mass = tuple(
        (model_title(model), *(by_style.get(style) for style in OTHER_STYLES))
        for model, by_style in prompting["valid_mass"].items()
    )
    return (
        section(
            "Fine-tuned models under every prompt style",
            Text(
                "The paper's claim is that fine-tuning combines with prompting. The joint and the "
                "specific models were trained under P1; here they answer under every style. A "
                "difference is paired by question, country and seed."
            ),
            figure,
            differences,
            Table(
                "Probability that a reply begins with an option",
                ("Model", *(METHODS[style].label for style in OTHER_STYLES)),
                mass,
                digits=3,
                folded=True,
            ),
            Table("Replies that are not an answer", ("Model", *REPLY_COLUMNS.values()), replies)
            if replies
            else None,
        ),
    )


def _selections(result: Mapping[str, Any], out: Path) -> Section:
    rows = tuple(
        (
            title(key),
            pair_count(result, SELECTION_MODELS[key]),
            _over_questions(record),
            _over_seeds(record),
        )
        for key, record in result["selection"].items()
    )
    table = Table(
        "The joint model by how its training data were selected, with 95 % intervals",
        ("Selection", "Pairs", "Mean score (over questions)", "Mean score (over seeds)"),
        rows,
        digits=2,
    )
    draw = functools.partial(draw_rows, records=with_p1(result))
    figure = Figure(
        "The joint model by how its training data were selected",
        "One row per selection with its mean and intervals, and P1, which is not fine-tuned",
        out / "selection.png",
        drawings("selection", [Panel("", draw, (5.0, 2.8))]),
        table,
        _ROW_KEYS,
    )
    return section(
        "Selection of training data",
        Text(
            "A pair is a question and a country. CRQPC takes the pairs whose answer changes when "
            "the country is named, RDS as many at random, CDS as many whose answer stays the same."
        ),
        figure,
        _pairs(result, out),
    )


def _pairs(result: Mapping[str, Any], out: Path) -> Figure:
    countries = result["settings"]["countries"]
    topics, shares = pair_shares(result)
    table = Table(
        "Selected pairs by topic and country, in % of the topic's questions",
        ("Topic", *countries),
        tuple((topic, *row) for topic, row in zip(topics, shares, strict=True)),
    )
    return Figure(
        "Selected pairs (CRQPC) by topic and country",
        "A cell per topic and country with the percentage of the topic's written questions whose "
        "answer changes when the country is named",
        out / "pairs.png",
        drawings("pairs", [pairs_panel(result)]),
        table,
    )


def guessing_sentences(guard: Mapping[str, Any]) -> tuple[str, ...]:
    """Say so where the unchanged model is not better than guessing in the guard."""
    if guard["before"] > guard["chance"] + guard["limit"]:
        return ()
    return (
        f"Guard: the unchanged model is right in {number(guard['before'], 1)} % of the questions, "
        f"and guessing in {number(guard['chance'], 1)} %, so there is nothing that fine-tuning "
        "could break. The guard says nothing; give an easier test.",
    )


def _guard(guard: Mapping[str, Any]) -> tuple[Text | Table, ...]:
    rows = tuple(
        (
            title(key),
            guard["before"],
            after["mean"],
            _over_seeds(guard["change"][key]) or guard["change"][key]["mean"],
        )
        for key, after in guard["after"].items()
    )
    columns = ("Method", "% right before", "% right after", "Change in points (over seeds)")
    asked = "as lm-evaluation-harness asks them" if "tasks" in guard else "without a system message"
    tasks = guard.get("tasks", {}).items()
    by_task = Table(
        "Accuracy by task, in percent",
        ("Task", "before", *(title(key) for key in guard["after"])),
        tuple((task, row["before"], *row["after"].values()) for task, row in tasks),
        digits=2,
    )
    return (
        Text(
            "Questions that have nothing to do with culture and one right answer each, asked "
            f"{asked}, before and after fine-tuning."
        ),
        *((by_task,) if len(tasks) > 1 else ()),
        Table(
            f"Accuracy on {guard['questions']} questions ({guard['test']})",
            columns,
            rows,
            digits=2,
            signed=columns[3:],
        ),
    )


def _questions(questions: Mapping[str, Any]) -> tuple[Table]:
    rows = [(words, questions[key]) for key, words in _QUESTION_COUNTS.items()]
    if not questions["requests"]:
        rows = [
            ("entries of the files that the run was given", questions["asked_for"]),
            ("entries that are a question", questions["parsed"]),
        ]
    rows += [
        (f"removed by the filter “{name.replace('_', ' ')}”", count)
        for name, count in questions["removed"].items()
    ]
    rows.append(("questions left", questions["left"]))
    return (Table("Counts over all seeds", ("What is counted", "Number"), tuple(rows)),)


def _replies(result: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return a section on replies that are not an answer, if replies were sampled."""
    rows = tuple(reply_rows(result))
    if not rows:
        return ()
    columns = ("Method", *REPLY_COLUMNS.values())
    return (section("Sampled replies", Table("Replies that are not an answer", columns, rows)),)
