"""The report of a sweep: which strategy wins at equal evaluations, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.commands.reports.sweep_words import (
    ranking_words,
    strategy_words,
    told_apart,
    where_words,
)
from jaxalign.commands.reports.validity import allows_verdicts, gate_note
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.methods.soft_prompt.result import reading_words
from jaxalign.report import figures
from jaxalign.report.common import FIGURES, make_figure, provenance
from jaxalign.report.document import (
    Document,
    Estimate,
    Figure,
    Key,
    Listing,
    Note,
    Table,
    Text,
    section,
)
from jaxalign.report.figures import Series
from jaxalign.report.palette import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION
from jaxalign.report.render import write_report
from jaxalign.report.wording import chance_of_many, countries, joined, verdict
from jaxalign.stats.lines import TRIVIAL_NAMES

Record = Mapping[str, Any]

_LOOKS = (
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (PURPLE, "D"),
    (SKY, "v"),
    (VERMILION, "P"),
    (INK, "X"),
)
_PLAIN = Key("Plain question", INK, "", "|", 1.8)
_LIMITS = (
    "Intervals of losses are Student's over seeds: they say what other seeds would do, not other "
    "countries, models or budgets. With two seeds they are very wide.",
    "Equal evaluations are equally many candidates a search. Seconds may differ between "
    "algorithms, and so may the number at which each does best.",
    "Each algorithm ran with the options of the sweep file. Another choice may change the order.",
    "The best of several strategies is picked by the numbers that it is then judged by; the more "
    "strategies there are, the likelier it is that chance picked it.",
)


def sweep_report(record: Record, out: Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` with their figures.

    Args:
        record: The content of `result.json` (`jaxalign.commands.sweep.result`).
        out: The sweep's directory.

    Returns:
        The paths of the two reports.
    """
    names = strategy_names(record)
    gates = {group["model"]: group["validity"] for group in record["groups"]}
    document = Document(
        title="Sweep of soft prompts",
        summary=_summary(record, names),
        labels=(*warning_notes(record), *_gates(gates)),
        sections=(
            section(
                "Which algorithm wins",
                Text(
                    "Strategies are ranked by their mean loss, 0 being best, among those with "
                    "equally many evaluations. Differences are paired: the same country, seed and "
                    "prompt length under either strategy."
                ),
                Listing(tuple(ranking_words(r, names) for r in record["rankings"])),
                _ranking_table(record, names),
                _by_chance(record),
            ),
            section("Losses", _loss_figure(record, names, out), _presentations(record, names)),
            section("Held-out scores", *_held_out(record, names, gates, out)),
            section("What needs no search", _lines(record)),
            section("What these numbers do not prove", Listing(_LIMITS)),
            section(
                "Cells and prompts",
                Text(
                    "Every cell's record is a line of cells.jsonl beside this report. With "
                    "--save-prompts each cell's prompt is kept too; to talk to the model under "
                    "some of them, side by side: jaxalign chat MODEL --prompt PROMPT PROMPT, where "
                    "MODEL is the model's folder (left out for the pocket model) and each PROMPT "
                    "is a file of the folder prompts."
                ),
            ),
            provenance(record),
        ),
    )
    return write_report(document, out)


def strategy_names(record: Record) -> dict[str, str]:
    """Return the strategies in words by their name."""
    return {g["strategy"]: strategy_words(g["strategy"], g["algorithm"]) for g in record["groups"]}


def _summary(record: Record, names: Mapping[str, str]) -> str:
    groups = record["groups"]
    models = list(dict.fromkeys(group["model"] for group in groups))
    lengths = sorted({group["prompt_length"] for group in groups})
    whose = {country for group in groups for country in group[record["reading"]]["countries"]}
    # The widest ranking of each model: over all lengths where there are several.
    last = {ranking["model"]: ranking for ranking in record["rankings"]}
    sentences = " ".join(ranking_words(ranking, names) for ranking in last.values())
    return (
        f"{record['cells']:,} searches: {joined(names.values())} on {joined(models)}, prompts of "
        f"{joined(map(str, lengths))} tokens, {countries(len(whose))}. {sentences}"
    )


def _gates(gates: Mapping[str, Record | None]) -> list[Note]:
    said = "Verdicts on its held-out scores say nothing."
    notes = {model: gate_note(gate, said) for model, gate in gates.items()}
    if len(notes) == 1:
        return list(notes.values())
    return [Note(note.text, note.kind, f"{model}: {note.lead}") for model, note in notes.items()]


def _ranking_table(record: Record, names: Mapping[str, str]) -> Table:
    rows = tuple(
        (
            where_words(ranking),
            ranking["evaluations"],
            place,
            names[entry["strategy"]],
            entry["mean"],
            Estimate.read(entry["behind"]),
            _pairs(entry["behind"]),
            told_apart(entry["behind"]) if place > 1 else "best",
        )
        for ranking in record["rankings"]
        for place, entry in enumerate(ranking["strategies"], 1)
    )
    columns = (
        "Searches",
        "Evaluations a search",
        "Rank",
        "Strategy",
        "Mean loss",
        "Behind the best",
        "Higher in",
        "It is",
    )
    title = f"Ranking by loss ({reading_words(record['reading'])} reading), 95 % over seeds"
    return Table(title, columns, rows, 1, ("Behind the best",))


def _pairs(behind: Record | None) -> str | None:
    return None if behind is None else f"{behind['higher']} of {behind['pairs']} cells"


