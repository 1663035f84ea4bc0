"""The tables of `experiments.culturespa` on the screen; the report shares some of their words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.methods.culturespa.result import METHODS, SELECTION
from jaxalign.methods.culturespa.settings import Config
from jaxalign.runs.console import print_table

REPLIES = {"replies": "replies", "unreadable": "no number", "out_of_range": "no such option"}


def show_result(config: Config, result: Mapping[str, Any]) -> None:
    """Tables on the screen."""
    rows = [
        [words, *result["methods"][name]["countries"].values(), *_mean(result["methods"][name])]
        for name, words in METHODS.items()
        if name in result["methods"]
    ]
    columns = ["", *config.countries, "mean", "questions [95 %]", "seeds [95 %]"]
    kind = "simulated survey" if result["survey"]["simulated"] else result["survey"]["name"]
    print_table(f"Cultural alignment score × 100 ({kind})", columns, rows)
    rows = [
        [name.upper(), pair_count(result, method), *_mean(result["selection"][name])]
        for name, method in SELECTION.items()
        if name in result["selection"]
    ]
    print_table("Joint model by selection", ["", "pairs", *columns[-3:]], rows)
    rows = [
        [name.replace("_minus_", " − "), d["value"], bounds(d["interval"], "+"),
         bounds(d["seed_interval"], "+"), d["verdict"]]
        for name, d in result["differences"].items()
    ]  # fmt: skip
    print_table("Differences, paired", ["", "points", *columns[-2:], ""], rows)
    lines = [[name.replace("_", " "), line["mean"]] for name, line in result["lines"].items()]
    print_table("Without any model", ["", "mean"], lines)
    if rows := reply_rows(result):
        print_table("Replies", ("", *REPLIES.values()), rows)
    for words in untrained_words(result):
        print(words)
    show_guard(result["guard"])
    _show_questions(result["questions"])


def _mean(record: Mapping[str, Any]) -> list[Any]:
    return [record["mean"], bounds(record["interval"]), bounds(record["seed_interval"])]


def pair_count(result: Mapping[str, Any], method: str) -> int:
    """Pairs selected for a method, over all seeds and countries."""
    return sum(sum(seed["pairs"][method].values()) for seed in result["selected"].values())


def untrained_words(result: Mapping[str, Any]) -> list[str]:
    """A sentence on every method of which some models are the model as it came."""
    return [
        f"{method}: untrained, so it is in no table; nothing was selected for it, or no step taken."
        if found["all"]
        else f"{method}: {', '.join(found['models'])} untrained, and counted as the model as it "
        "came; nothing was selected, or no step taken."
        for method, found in result["untrained"].items()
    ]


def reply_rows(result: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """Method, replies, those without a number, those with a number that no option has."""
    return [
        (METHODS.get(method, method.upper()), *(c[k] for k in REPLIES))
        for method, c in result["replies"].items()
        if c["replies"]
    ]


def bounds(interval: Any, sign: str = "") -> str:
    """Two numbers in brackets, or a dash."""
    return "–" if interval is None else f"[{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]"


def show_guard(guard: Mapping[str, Any]) -> None:
    """Accuracy of each method after fine-tuning, and its change."""
    rows = [
        [name, after["mean"], guard["change"][name]["mean"],
         bounds(guard["change"][name]["seed_interval"], "+"),
         "within a point" if guard["change"][name]["within"] else "NOT within a point"]
        for name, after in guard["after"].items()
    ]  # fmt: skip
    before = f"{guard['questions']} questions, {guard['before']:.1f} % before"
    title = f"Guard: {guard['test'][:40]}, {before}"
    print_table(title, ["", "percent right", "change", "seeds [95 %]", ""], rows)


def _show_questions(questions: Mapping[str, Any]) -> None:
    removed = ", ".join(f"{n.replace('_', ' ')} {k}" for n, k in questions["removed"].items() if k)
    print(
        f"questions over all seeds: {questions['asked_for']} asked for, {questions['requests']} "
        f"requests, {questions['parsed']} parsed, {questions['left']} left; removed: "
        f"{removed or 'none'}"
    )
