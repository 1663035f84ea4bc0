"""Packing puts every example once into rows that are never too long; units keep their order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.training.packing import (
    Example,
    Examples,
    check_lengths,
    fill,
    pack,
    place_units,
    units_of,
)


@st.composite
def examples(draw, longest=40):
    """Up to 30 examples with different tokens."""
    lengths = draw(st.lists(st.integers(2, longest), max_size=30))
    made = []
    for i, n in enumerate(lengths):
        tokens = tuple(1000 * (i + 1) + t for t in range(n))
        made.append(Example(tokens, draw(st.integers(1, n - 1))))
    return made


LENGTHS = st.lists(st.integers(1, 40), max_size=30).map(np.array)


@given(LENGTHS, st.integers(40, 100))
@settings(deadline=None)
def test_every_example_once_and_no_row_too_long(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= row_length for row in rows)


@given(LENGTHS, st.integers(40, 100), st.integers(1, 4))
@settings(deadline=None)
def test_no_row_has_more_examples_than_allowed(lengths, row_length, most):
    """Only full rows and rows with as many as allowed are followed by others that would fit."""
    rows = pack(lengths, row_length, most)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= row_length and len(row) <= most for row in rows)
    used = [lengths[row].sum() for row in rows if len(row) < most]
    assert all(a + b > row_length for a, b in itertools.pairwise(used))


@given(LENGTHS, st.integers(40, 100))
@settings(deadline=None)
def test_best_fit_decreasing_is_within_its_bound(lengths, row_length):
    """No two rows fit into one, so more than half of the computed tokens are used."""
    used = [lengths[row].sum() for row in pack(lengths, row_length)]
    assert all(
        a + b > row_length for i, a in enumerate(used) for b in used[i + 1 :]
    )  # as for first fit


@given(LENGTHS, st.integers(40, 100), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rows_are_used_alike_in_any_order(lengths, row_length, random):
    shuffled = lengths.tolist()
    random.shuffle(shuffled)
    shuffled = np.array(shuffled)
    rows, others = pack(lengths, row_length), pack(shuffled, row_length)
    assert [lengths[row].tolist() for row in rows] == [shuffled[row].tolist() for row in others]


@given(st.lists(LENGTHS, min_size=1, max_size=5), st.integers(40, 60), st.integers(60, 200))
@settings(deadline=None)
def test_units_are_placed_once_and_in_their_adapters_order(lengths_K, unit_length, row_length):
    units = [units_of(lengths, unit_length) for lengths in lengths_K]
    sizes = [
        [int(x[unit].sum()) for unit in of_x] for x, of_x in zip(lengths_K, units, strict=True)
    ]
    rows = place_units(sizes, row_length, 4)
    assert all(0 < len(row) <= 4 for row in rows)
    assert all(sum(sizes[k][n] for k, n in row) <= row_length for row in rows)
    for k, of_adapter in enumerate(sizes):
        assert of_adapter == sorted(of_adapter)
        placed = [n for row in rows for adapter, n in row if adapter == k]
        assert placed == list(range(len(of_adapter)))


@given(examples(), st.integers(40, 64))
@settings(deadline=None)
def test_arrays_say_what_the_examples_do(some, row_length):
    """Read segments, positions, targets and weights back into examples."""
    many = Examples.of(some)
    rows = [[(many, np.array(row))] for row in pack(many.lengths, row_length)]
    answers = max((int(many.answers[chosen].sum()) for row in rows for _, chosen in row), default=0)
    batch = fill(rows, len(rows) + 1, row_length, answers)
    found = []
    for b in range(len(rows) + 1):
        scored = [
            (at, target)
            for at, target, w in zip(
                batch.at_BxA[b], batch.targets_BxA[b], batch.weight_BxA[b], strict=True
            )
            if w
        ]
        for segment in range(1, batch.segments_BxT[b].max() + 1):
            places = np.flatnonzero(batch.segments_BxT[b] == segment)
            assert (np.diff(places) == 1).all()
            np.testing.assert_array_equal(batch.positions_BxT[b][places], np.arange(len(places)))
            mine = [(at, target) for at, target in scored if at in places]
            tokens = tuple(batch.tokens_BxT[b][places].tolist())
            assert all(batch.tokens_BxT[b][at + 1] == target for at, target in mine)
            assert [at for at, _ in mine] == list(range(places[-1] - len(mine), places[-1]))
            found.append(Example(tokens, len(tokens) - len(mine)))
    assert sorted(found, key=lambda e: e.tokens) == sorted(some, key=lambda e: e.tokens)
    assert batch.weight_BxA.sum() == sum(len(e.answer) for e in some)


@given(examples(), st.data())
@settings(deadline=None)
def test_examples_as_arrays_are_those_of_the_list(some, data):
    many = Examples.of(some)
    assert [many.example(n) for n in range(len(many))] == some
    assert many.lengths.tolist() == [len(e.tokens) for e in some]
    assert many.answers.tolist() == [len(e.answer) for e in some]
    chosen = data.draw(st.lists(st.integers(0, len(some) - 1))) if some else []
    chosen = np.array(chosen, int)
    assert many.tokens(chosen).tolist() == [t for n in chosen for t in some[n].tokens]
    assert many.take(chosen).tokens(np.arange(len(chosen))).tolist() == many.tokens(chosen).tolist()


def test_examples_cut_from_one_pool():
    """Two examples that share the piece 10, 11."""
    pool = np.array([10, 11, 20, 30, 31, 1, 2], np.int32)
    starts, sizes = np.array([[0, 2, 5], [0, 3, 6]]), np.array([[2, 1, 1], [2, 2, 1]])
    many = Examples(pool, starts, sizes, sizes[:, :2].sum(axis=1))
    assert many.example(0) == Example((10, 11, 20, 1), 3)
    assert many.example(1) == Example((10, 11, 30, 31, 2), 4)


def test_a_tight_fit_is_found():
    lengths = np.array([60, 50, 50, 40, 30, 10])
    assert [lengths[row].tolist() for row in pack(lengths, 100)] == [[60, 40], [50, 50], [30, 10]]


def test_bad_examples_are_refused_in_words():
    with pytest.raises(UserError, match="prompt and answer need at least one token"):
        Example((1, 2, 3), 3)
    with pytest.raises(UserError, match="at least one token"):
        Example((1, 2, 3), 0)
    one = np.array([[3]])
    with pytest.raises(UserError, match="an example of 3 tokens with prompt_length=3"):
        Examples(np.zeros(3, np.int32), 0 * one, one, np.array([3]))
    with pytest.raises(UserError, match=r"2 of 3 examples are longer than a row of 8 .* has 12"):
        check_lengths(np.array([5, 9, 12]), 8)
    some = Examples.of([Example((1, 2, 3), 1)])
    row = [(some, np.array([0]))]
    with pytest.raises(ValueError, match="3 rows in a batch of 2"):
        fill([row] * 3, 2, 16, 16)
    with pytest.raises(ValueError, match="3 tokens and 2 answers in rows of 2 and 4"):
        fill([row], 1, 2, 4)
    with pytest.raises(ValueError, match="a unit of 9 tokens in rows of 8"):
        place_units([[9]], 8, 2)
