"""The result of a sweep as tables in the terminal: losses, held-out scores, and what they beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.soft_prompt_record import constants_words
from jaxalign.commands.reports.sweep import strategy_names
from jaxalign.commands.reports.sweep_words import ranking_words
from jaxalign.commands.reports.validity import gate_note
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.methods.soft_prompt.result import reading_words
from jaxalign.runs.console import print_abbreviations, print_notes, print_table
from jaxalign.stats.lines import TRIVIAL_NAMES

_NAME = ("model", "strategy", "algorithm", "tokens")


_MOST_COLUMNS = 6  # presentations; of more, as with all orders, only averages are shown


def show_result(result: Mapping[str, Any]) -> None:
    """Print warnings, tables, and who wins."""
    print_notes(warning_notes(result))
    # A gate is a model's: its strategies and prompt lengths share it.
    for line in dict.fromkeys(_gate_line(group) for group in result["groups"]):
        print(line)
    _show_losses(result)
    _show_presentations(result)
    _show_held_out(result)
    lines = dict.fromkeys(_words(result, group) for group in result["groups"])
    names = strategy_names(result)
    lines |= dict.fromkeys(ranking_words(ranking, names) for ranking in result["rankings"])
    for line in lines:
        print(line)
    print_abbreviations([*names.values(), *lines])


def _show_losses(result: Mapping[str, Any]) -> None:
    reading, rows = result["reading"], []
    for group in result["groups"]:
        spread = group[reading]
        rows.append(
            [
                *_name(group),
                group["cells"],
                group["naive"].get(reading),
                spread["mean"],
                _bounds(spread["interval"], 1),
                spread["low"],
                spread["high"],
                spread["failed"],
            ]
        )
    columns = (
        *_NAME,
        "cells",
        "naive",
        "mean loss",
        "95 %, seeds",
        "easiest",
        "hardest",
        "failed",
    )
    tuned = " ".join(result["presentations"]["tuned"])
    title = (
        f"Loss ({reading_words(reading)} reading, presentations {tuned}); easiest and hardest "
        "country"
    )
    print_table(title, columns, rows, names=len(_NAME))


def _show_presentations(result: Mapping[str, Any]) -> None:
    """Print how losses fare in the presentations that are not tuned on, and in the other reading.

    The columns of the latter are named by it.
    """
    reading, names = result["reading"], result["presentations"]
    other = "most_likely" if reading == "expected" else "expected"
    shown = [name for kind in ("tuned", "untuned") for name in names[kind]]
    shown = shown if len(shown) <= _MOST_COLUMNS else []
    rows = [
        [
            *_name(group),
            *(group["presentations"].get(name, {}).get(reading) for name in shown),
            (group["untuned"] or {}).get(reading),
            group[other]["mean"],
        ]
        for group in result["groups"]
    ]
    marked = [f"{name} (tuned)" if name in names["tuned"] else name for name in shown]
    columns = (*_NAME, *marked, "untuned, averaged", f"{reading_words(other)} reading")
    print_table("Loss by presentation and reading", columns, rows, names=len(_NAME))


def _show_held_out(result: Mapping[str, Any]) -> None:
    rows = []
    for group in result["groups"]:
        score, above = group["held_out"], group["held_out_minus_naive"]
        if score is None:
            continue
        rows.append(
            [
                *_name(group),
                _score(group["naive"]["held_out"]),
                _score(score["mean"]),
                _bounds(score, 3),
                _score(above["mean"], signed=True),
                _bounds(above, 3),
            ]
        )
    if not rows:
        print("no held-out scores: the held-out survey has none of the countries")
        return
    columns = (
        *_NAME,
        "naive",
        "held-out score",
        "95 %, seeds and items",
        "above naive",
        "95 %, seeds and items",
    )
    print_table("Held-out score (1: the country's own answers)", columns, rows, names=len(_NAME))


def _gate_line(group: Mapping[str, Any]) -> str:
    """Return whether the held-out survey measures anything on a group's model."""
    note = gate_note(group["validity"], "Its held-out scores and their differences say nothing.")
    return f"{group['model']}: {note.lead} {note.text}"


def _name(group: Mapping[str, Any]) -> list[Any]:
    return [group["model"], group["strategy"], group["algorithm"], group["prompt_length"]]


def _words(result: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Return what a model's rows stand beside; all its strategies and prompt lengths share it."""
    settings = {"settings": {"anchor": result["anchor"]}}
    losses = [
        f"{TRIVIAL_NAMES.get(name, name)} {value:.1f}"
        for name, value in group["lines"]["loss"].items()
        if value is not None
    ]
    scores = [
        f"{TRIVIAL_NAMES.get(name, name)} {value:.3f}"
        for name, value in group["lines"]["held_out"].items()
        if value is not None
    ]
    parts = [
        "C is not on record"
        if group["constants"] is None
        else constants_words({**result, **group, **settings}).rstrip("."),
        *([f"losses without a model: {', '.join(losses)}"] if losses else []),
        *([f"held-out scores without one: {', '.join(scores)}"] if scores else []),
    ]
    return f"{group['model']}: " + ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _score(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def _bounds(interval: Mapping[str, float | None] | None, digits: int) -> str:
    """Return the bounds of an interval, or a dash."""
    if interval is None or interval["low"] is None:
        return "–"
    # Spaces that no line is broken at.
    return f"{interval['low']:.{digits}f}\xa0to\xa0{interval['high']:.{digits}f}"
