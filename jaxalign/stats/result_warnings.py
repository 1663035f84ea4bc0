"""What a reader of a result must know before any of its numbers: `warnings` in `result.json`.

A score can be a number of nothing: of the few replies that name an option, of one option given to
everything, of people that a program made up, of too few items for the test that follows. Each
function here looks for one such thing and returns a warning, or None. They see answers and counts,
not models or files, and whatever shows a result shows the same list, in the terminal and as the
first lines of the report.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxalign.report.wording import joined, number
from jaxalign.stats.presentations import THROUGHOUT, ConstantAnswers

Kind = Literal[
    "limited",
    "missing",
    "simulated",
    "toy_guard",
    "no_option",
    "one_option",
    "identical",
    "few",
    "unread",
]

POCKET = (
    "The model is the pocket Llama, a small model trained on a made-up society. No number here is "
    "a finding about people or about Llama-3."
)
SIMULATED = (
    "Nobody was asked. A program made up the countries' answers to this survey, so no number here "
    "is a finding about people."
)
SIMULATED_HELD_OUT = (
    "No real held-out survey was given. The one that was asked is simulated: its countries answer "
    "as a made-up society does, and the held-out scores say nothing about people."
)
TOY_GUARD = (
    "General abilities were measured by toy tasks that were made for the pocket model; they say "
    "little about this one. Give a guard of MMLU-style questions, or guard tasks of "
    "lm-evaluation-harness."
)
FEW_VALID = 0.5  # probability of an option below which scores rest on the smaller part of replies
FEW_ITEMS = 20  # below it, percentile intervals over items are clearly too narrow
FEW_PAIRS = 30  # of question and group, below which an adapter is hardly trained
LEAST_READ = 0.5  # share of a step's replies that could be read
_LEVEL = 0.05  # of the permutation test
_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class ResultWarning:
    """One warning.

    Attributes:
        kind: What it is about.
        text: One to three sentences.
    """

    kind: Kind
    text: str

    def record(self) -> dict[str, str]:
        """Return the fields as `result.json` holds them."""
        return dataclasses.asdict(self)


def warning_records(found: Iterable[ResultWarning | None]) -> list[dict[str, Any]]:
    """Return what `result.json` holds under `warnings`; None stands for nothing to warn of."""
    return [warning.record() for warning in found if warning is not None]


def quick_look(limit: int | None, what: str) -> ResultWarning | None:
    """Warn of a run that was cut short on purpose.

    Args:
        limit: The setting `limit`; None for a whole run.
        what: What was cut, and to how much of it.
    """
    if limit is None:
        return None
    return ResultWarning(
        "limited", f"This run was cut short by limit {limit}: {what}. It measures nothing."
    )


def no_option(valid_mass: Mapping[str, float | None]) -> ResultWarning | None:
    """Warn where most replies do not name an option.

    Args:
        valid_mass: By who answers, the probability that a reply begins with an option, or the share
            of sampled replies that name one; None or NaN where that is not known.
    """
    known = {name: m for name, m in valid_mass.items() if m is not None and not math.isnan(m)}
    low = sorted((mass, name) for name, mass in known.items() if mass < FEW_VALID)
    if not low:
        return None
    shown = [f"{number(100 * (1 - mass), 0)} % ({name})" for mass, name in low[:_MOST_NAMED]]
    more = f"; so it is in {len(low) - len(shown)} more" if len(low) > len(shown) else ""
    return ResultWarning(
        "no_option",
        f"In {joined(shown)} of the probability the model does not answer with an option{more}. "
        "Scores are made of what is left.",
    )


def one_option(
    answers: Mapping[str, Mapping[str, ConstantAnswers | Mapping[str, Any] | None]],
) -> ResultWarning | None:
    """Warn where one option is given to nearly every item.

    Args:
        answers: By who answers and by presentation, the mark answered most often: the value or the
            record of `jaxalign.stats.presentations.constant_answers`.
    """
    said: dict[str, list[str]] = {}
    for name, by_presentation in answers.items():
        for presentation, found in by_presentation.items():
            if found is None:
                continue
            record = found.record() if isinstance(found, ConstantAnswers) else found
            count = round(record["share"] * record["answers"])
            if record["share"] >= THROUGHOUT and record["answers"] > 1:
                shown = f", presentation {presentation}" if len(by_presentation) > 1 else ""
                words = f"option {record['mark']} to {count:,} of {record['answers']:,} items"
                said.setdefault(words, []).append(f"{name}{shown}")
    if not said:
        return None
    parts = [f"{words} ({_listed(names)})" for words, names in list(said.items())[:_MOST_NAMED]]
    more = f"; and {len(said) - len(parts)} more like it" if len(said) > len(parts) else ""
    return ResultWarning(
        "one_option",
        f"The model gives {'; '.join(parts)}{more}. Such a score is that of a constant answer, "
        "whatever it happens to be near.",
    )


def identical(answers: Mapping[str, np.ndarray]) -> ResultWarning | None:
    """Warn where several ways of asking give the very same answers.

    Args:
        answers: By who answers, what is scored: arrays that can be broadcast against each other,
            NaN for no answer.
    """
    groups: list[list[str]] = []
    for name, values in answers.items():
        for group in groups:
            if _are_equal(answers[group[0]], values):
                group.append(name)
                break
        else:
            groups.append([name])
    same = [group for group in groups if len(group) > 1]
    if not same:
        return None
    return ResultWarning(
        "identical",
        f"Identical answers to every item: {'; '.join(joined(group) for group in same)}. Their "
        "scores are one score.",
    )


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError:  # asked of other groups or items
        return False
    return not np.isnan(a).all() and np.array_equal(a, b, equal_nan=True)


def few_items(items: int, what: str = "survey") -> ResultWarning | None:
    """Warn of a survey too short for intervals over its items.

    Args:
        items: The number of items that are scored.
        what: What they are items of.
    """
    if items >= FEW_ITEMS:
        return None
    return ResultWarning(
        "few",
        f"The {what} has {items} {'item' if items == 1 else 'items'}. Intervals over fewer than "
        f"{FEW_ITEMS} are too narrow, and differences that look certain need not be.",
    )


def few_countries(count: int) -> ResultWarning | None:
    """Warn of too few countries for the permutation test of prompts and countries."""
    if count < 2:
        return ResultWarning(
            "few",
            "There is one country, so that nothing shows whether a prompt says more about its own "
            "country than about others: there is no permutation test.",
        )
    smallest = 1 / math.factorial(count)
    if smallest <= _LEVEL:
        return None
    return ResultWarning(
        "few",
        f"With {count} countries, the smallest p-value that the permutation test can reach is "
        f"{number(smallest, 3)}, whatever the prompts have learned. Four countries are needed to "
        "get below 0.05.",
    )


def few_pairs(pairs: Mapping[str, int]) -> ResultWarning | None:
    """Warn of models that were fine-tuned on hardly anything.

    Args:
        pairs: By model, the number of selected pairs of question and group.
    """
    low = sorted((count, name) for name, count in pairs.items() if count < FEW_PAIRS)
    if not low:
        return None
    words = _listed([f"{name} ({count})" for count, name in low])
    return ResultWarning(
        "few",
        f"Fine-tuned on fewer than {FEW_PAIRS} pairs of question and country: {words}. Such a "
        "model says what the unchanged one does, give or take a few steps.",
    )


def unread(step: str, read: int, replies: int, unit: str = "replies") -> ResultWarning | None:
    """Warn of a step most of whose replies could not be read.

    Args:
        step: What was asked, such as "writing questions".
        read: The number of replies that could be read.
        replies: The number of all replies.
        unit: What is counted.
    """
    if not replies or read >= LEAST_READ * replies:
        return None
    return ResultWarning(
        "unread",
        f"Of {replies:,} {unit} in {step}, {replies - read:,} could not be read "
        f"({number(100 * (1 - read / replies), 0)} %).",
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return joined(names)
    return joined([*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED} more"])
