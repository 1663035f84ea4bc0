"""The tables of `jaxalign culturespa` on the screen. The report shares some of their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.commands.reports.culturespa_measure import gate_of, measure_sentences
from jaxalign.commands.reports.validity import gate_note, judged
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.methods.base import METHODS
from jaxalign.methods.culturespa.result import SELECTION_MODELS
from jaxalign.runs.console import print_abbreviations, print_notes, print_table
from jaxalign.stats.alignment import LINES

# Columns of counted replies: the key in `result.json` and its heading.
REPLY_COLUMNS = {
    "replies": "replies",
    "unreadable": "without a number",
    "out_of_range": "with a number that no option has",
    "option_lists": "that repeat the options",
}
INTERVALS = ("95 % over questions", "95 % over seeds")


def show_result(result: Mapping[str, Any]) -> None:
    """Print the verdict on the instrument, scores, selections, differences, lines and counts."""
    result = judged(result, gate_of(result))
    print_notes((*warning_notes(result), gate_note(gate_of(result))))
    methods = result["methods"]
    countries = result["settings"]["countries"]
    kind = "simulated survey" if result["survey"]["simulated"] else result["survey"]["name"]
    print_table(
        f"Cultural alignment score × 100 ({kind})",
        ["method", *countries, "mean", *INTERVALS],
        [
            [title(key), *row["countries"].values(), *mean_cells(row)]
            for key, row in methods.items()
        ],
    )
    print_table(
        "The joint model by how its training data were selected",
        ["selection", "pairs", "mean", *INTERVALS],
        [
            [title(key), pair_count(result, SELECTION_MODELS[key]), *mean_cells(row)]
            for key, row in result["selection"].items()
        ],
    )
    show_differences(result["differences"])
    print_table(
        "Answers that need no model",
        ["answers", "mean score"],
        [[LINES.get(name, name), line["mean"]] for name, line in result["lines"].items()],
    )
    if rows := reply_rows(result):
        print_table("Sampled replies", ("method", *REPLY_COLUMNS.values()), rows)
    if "prompting" in result:
        show_prompting(result["prompting"], countries)
    for sentence in (*measure_sentences(result), *untrained_sentences(result)):
        print(sentence)
    show_guard(result["guard"])
    _show_questions(result["questions"])
    print_abbreviations(title(key) for key in (*methods, *result["selection"]))


def show_differences(differences: Mapping[str, Mapping[str, Any]]) -> None:
    """Print paired differences between methods, by names such as "joint_minus_p1"."""
    rows = [
        [
            difference_label(name),
            row["value"],
            bounds(row["interval"], "+"),
            bounds(row["seed_interval"], "+"),
            row["verdict"],
        ]
        for name, row in differences.items()
    ]
    columns = ["difference", "points", *INTERVALS, "the first is"]
    print_table("Paired differences between methods", columns, rows)


def show_prompting(prompting: Mapping[str, Any], countries: Sequence[str]) -> None:
    """Print the scores of the models under every prompt style, and their paired differences."""
    print_table(
        "Models under every prompt style, score × 100",
        ["model", "style", *countries, "mean", *INTERVALS],
        [
            [model_title(model), METHODS[style].label, *row["countries"].values(), *mean_cells(row)]
            for model, by_style in prompting["scores"].items()
            for style, row in by_style.items()
        ],
        names=2,
    )
    differences = prompting_differences(prompting)
    for sentence in prompting_sentences({"prompting": prompting}):
        print(sentence)
    print_table(
        "What fine-tuning adds to each style, and each style to P1, paired",
        ["difference", "points", *INTERVALS, "the first is"],
        [
            [
                name,
                row["value"],
                bounds(row["interval"], "+"),
                bounds(row["seed_interval"], "+"),
                row["verdict"],
            ]
            for name, row in differences.items()
        ],
    )


def prompting_differences(prompting: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the paired differences of `prompting` by a name in words."""
    named = {}
    for model, by_style in prompting["minus_base"].items():
        for style, row in by_style.items():
            short = METHODS[style].label
            named[f"{model_label(model)} under {short} − unchanged under {short}"] = row
    for model, by_style in prompting["minus_p1"].items():
        for style, row in by_style.items():
            named[f"{model_label(model)}: {METHODS[style].label} − {METHODS['p1'].label}"] = row
    return named


