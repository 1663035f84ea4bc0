"""Who wins a sweep, in words: the same sentences in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Estimate
from jaxalign.report.wording import is_identical, is_inside, number, with_bounds

Record = Mapping[str, Any]


def strategy_words(name: str, algorithm: str) -> str:
    """Return a strategy's name with its algorithm, which a name need not tell."""
    return name if name == algorithm else f"{name} ({algorithm})"


def where_words(ranking: Record) -> str:
    """Return what a ranking is of: the model and the prompt length."""
    length = ranking["prompt_length"]
    return f"{ranking['model']}, {'all lengths' if length is None else f'{length} tokens'}"


def ranking_words(ranking: Record, names: Mapping[str, str]) -> str:
    """Return who wins a ranking, and whether it is told apart from each of the others.

    Args:
        ranking: An entry of `rankings`.
        names: The strategies in words, by name.
    """
    first, *others = ranking["strategies"]
    head = f"{where_words(ranking)}, {number(ranking['evaluations'], 0)} evaluations a search: "
    if first["mean"] is None:
        return f"{head}no search has a finite loss."
    name, mean = names[first["strategy"]], number(first["mean"])
    if not others:
        return (
            f"{head}{name} has loss {mean}; no other strategy has as many evaluations, so it is "
            "compared with none."
        )
    parts = [_behind(entry, names) for entry in others]
    return f"{head}{name} has the lowest mean loss, {mean}. {' '.join(parts)}"


def told_apart(behind: Record | None) -> str:
    """Return whether a strategy is told apart from the best one, in a few words."""
    difference = Estimate.read(behind)
    if difference is None:
        return "no cell in common"
    if behind["lower"] == behind["higher"] == 0:
        return "identical"
    inside = is_inside(difference)
    if inside is None or is_identical(difference):
        return "one seed: cannot be told"
    return "not told apart" if inside else "told apart"


def _behind(entry: Record, names: Mapping[str, str]) -> str:
    behind, name = entry["behind"], names[entry["strategy"]]
    if behind is None:
        return f"{name} has no cell in common with it."
    if behind["lower"] == behind["higher"] == 0:
        return f"{name} ends at the identical loss in all {behind['pairs']} paired cells."
    difference = Estimate.read(behind)
    amount = with_bounds(difference)
    sign = "is behind by" if difference.mean >= 0 else "is, where both have a loss, ahead by"
    if difference.mean < 0:
        amount = number(-difference.mean)
    return (
        f"{name} {sign} {amount}, higher in {behind['higher']} of {behind['pairs']} paired cells: "
        f"{told_apart(behind)}."
    )
