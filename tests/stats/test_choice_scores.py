"""Scores of tests with right answers, against loops that are written out, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.stats.choice_scores import (
    NOT_ASKED,
    choice_scores,
    paired_difference,
    picked_right,
    share_interval,
    trivial_answers,
)
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.survey import Item


def easy(answers: list[int]) -> ChoiceTest:
    items = tuple(
        Item(f"q{n}", "text", ("w", "x", "y", "z"), (1, 2, 3, 4), "nominal")
        for n in range(len(answers))
    )
    ids = tuple(item.id for item in items)
    return ChoiceTest("easy", "made up", items, tuple(answers), ("",) * len(ids), ids)


def hard(truths: list[list[int]]) -> ChoiceTest:
    """A test of true-or-false rows; 0 is true. The rows of two questions are interleaved."""
    pairs = [(q, r) for r in range(4) for q in range(len(truths))]
    items = tuple(Item(f"q{q}-{r}", "text", ("true", "false"), (1, 2), "nominal") for q, r in pairs)
    answers = tuple(truths[q][r] for q, r in pairs)
    return ChoiceTest(
        "hard", "made up", items, answers, ("",) * len(pairs), tuple(f"q{q}" for q, _ in pairs)
    )


def by_hand(test: ChoiceTest, positions_SxQ: np.ndarray) -> tuple[list[float], list[float]]:
    right, rows = [], []
    for question in dict.fromkeys(test.groups):
        of_question = [q for q, group in enumerate(test.groups) if group == question]
        all_right, share = [], []
        for voice in positions_SxQ:
            if any(voice[q] == NOT_ASKED for q in of_question):
                continue
            good = [voice[q] == test.answers[q] for q in of_question]
            all_right.append(1.0 if all(good) else 0.0)
            share.append(sum(good) / len(good))
        right.append(sum(all_right) / len(all_right) if all_right else math.nan)
        rows.append(sum(share) / len(share) if share else math.nan)
    return right, rows


@given(st.data())
def test_scores_equal_those_of_written_out_loops(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        test = easy(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))
    else:
        row = st.lists(st.integers(0, 1), min_size=4, max_size=4)
        test = hard(data.draw(st.lists(row, min_size=1, max_size=4)))
    most = len(test.items[0].options)
    choice = st.sampled_from([*range(most), -1, NOT_ASKED])
    voice = st.lists(choice, min_size=len(test.items), max_size=len(test.items))
    positions = np.array(data.draw(st.lists(voice, min_size=1, max_size=3)))
    scores = choice_scores(test, positions)
    right, rows = by_hand(test, positions)
    np.testing.assert_allclose(scores.right_G, right)
    np.testing.assert_allclose(scores.items_G, rows)
    given_answers = [p for p in positions.ravel().tolist() if p != NOT_ASKED]
    most_often = max((given_answers.count(p) for p in given_answers if p >= 0), default=0)
    assert scores.most_common_share == pytest.approx(most_often / max(1, len(given_answers)))


ONE_TRUE = [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]]


def test_a_constant_false_gets_three_rows_in_four_and_no_question() -> None:
    test = hard(ONE_TRUE)
    scores = choice_scores(test, np.full((1, 12), 1))
    assert scores.items_G.tolist() == [0.75] * 3
    assert scores.right_G.tolist() == [0.0] * 3
    lines = trivial_answers(test)
    assert lines.constant == (0.0, 0.0)
    assert lines.constant_items == (0.25, 0.75)
    assert lines.chance == pytest.approx(1 / 16)
    assert lines.chance_items == 0.5
    assert lines.one_true == 0.25
    assert choice_scores(test, np.array([test.answers])).right_G.tolist() == [1.0] * 3


def test_lines_of_an_easy_test() -> None:
    lines = trivial_answers(easy([0, 0, 2, 0]))
    assert lines.chance == lines.chance_items == 0.25
    assert lines.constant == (0.75, 0.0, 0.25, 0.0)
    assert lines.one_true is None


def test_a_row_is_picked_by_its_probability() -> None:
    test = hard([ONE_TRUE[0], ONE_TRUE[1], [0, 0, 1, 1]])
    probs = np.zeros((2, 12))
    at = {item.id: n for n, item in enumerate(test.items)}
    probs[0, at["q0-1"]] = 0.4  # the true row, although called false
    probs[0, at["q1-0"]] = probs[0, at["q1-3"]] = 0.9  # a tie of the true row with another
    probs[1, at["q0-0"]] = 0.9
    probs[1, [at[f"q1-{r}"] for r in range(4)]] = np.nan  # not asked
    np.testing.assert_allclose(picked_right(test, probs), [0.5, 0.5, np.nan])


def test_wilsons_interval_against_published_numbers() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval, count = share_interval(np.repeat([1.0, 0.0, np.nan], [right, n - right, 3]))
        assert count == n
        assert interval.mean == pytest.approx(right / n)
        assert interval.bounds == pytest.approx((low, high), abs=5e-5)
    assert share_interval(np.array([np.nan])) is None


def test_differences_are_paired_and_resampled_as_questions_are() -> None:
    random = np.random.default_rng(1)
    a = random.integers(0, 2, 40).astype(float)
    b = random.integers(0, 5, 40) / 4
    a[3] = b[5] = np.nan
    interval, n = paired_difference(a, b, resamples=20_000, seed=0)
    difference = (a - b)[~np.isnan(a - b)]
    assert n == len(difference) == 38
    assert interval.mean == pytest.approx(difference.mean())
    picks = np.random.default_rng(2).integers(0, n, (20_000, n))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    assert interval.bounds == pytest.approx((low, high), abs=0.01)
    assert paired_difference(a, a, 100, 0)[0] == (0.0, 0.0, 0.0)
    assert paired_difference(a, np.full(40, np.nan), 100, 0) is None