def prompting_sentences(result: Mapping[str, Any]) -> list[str]:
    """Return, for each fine-tuned model, under which styles it is above the unchanged one."""
    sentences = []
    for model, by_style in result.get("prompting", {}).get("minus_base", {}).items():
        styles_of: dict[str, list[str]] = {}
        for style, row in by_style.items():
            styles_of.setdefault(row["verdict"], []).append(METHODS[style].label)
        found = []
        for verdict, styles in styles_of.items():
            what, _, over = verdict.partition(", ")  # "higher", "over questions only"
            under = f"under {', '.join(styles)}"
            found.append(f"{what} {under}" + (f" ({over})" if over else ""))
        sentences.append(
            f"{model_label(model)} beside the unchanged model under the same style: "
            f"{'; '.join(found)}."
        )
    return sentences


def model_title(model: str) -> str:
    """Return the name in words of a fine-tuned model, or of the unchanged one."""
    return METHODS[model].title if model in METHODS else "unchanged model"


def model_label(model: str) -> str:
    """Return the short name of a fine-tuned model, or of the unchanged one."""
    return METHODS[model].label if model in METHODS else "unchanged"


def title(key: str) -> str:
    """Return a method's name in words; any other name, such as a study's, as it is."""
    return METHODS[key].title if key in METHODS else key


def difference_label(name: str) -> str:
    """Return the short names of a difference's methods: "joint_minus_p1" -> "joint − P1"."""
    keys = name.split("_minus_")
    return " − ".join(METHODS[key].label if key in METHODS else key for key in keys)


def mean_cells(record: Mapping[str, Any]) -> list[Any]:
    """Return a method's mean score and both intervals as cells of a table."""
    return [record["mean"], bounds(record["interval"]), bounds(record["seed_interval"])]


def pair_count(result: Mapping[str, Any], model: str) -> int:
    """Return the number of pairs selected for a model, over all seeds and countries."""
    return sum(sum(seed["pairs"][model].values()) for seed in result["selected"].values())


def untrained_sentences(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on every method some of whose models fine-tuning left unchanged, and on
    every model that was trained again."""
    why = "untrained (nothing was selected, or no step was taken)"
    sentences = []
    for method, untrained in result["untrained"].items():
        if untrained["all"]:
            sentences.append(f"{title(method)}: {why}, so it is in no table.")
        else:
            models = ", ".join(untrained["models"])
            sentences.append(
                f"{title(method)}: {models} {why}; the unchanged model counts instead."
            )
    for model, found in result.get("retrained", {}).items():
        sentences.append(
            f"{model}: its loss was not finite in step {found['step']} at a learning rate of "
            f"{found['learning_rate']:g}, so it was trained again at {found['trained_at']:g}."
        )
    return sentences


def reply_rows(result: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """Return, by method, the replies sampled and those that are not an answer."""
    return [
        (title(method), *(counts[key] for key in REPLY_COLUMNS))
        for method, counts in result["replies"].items()
        if counts["replies"]
    ]


def bounds(interval: Any, sign: str = "", digits: int = 1) -> str:
    """Return an interval as two numbers in brackets, or a dash without one."""
    if interval is None:
        return "–"
    low, high = interval
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def show_guard(guard: Mapping[str, Any]) -> None:
    """Print the accuracy of each method's models after fine-tuning, and how it changed."""
    rows = [
        [
            title(key),
            after["mean"],
            guard["change"][key]["mean"],
            bounds(guard["change"][key]["seed_interval"], "+"),
            "yes" if guard["change"][key]["within"] else "NO",
        ]
        for key, after in guard["after"].items()
    ]
    print_table(
        f"Guard: {guard['test'][:40]}, {guard['questions']} questions, {guard['before']:.1f} % "
        "right before fine-tuning",
        ["method", "% right after", "change", INTERVALS[1], f"within {guard['limit']:g} point"],
        rows,
    )


def _show_questions(questions: Mapping[str, Any]) -> None:
    removed = ", ".join(f"{n.replace('_', ' ')} {k}" for n, k in questions["removed"].items() if k)
    requests = questions["requests"]  # none: the questions existed already
    print(
        f"{'written' if requests else 'existing'} questions over all seeds: "
        f"{questions['asked_for']} {f'asked for in {requests} requests' if requests else 'read'}, "
        f"{questions['parsed']} accepted, {questions['left']} left after the filters; removed: "
        f"{removed or 'none'}"
    )
