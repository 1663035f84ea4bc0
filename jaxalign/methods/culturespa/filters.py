"""The filters that generated questions go through, each a pure function with a count.

    duplicates       removed   the text of a seed or of an earlier question
    undefined_scales removed   options are bare numbers and the question does not say what they mean
    option_numbers   changed   "1. Always", "2. Never" -> "Always", "Never"
    end_labels       changed   "1 - Never", "2", "3 - Always" -> the labels go into the question
    half_labelled    removed   bare numbers next to numbers with a label, in any other way
    repeated_options removed   the same option twice once its number is gone (ours, not published)

All keep the order, are idempotent and take questions of one or many topics. On the 13,000 questions
that CultureSPA released (Xu et al. 2025, NAACL) the published ones leave 12,891, 12,860 and 12,847,
the counts of its released notebook.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from jaxalign.methods.culturespa.parsing import Written

Filtered = tuple[list[Written], int]  # what is kept, and how many were removed or changed

_BARE = re.compile(r"[0-9]{1,3}")
# A number as a heading of its label. Not one: the ranges "1-2 times" and "2 - 4 weeks", "1.5".
_LABELLED = re.compile(
    r"([0-9]{1,3})\s*(?:(?:[.):](?![0-9])|[-–—](?!\s*[0-9]))\s*(.*\S)|\(([^()]*[^()\s][^()]*)\))"
)
# Phrases by which the published filter tells that a question says what its numbers mean. It knows
# scales that begin at 1 only: one released question "with 0 being" is lost by it.
_DEFINED = ("on a scale", "with 1 being", "where 1 means", "which 1 means")
_NO_ANSWER = re.compile(r"refuse|don.?t know|not sure|no answer|no opinion|not applicable")


def drop_duplicates(written: Sequence[Written], seeds: Iterable[Written] = ()) -> Filtered:
    """Without questions whose text is exactly a seed's or an earlier question's, as published:
    another case or other punctuation is another text (2 of the released 13,000 differ so)."""
    seen = {seed.question.strip() for seed in seeds}
    kept = []
    for question in written:
        if (text := question.question.strip()) not in seen:
            seen.add(text)
            kept.append(question)
    return kept, len(written) - len(kept)


def drop_undefined_scales(written: Sequence[Written]) -> Filtered:
    """Without questions whose options are all bare numbers that the question does not define."""

    def undefined(question: Written) -> bool:
        text = question.question.lower()
        return all(map(_BARE.fullmatch, question.options)) and not any(p in text for p in _DEFINED)

    return _drop(written, undefined)


def strip_option_numbers(written: Sequence[Written]) -> Filtered:
    """Options that are all numbered, each with another number, lose their numbers."""

    def strip(question: Written) -> Written:
        while (heads := _heads(question.options)) and _distinct(heads):
            labels = tuple(label for _, label in heads)
            if all(map(_BARE.fullmatch, labels)):
                break  # "1. 10", "2. 20" would become a scale that nobody defined
            question = dataclasses.replace(question, options=labels)
        return question

    return _change(written, strip)


def move_end_labels(written: Sequence[Written]) -> Filtered:
    """Of a scale that is labelled at its two ends only, the labels go into the question."""
    return _change(written, _move_end_labels)


def _move_end_labels(question: Written) -> Written:
    first, *middle, last = question.options
    ends = _heads((first, last))
    if not ends or not middle or not all(map(_BARE.fullmatch, middle)):
        return question
    (low, low_label), (high, high_label) = ends
    numbers = [low, *map(int, middle), high]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if steps not in ({1}, {-1}) or any(_NO_ANSWER.search(label.lower()) for _, label in ends):
        return question
    scale = f'On a scale where {low} means "{low_label}" and {high} means "{high_label}".'
    return dataclasses.replace(
        question, question=f"{question.question} {scale}", options=tuple(map(str, numbers))
    )


def drop_half_labelled(written: Sequence[Written]) -> Filtered:
    """Without questions whose options all begin with a number, some being nothing else. Goes after
    `move_end_labels`."""

    def half(question: Written) -> bool:
        bare = sum(map(bool, map(_BARE.fullmatch, question.options)))
        numbers = all(map(_BARE.match, question.options))
        return numbers and 0 < bare < len(question.options)

    return _drop(written, half)


def drop_repeated_options(written: Sequence[Written]) -> Filtered:
    """Without questions that offer the same option twice. Not a published filter: an answer to
    such a question cannot be told from the other."""
    return _drop(written, lambda q: len(set(q.options)) < len(q.options))


@dataclasses.dataclass(frozen=True)
class Count:
    """What one filter did."""

    removed: int
    changed: int
    left: int


def apply_filters(
    written: Sequence[Written], seeds: Iterable[Written] = ()
) -> tuple[list[Written], dict[str, Count]]:
    """All filters in the published order. Returns what is kept, and counts by filter in order."""
    kept, counts = list(written), {}
    removing: dict[str, Callable[[Sequence[Written]], Filtered]] = {
        "duplicates": lambda some: drop_duplicates(some, seeds),
        "undefined_scales": drop_undefined_scales,
        "option_numbers": strip_option_numbers,
        "end_labels": move_end_labels,
        "half_labelled": drop_half_labelled,
        "repeated_options": drop_repeated_options,
    }
    for name, apply in removing.items():
        before = len(kept)
        kept, count = apply(kept)
        removed = before - len(kept)
        counts[name] = Count(removed, changed=count - removed, left=len(kept))
    return kept, counts


def bare_numbers(options: Sequence[str]) -> list[int] | None:
    """The options as numbers if they are nothing else."""
    return [int(option) for option in options] if all(map(_BARE.fullmatch, options)) else None


def _heads(options: Sequence[str]) -> list[tuple[int, str]] | None:
    """Number and label of each option, None unless every option has both."""
    found = [_LABELLED.fullmatch(option.strip()) for option in options]
    if not all(found):
        return None
    return [(int(m[1]), (m[2] or m[3]).strip()) for m in found if m]


def _distinct(heads: Sequence[tuple[int, str]]) -> bool:
    return len({n for n, _ in heads}) == len(heads)


def _drop(written: Sequence[Written], bad: Callable[[Written], bool]) -> Filtered:
    kept = [question for question in written if not bad(question)]
    return kept, len(written) - len(kept)


def _change(written: Sequence[Written], change: Callable[[Written], Written]) -> Filtered:
    out = [change(question) for question in written]
    return out, sum(a != b for a, b in zip(written, out, strict=True))
