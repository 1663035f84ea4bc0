"""Packing puts every example once into rows that are never too long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.training.packing import Example, answer_count, fill, pack


@st.composite
def examples(draw, longest=40):
    """Up to 30 examples with different tokens."""
    lengths = draw(st.lists(st.integers(2, longest), max_size=30))
    made = []
    for i, n in enumerate(lengths):
        tokens = tuple(1000 * (i + 1) + t for t in range(n))
        made.append(Example(tokens, draw(st.integers(1, n - 1))))
    return made


@given(examples(), st.integers(40, 100))
@settings(deadline=None)
def test_every_example_once_and_no_row_too_long(some, row_length):
    rows = pack(some, row_length)
    assert sorted(e.tokens for row in rows for e in row) == sorted(e.tokens for e in some)
    assert all(0 < sum(len(e.tokens) for e in row) <= row_length for row in rows)


@given(examples(), st.integers(40, 100))
@settings(deadline=None)
def test_best_fit_decreasing_is_within_its_bound(some, row_length):
    """No two rows fit into one, so more than half of the computed tokens are used."""
    used = [sum(len(e.tokens) for e in row) for row in pack(some, row_length)]
    assert all(
        a + b > row_length for i, a in enumerate(used) for b in used[i + 1 :]
    )  # as for first fit


@given(examples(), st.integers(40, 100), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rows_are_used_alike_in_any_order(some, row_length, random):
    shuffled = list(some)
    random.shuffle(shuffled)
    lengths = lambda rows: [[len(e.tokens) for e in row] for row in rows]  # noqa: E731
    assert lengths(pack(some, row_length)) == lengths(pack(shuffled, row_length))


@given(examples(), st.integers(40, 64))
@settings(deadline=None)
def test_arrays_say_what_the_examples_do(some, row_length):
    """Read segments, positions, targets and weights back into examples."""
    rows = pack(some, row_length)
    answers = max(map(answer_count, rows), default=0)
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


def test_a_tight_fit_is_found():
    lengths = [60, 50, 50, 40, 30, 10]
    rows = pack([Example(tuple(range(n)), 1) for n in lengths], 100)
    assert [[len(e.tokens) for e in row] for row in rows] == [[60, 40], [50, 50], [30, 10]]


def test_bad_examples_are_refused_in_words():
    with pytest.raises(UserError, match="prompt and answer need at least one token"):
        Example((1, 2, 3), 3)
    with pytest.raises(UserError, match="at least one token"):
        Example((1, 2, 3), 0)
    some = [Example(tuple(range(n)), 1) for n in (5, 9, 12)]
    with pytest.raises(UserError, match=r"2 of 3 examples are longer than a row of 8 .* has 12"):
        pack(some, 8)
    with pytest.raises(ValueError, match="3 rows in a batch of 2"):
        fill([some[:1]] * 3, 2, 16, 16)
