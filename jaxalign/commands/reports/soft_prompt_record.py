"""What the reports of a soft-prompt run read from its `result.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.commands.reports.validity import allows_verdicts
from jaxalign.methods.base import SOFT_PROMPT_METHODS, soft_prompt_methods
from jaxalign.methods.soft_prompt.result import readings
from jaxalign.optim.strategy import DIFFERENTIAL_EVOLUTION
from jaxalign.report.document import Key, is_number
from jaxalign.report.palette import GREEN, INK, MUTED, ORANGE, SKY, VERMILION
from jaxalign.report.wording import joined, number
from jaxalign.stats.lines import TRIVIAL_NAMES

Result = Mapping[str, Any]

KEYS = {method.key: method.legend() for method in SOFT_PROMPT_METHODS}
_TRIVIAL = {
    "all_middle": Key(TRIVIAL_NAMES["all_middle"], MUTED, "", "|"),
    "uniform_random": Key(TRIVIAL_NAMES["uniform_random"], VERMILION, "", "|"),
    "smallest_integer": Key(TRIVIAL_NAMES["smallest_integer"], INK, "", "|"),
    "uniform": Key(TRIVIAL_NAMES["uniform"], MUTED, "", "|"),
    "midpoint": Key(TRIVIAL_NAMES["midpoint"], SKY, "", "|"),
    "mean_of_others": Key(TRIVIAL_NAMES["mean_of_others"], ORANGE, "", "|"),
    "another_country": Key(TRIVIAL_NAMES["another_country"], GREEN, "", "|"),
    "own_mean": Key(TRIVIAL_NAMES["own_mean"], INK, "", "|"),
    "random_respondent": Key(TRIVIAL_NAMES["random_respondent"], VERMILION, "", "|"),
}
# Those that figures show beside the methods. Random answers lie so far out that they would press
# everything else together.
DRAWN_LINES = ("all_middle", "smallest_integer", "uniform", "mean_of_others")
HELD_OUT_LINES = {
    "uniform": Key(TRIVIAL_NAMES["uniform"], MUTED, "", "|"),
    "mean_of_others": Key(TRIVIAL_NAMES["mean_of_others"], INK, "", "|"),
}
# Entries of `held_out` in `result.json`, and the method that each is about.
HELD_OUT = {
    "before": "naive",
    "persona": "persona",
    "icl": "icl",
    "start": "start",
    "after": "tuned",
    "gradient": "gradient",
}


def methods(result: Result) -> dict[str, Key]:
    """Return the methods that the run compared; the gradient control may have been left out."""
    entry = next(iter(result["countries"].values()))
    return {name: key for name, key in all_keys(result).items() if name in entry}


def all_keys(result: Result) -> dict[str, Key]:
    """Return all methods, named as fits the run."""
    algorithm = result["settings"].get("strategy.algorithm", DIFFERENTIAL_EVOLUTION)
    named = soft_prompt_methods(algorithm, readings(result)[0])
    return {name: method.legend() for name, method in named.items()}


def trivial_lines(result: Result) -> dict[str, Key]:
    """Return the lines that need no model, where the objective has any."""
    known = next(iter(result["trivial"].values()))
    return {name: key for name, key in _TRIVIAL.items() if name in known}


def has_scores(result: Result) -> bool:
    """Return whether the objective is about the six scores."""
    return "dimensions" in result


def loss_words(result: Result) -> str:
    """Return what a loss is called with its unit; only the six scores are in points."""
    return "loss in points" if has_scores(result) else "loss"


def loss_digits(result: Result) -> int:
    """Return the decimals of losses: three where they are small, as distances of distributions."""
    reading, _ = readings(result)
    losses = [e["naive"][reading]["loss"] for e in result["countries"].values()]
    return 1 if max(filter(is_number, losses), default=0.0) >= 10 else 3


def used_dimensions(result: Result) -> list[str]:
    """Return the dimensions that enter the loss: those with a target in some country."""
    targets = [entry["target"] for entry in result["countries"].values()]
    return [n for d, n in enumerate(result["dimensions"]) if any(is_number(t[d]) for t in targets)]


def constants_words(result: Result) -> str:
    """Return C of the dimensions used, and where it comes from, as a sentence."""
    values = zip(result["dimensions"], result["constants"], strict=True)
    known = {name: value for name, value in values if value is not None}
    anchor = result["settings"].get("anchor")
    if not anchor and len(set(known.values())) == 1:
        return f"C = {number(next(iter(known.values())), 0)} in every dimension."
    each = ", ".join(f"{name.upper()} {number(value)}" for name, value in known.items())
    fitted = f" (least squares on {joined(anchor)})" if anchor else ""
    return f"C: {each}{fitted}."


def gate_of(result: Result) -> Mapping[str, Any] | None:
    """Return the record of the validity gate; None if it was not made."""
    return result["measure"]["validity"]


def shows_signal(result: Result) -> bool:
    """Return whether verdicts may be read: the validity gate does not say that they may not."""
    return allows_verdicts(gate_of(result))


def tuned_on(result: Result) -> list[str]:
    """Return the presentations that were tuned on."""
    return list(result["presentations"]["tuned"])


def never_tuned_on(result: Result) -> list[str]:
    """Return the presentations that were only reported."""
    return list(result["presentations"]["untuned"])


def loss_under(entry: Mapping[str, Any], method: str, name: str, reading: str) -> float | None:
    """Return a method's loss under one presentation; None where it was not asked."""
    under = entry[method]["presentations"].get(name)
    return under and under[reading]["loss"]


def mean_loss(
    entry: Mapping[str, Any], method: str, names: Sequence[str], reading: str
) -> float | None:
    """Return the mean of a method's losses under several presentations."""
    losses = [loss_under(entry, method, name, reading) for name in names]
    return sum(losses) / len(losses) if losses and all(map(is_number, losses)) else None
