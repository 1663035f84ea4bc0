"""The result of a sweep as tables in the terminal: losses, held-out scores, and what they beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.soft_prompt_record import constants_words
from jaxalign.methods.soft_prompt.result import reading_words
from jaxalign.runs.console import print_table
from jaxalign.stats.lines import LINE_NAMES

_TRIVIAL = {
    "all_middle": "3 throughout",
    "uniform_random": "random answers",
    "smallest_integer": "least with whole answers",
    "mean_of_others": "mean of other countries",
    "another_country": "another country's scores",
}


def show_result(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    _show_losses(result)
    _show_held_out(result)
    for line in dict.fromkeys(_words(result, group) for group in result["groups"]):
        print(line)


def _show_losses(result: Mapping[str, Any]) -> None:
    reading = result["reading"]
    other = "most_likely" if reading == "expected" else "expected"
    tuned, untuned = (" ".join(result["presentations"][kind]) for kind in ("tuned", "untuned"))
    rows = []
    for group in result["groups"]:
        spread = group[reading]
        rows.append(
            [
                group["model"],
                group["strategy"],
                group["prompt_length"],
                group["cells"],
                group["naive"].get(reading),
                spread["mean"],
                _bounds(spread["interval"], 1),
                spread["low"],
                spread["high"],
                (group["untuned"] or {}).get(reading),
                group[other]["mean"],
                spread["failed"],
            ]
        )
    columns = (
        "model",
        "strategy",
        "tokens",
        "cells",
        "naive",
        "mean loss",
        "95 %, seeds",
        "easiest",
        "hardest",
        "untuned",
        reading_words(other),
        "failed",
    )
    forms = f"presentations tuned on: {tuned or 'A'}"
    if untuned:
        forms += f"; untuned: the average of {untuned}"
    title = f"Loss ({reading_words(reading)} reading; {forms}); easiest and hardest country"
    print_table(title, columns, rows)


def _show_held_out(result: Mapping[str, Any]) -> None:
    rows = []
    for group in result["groups"]:
        score, above = group["held_out"], group["held_out_minus_naive"]
        if score is None:
            continue
        rows.append(
            [
                group["model"],
                group["strategy"],
                group["prompt_length"],
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
        "model",
        "strategy",
        "tokens",
        "naive",
        "held-out score",
        "95 %, seeds and items",
        "above naive",
        "95 %, seeds and items",
    )
    print_table("Held-out score (1: the country's own answers)", columns, rows)


def _words(result: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Return what a model's rows stand beside; all its strategies and prompt lengths share it."""
    settings = {"settings": {"anchor": result["anchor"]}}
    losses = [
        f"{_TRIVIAL.get(name, name)} {value:.1f}"
        for name, value in group["lines"]["loss"].items()
        if value is not None
    ]
    scores = [
        f"{LINE_NAMES.get(name, name)} {value:.3f}"
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
