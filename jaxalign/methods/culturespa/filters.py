"""The filters that generated questions go through. Each is a pure function that counts its effect.

    duplicates       removed   the text of a seed or of an earlier question
    undefined_scales removed   options are bare numbers that the question does not explain
    option_numbers   changed   "1. Always", "2. Never" -> "Always", "Never"
    end_labels       changed   "1 - Never", "2", "3 - Always" -> the labels go into the question
    half_labelled    removed   bare numbers mixed with labelled numbers in any other way
    repeated_options removed   the same option twice once its number is gone (not published; ours)

All filters keep the order, are idempotent, and take questions of one or many topics. On the 13,000
questions that CultureSPA released (Xu et al. 2025, NAACL) the published ones leave 12,891, 12,860
and 12,847, which are the counts of its released notebook.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from jaxalign.methods.culturespa.questions import BARE_NUMBER, Question

Filtered = tuple[list[Question], int]  # the questions kept, and how many were removed or changed

# A number that heads its label. Not matched: the ranges "1-2 times" and "2 - 4 weeks", and "1.5".
_NUMBERED = re.compile(
    r"([0-9]{1,3})\s*(?:(?:[.):](?![0-9])|[-–—](?!\s*[0-9]))\s*(.*\S)|\(([^()]*[^()\s][^()]*)\))"
)
# Phrases by which the published filter recognises that a question explains its numbers. It knows
# scales that start at 1 only, and so loses one released question that says "with 0 being".
_EXPLAINED = ("on a scale", "with 1 being", "where 1 means", "which 1 means")
_NO_ANSWER = re.compile(r"refuse|don.?t know|not sure|no answer|no opinion|not applicable")


@dataclasses.dataclass(frozen=True)
class FilterCount:
    """What one filter did: questions removed, questions changed, questions left after it."""

    removed: int
    changed: int
    left: int


@dataclasses.dataclass(frozen=True)
class FilteredQuestions:
    """What the filters left of a set of questions.

    Attributes:
        questions: The questions kept, in their original order.
        counts: What each filter did, by name, in the order applied.
    """

    questions: tuple[Question, ...]
    counts: Mapping[str, FilterCount]


def filter_questions(
    questions: Sequence[Question], seeds: Iterable[Question] = ()
) -> FilteredQuestions:
    """Apply all filters to generated questions, in the published order.

    Args:
        questions: Questions as `write_questions` or `read_questions` returns them.
        seeds: Questions that the model was shown as examples; copies of them are duplicates.

    Returns:
        The questions left, and what each filter removed and changed.

    Example:
        >>> from jaxalign.methods.culturespa import Question, filter_questions
        >>> question = Question("How often do you vote?", ("1. Always", "2. Never"))
        >>> filtered = filter_questions([question, question])
        >>> filtered.questions
        (Question(question='How often do you vote?', options=('Always', 'Never'), topic='', id=''),)
        >>> filtered.counts["duplicates"]
        FilterCount(removed=1, changed=0, left=1)
    """
    filters: dict[str, Callable[[Sequence[Question]], Filtered]] = {
        "duplicates": lambda kept: drop_duplicates(kept, seeds),
        "undefined_scales": drop_undefined_scales,
        "option_numbers": strip_option_numbers,
        "end_labels": move_end_labels,
        "half_labelled": drop_half_labelled,
        "repeated_options": drop_repeated_options,
    }
    kept, counts = list(questions), {}
    for name, apply in filters.items():
        before = len(kept)
        kept, affected = apply(kept)
        removed = before - len(kept)
        counts[name] = FilterCount(removed, changed=affected - removed, left=len(kept))
    return FilteredQuestions(tuple(kept), counts)


def drop_duplicates(questions: Sequence[Question], seeds: Iterable[Question] = ()) -> Filtered:
    """Drop questions whose text is exactly that of a seed or of an earlier question.

    As published, a difference in case or punctuation makes another text (2 of the released 13,000
    differ so).
    """
    seen = {seed.question.strip() for seed in seeds}
    kept = []
    for question in questions:
        if (text := question.question.strip()) not in seen:
            seen.add(text)
            kept.append(question)
    return kept, len(questions) - len(kept)


def drop_undefined_scales(questions: Sequence[Question]) -> Filtered:
    """Drop questions whose options are all bare numbers that the question does not explain."""

    def undefined(question: Question) -> bool:
        text = question.question.lower()
        bare = all(map(BARE_NUMBER.fullmatch, question.options))
        return bare and not any(phrase in text for phrase in _EXPLAINED)

    return _drop(questions, undefined)


def strip_option_numbers(questions: Sequence[Question]) -> Filtered:
    """Remove the numbers of options that are all numbered, each with a different number."""

    def strip(question: Question) -> Question:
        while (heads := _heads(question.options)) and _distinct(heads):
            labels = tuple(label for _, label in heads)
            if all(map(BARE_NUMBER.fullmatch, labels)):
                break  # "1. 10", "2. 20" would become a scale that nobody defined
            question = dataclasses.replace(question, options=labels)
        return question

    return _change(questions, strip)


def move_end_labels(questions: Sequence[Question]) -> Filtered:
    """Move the labels of a scale into the question if only its two ends are labelled."""
    return _change(questions, _move_end_labels)


def _move_end_labels(question: Question) -> Question:
    first, *middle, last = question.options
    ends = _heads((first, last))
    if not ends or not middle or not all(map(BARE_NUMBER.fullmatch, middle)):
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


def drop_half_labelled(questions: Sequence[Question]) -> Filtered:
    """Drop questions whose options all start with a number and some are nothing but that number.

    Comes after `move_end_labels`, which mends the scales that can be mended.
    """

    def half_labelled(question: Question) -> bool:
        bare = sum(map(bool, map(BARE_NUMBER.fullmatch, question.options)))
        all_start_with_number = all(map(BARE_NUMBER.match, question.options))
        return all_start_with_number and 0 < bare < len(question.options)

    return _drop(questions, half_labelled)


def drop_repeated_options(questions: Sequence[Question]) -> Filtered:
    """Drop questions that offer the same option twice.

    Not a published filter: which of the two an answer means cannot be told.
    """
    return _drop(questions, lambda q: len(set(q.options)) < len(q.options))


def _heads(options: Sequence[str]) -> list[tuple[int, str]] | None:
    """Return number and label of each option, None unless every option has both."""
    matches = [_NUMBERED.fullmatch(option.strip()) for option in options]
    if not all(matches):
        return None
    return [(int(m[1]), (m[2] or m[3]).strip()) for m in matches if m]


def _distinct(heads: Sequence[tuple[int, str]]) -> bool:
    return len({number for number, _ in heads}) == len(heads)


def _drop(questions: Sequence[Question], is_bad: Callable[[Question], bool]) -> Filtered:
    kept = [question for question in questions if not is_bad(question)]
    return kept, len(questions) - len(kept)


def _change(questions: Sequence[Question], change: Callable[[Question], Question]) -> Filtered:
    changed = [change(question) for question in questions]
    return changed, sum(a != b for a, b in zip(questions, changed, strict=True))