def _by_chance(record: Record) -> Text | None:
    count = sum(len(ranking["strategies"]) - 1 for ranking in record["rankings"])
    words = chance_of_many(count)
    return Text(words) if words else None


def _series(
    record: Record, names: Mapping[str, str], rows: Sequence[tuple[str, int]], value: Any
) -> list[Series]:
    """Return a series per strategy, with an estimate per model and prompt length."""
    found = {(g["model"], g["prompt_length"], g["strategy"]): value(g) for g in record["groups"]}
    series = []
    for place, (name, words) in enumerate(names.items()):
        colour, marker = _LOOKS[place % len(_LOOKS)]
        key = Key(words, colour, "-", marker, 1.8)
        values = tuple(Estimate.read(found.get((*row, name))) for row in rows)
        series.append(Series(key, values))
    return series


def _estimates(
    record: Record,
    names: Mapping[str, str],
    png: Path,
    unit: str,
    caption: str,
    values: tuple[Any, Any],
    digits: int,
) -> Figure:
    """Return marks with intervals: a row per model and prompt length, a series per strategy.

    Args:
        record: The content of `result.json`.
        names: The strategies in words.
        png: Where the figure is written.
        unit: What is measured.
        caption: What the figure shows.
        values: What is taken of a group for its strategy, and for the plain question.
        digits: Decimals.
    """
    groups = record["groups"]
    rows = list(dict.fromkeys((g["model"], g["prompt_length"]) for g in groups))
    several = len({model for model, _ in rows}) > 1
    labels = [
        f"{model}, {length} tokens" if several else f"{length} tokens" for model, length in rows
    ]
    of_strategy, of_plain = values
    series = _series(record, names, rows, of_strategy)
    plain = {(g["model"], g["prompt_length"]): of_plain(g) for g in groups}
    series.append(Series(_PLAIN, tuple(Estimate.read(plain[row]) for row in rows)))
    cells = tuple((label, *(s.values[i] for s in series)) for i, label in enumerate(labels))
    return make_figure(
        png,
        [figures.dots("", labels, series, unit)],
        caption,
        "A row per model and prompt length, with a mark and an interval for each strategy and a "
        "stroke for the plain question; the numbers are in the table.",
        Table(caption, ("Prompt", *(s.key.label for s in series)), cells, digits),
        [s.key.as_mark(s.key is not _PLAIN) for s in series],
    )


def _loss_figure(record: Record, names: Mapping[str, str], out: Path) -> Figure:
    reading = record["reading"]
    return _estimates(
        record,
        names,
        out / FIGURES / "losses.png",
        "loss in points, 0 is best",
        f"Mean loss ({reading_words(reading)} reading) with 95 % intervals over seeds",
        (
            lambda g: g[reading]["interval"] or g[reading]["mean"],
            lambda g: g["naive"].get(reading),
        ),
        1,
    )


def _presentations(record: Record, names: Mapping[str, str]) -> Table | None:
    reading, other = record["reading"], "most_likely"
    other = "expected" if reading == other else other
    rows = tuple(
        (
            f"{group['model']}, {group['prompt_length']} tokens",
            names[group["strategy"]],
            group["cells"],
            group[reading]["mean"],
            (group["untuned"] or {}).get(reading),
            group[other]["mean"],
            group[reading]["low"],
            group[reading]["high"],
            group[reading]["failed"],
        )
        for group in record["groups"]
    )
    columns = (
        "Searches",
        "Strategy",
        "Cells",
        "Loss",
        "In presentations that were not tuned on",
        f"In the {reading_words(other)} reading",
        "Easiest country",
        "Hardest country",
        "Failed",
    )
    return Table("Losses of every group", columns, rows, 1)


def _held_out(
    record: Record, names: Mapping[str, str], gates: Mapping[str, Record | None], out: Path
) -> list[Any]:
    if not any(group["held_out"] for group in record["groups"]):
        return [Text("The held-out survey has none of the countries, so there are no scores.")]
    figure = _estimates(
        record,
        names,
        out / FIGURES / "held_out.png",
        "similarity to people, 1 is best",
        "Held-out score with 95 % intervals over seeds and items",
        (lambda g: g["held_out"], lambda g: g["naive"]["held_out"]),
        3,
    )
    rows = tuple(
        (
            f"{group['model']}, {group['prompt_length']} tokens",
            names[group["strategy"]],
            Estimate.read(group["held_out_minus_naive"]),
            verdict(
                Estimate.read(group["held_out_minus_naive"]),
                signal=allows_verdicts(gates[group["model"]]),
            ),
        )
        for group in record["groups"]
    )
    columns = ("Searches", "Strategy", "Minus the plain question", "It is")
    title = "Held-out score above the plain question, paired by item, 95 % over seeds and items"
    return [figure, Table(title, columns, rows, 3, ("Minus the plain question",))]


def _lines(record: Record) -> list[Table]:
    """Return what answers without a model are worth; all groups of a model share them."""
    tables = []
    for kind, title, digits in (
        ("loss", "Losses of answers that need no model", 1),
        ("held_out", "Held-out scores of answers that need no model", 3),
    ):
        lines = {group["model"]: group["lines"][kind] for group in record["groups"]}
        names = list(dict.fromkeys(name for line in lines.values() for name in line))
        if not names:
            continue
        rows = tuple(
            (TRIVIAL_NAMES.get(name, name), *(line.get(name) for line in lines.values()))
            for name in names
        )
        tables.append(Table(title, ("Answers", *lines), rows, digits))
    return tables
