"""The filters of generated questions: by example, by property, and on the released file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.commands import filter_questions
from jaxalign.methods.culturespa import filters
from jaxalign.methods.culturespa.filters import Filtered
from jaxalign.methods.culturespa.questions import (
    Question,
    read_questions,
)

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
FUZZ = settings(
    deadline=None,
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EACH: tuple[Callable[[list[Question]], Filtered], ...] = (
    filters.drop_duplicates,
    filters.drop_undefined_scales,
    filters.strip_option_numbers,
    filters.move_end_labels,
    filters.drop_half_labelled,
    filters.drop_repeated_options,
)


def texts(*options: str, question: str = "How much?") -> Question:
    return Question(question, options)


def test_duplicates_are_exact_texts_and_the_first_stays() -> None:
    first, second, other = (Question("A?", (x, "z")) for x in "abc")
    other = Question("a?", other.options)  # another case: another text
    seed = Question("Seed?", ("x", "y"))
    assert filters.drop_duplicates([first, second, other, seed], [seed]) == ([first, other], 2)


@pytest.mark.parametrize(
    ("question", "options", "kept"),
    [
        ("How much?", "123", False),
        ("On a scale of 1 to 3, how much?", "123", True),
        ("How much, where 1 means little?", "123", True),
        ("How much, with 1 being little?", "123", True),
        ("Using this card on which 1 means little, how much?", "123", True),
        ("How much?", "12x", True),
    ],
)
def test_bare_numbers_need_a_scale(question: str, options: str, kept: bool) -> None:
    found = filters.drop_undefined_scales([texts(*options, question=question)])
    assert (len(found[0]), found[1]) == ((1, 0) if kept else (0, 1))


@pytest.mark.parametrize(
    ("options", "stripped"),
    [
        (("1. a", "2. b"), ("a", "b")),
        (("1) a", "2) b", "9) c"), ("a", "b", "c")),
        (("1 - a", "10 - c", "9 - b"), ("a", "c", "b")),
        (("1 (rarely)", "2 (often)"), ("rarely", "often")),
        (("1: a (b)", "2: c"), ("a (b)", "c")),
        (("1. 18-24 years", "2. 25-34 years"), ("18-24 years", "25-34 years")),
        (("1. 1. a", "2. 2. b"), ("a", "b")),
        (("1. a", "b"), None),
        (("1. a", "1. b"), None),
        (("1-2 times", "3-4 times"), None),
        (("1 - 2 times", "3 - 4 times"), None),
        (("1.5 hours", "2.5 hours"), None),
        (("1-3: slow", "4-6: fast"), None),
        (("1 child", "2 children"), None),
        (("1. 10", "2. 20"), None),
        (("1.", "2."), None),
    ],
)
def test_numbers_of_options(options: tuple[str, ...], stripped: tuple[str, ...] | None) -> None:
    (found,), changed = filters.strip_option_numbers([texts(*options)])
    assert found.options == (stripped or options)
    assert changed == (stripped is not None)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (("1 - never", "2", "3", "4 - always"), '1 means "never"', '4 means "always"'),
        (("0 (no)", "1", "2 (yes)"), '0 means "no"', '2 means "yes"'),
        (("5. much", "4", "3. little"), '5 means "much"', '3 means "little"'),
    ],
)
def test_end_labels_go_into_the_question(options: tuple[str, ...], low: str, high: str) -> None:
    (found,), changed = filters.move_end_labels([texts(*options)])
    assert changed == 1
    assert found.question == f"How much? On a scale where {low} and {high}."
    assert found.options == tuple(o[0] for o in options)
    for keep in (filters.drop_undefined_scales, filters.drop_half_labelled):
        assert keep([found]) == ([found], 0)


@pytest.mark.parametrize(
    "options",
    [
        ("1 - never", "2", "3", "9 - always"),
        ("1 - never", "2", "3 - refused"),
        ("1 - never", "2", "3 - often", "4 - always"),
        ("1 - never", "2", "3"),
        ("0", "1-2", "3-4", "5-6"),
    ],
)
def test_other_half_labelled_scales_are_dropped(options: tuple[str, ...]) -> None:
    question = texts(*options)
    assert filters.move_end_labels([question]) == ([question], 0)
    assert filters.drop_half_labelled([question]) == ([], 1)


def test_options_that_only_begin_with_numbers_stay() -> None:
    some = [texts("1-2 times", "3 times or more"), texts("1", "2"), texts("None", "1", "2 - many")]
    assert filters.drop_half_labelled(some) == (some, 0)


# Filters, all together

_NUMBER = st.integers(0, 11).map(str)
_LABEL = st.sampled_from(["never", "1. often", "always (daily)", "refused", "2", "3-4 times", "ü"])
_OPTION = st.one_of(
    _LABEL,
    _NUMBER,
    st.tuples(_NUMBER, st.sampled_from([". ", ") ", " - ", "-", ": ", " (", " "]), _LABEL).map(
        lambda t: "".join(t) + ")" * (t[1] == " (")
    ),
)
_SCALE = st.integers(2, 10).map(
    lambda n: [f"{i} - end" if i in (1, n) else str(i) for i in range(1, n + 1)]
)
_OPTIONS = st.one_of(st.lists(_OPTION, min_size=2, max_size=6), _SCALE)
_QUESTION = st.sampled_from(["A?", "B?", "On a scale of 1 to 3, C?", "a?", "With 1 being low, D?"])
WRITTEN = st.lists(
    st.builds(lambda q, o: Question(q, tuple(o)), _QUESTION, _OPTIONS), max_size=8
).map(lambda some: [Question(q.question, q.options, id=str(i)) for i, q in enumerate(some)])


@FUZZ
@given(WRITTEN, st.integers(0, len(EACH) - 1))
def test_a_filter_keeps_the_order_counts_right_and_is_idempotent(
    written: list[Question], which: int
) -> None:
    kept, count = EACH[which](written)
    places = [int(q.id) for q in kept]
    assert places == sorted(set(places))
    changed = sum(q != written[int(q.id)] for q in kept)
    assert count == changed + len(written) - len(kept)
    assert EACH[which](kept) == (kept, 0)


@FUZZ
@given(WRITTEN, WRITTEN)
def test_all_filters_are_idempotent_and_add_up(written: list[Question], seeds: list[Question]):
    filtered = filters.filter_questions(written, seeds)
    left = len(written)
    for count in filtered.counts.values():
        left -= count.removed
        assert count.left == left
    assert left == len(filtered.questions)
    again = filters.filter_questions(filtered.questions, seeds)
    assert again.questions == filtered.questions
    assert all(count.removed == count.changed == 0 for count in again.counts.values())


if DATA:

    def test_the_released_topic() -> None:
        """Counts of the published notebook's rules on this file, worked out by hand as well."""
        path = Path(str(DATA)) / "generated_questions_topic_3_from_all_seed.json"
        written, refused = read_questions(path)
        assert (len(written), refused) == (1000, {})
        seeds = filter_questions.read_seeds(Path(str(DATA)))
        filtered = filters.filter_questions(written, seeds)
        found = {name: (c.removed, c.changed, c.left) for name, c in filtered.counts.items()}
        assert found == {
            "duplicates": (2, 0, 998),
            "undefined_scales": (14, 0, 984),
            "option_numbers": (0, 934, 984),
            "end_labels": (0, 0, 984),
            "half_labelled": (0, 0, 984),
            "repeated_options": (4, 0, 980),
        }
        number = re.compile(r"[0-9]+[.)] ")
        numbered = [q for q in filtered.questions if any(map(number.match, q.options))]
        assert len(numbered) == 1  # "Don't know" and "Refused" follow its options unnumbered
