"""Presentations: if one is wrong, a preference for a number or a place passes for a view."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign import UserError
from jaxalign.surveys import Item, vsm
from jaxalign.surveys.presentations import (
    FORMS,
    default_presentations,
    present,
    show,
    untuned_presentations,
)

THREE = Item("q3", "How often?", ("never", "at times", "often"), (1, 2, 3))
FROM_0 = Item("q0", "How much?", ("none", "some", "all"), (0, 1, 2))
SIGNED = Item("s", "Which?", ("unknown", "no", "yes"), (-1, 0, 1), "nominal")
FALLING = Item("f", "How good?", ("good", "fair", "bad"), (3, 2, 1))
TWO = Item("q2", "Is it?", ("yes", "no"), (1, 2), "nominal")
ELEVEN = Item("q11", "How far?", tuple(f"step {n}" for n in range(11)), tuple(range(11)))


@pytest.mark.parametrize(
    ("item", "form", "pairs"),
    [
        (THREE, "A", ((1, "never"), (2, "at times"), (3, "often"))),
        (THREE, "B", ((3, "never"), (2, "at times"), (1, "often"))),
        (THREE, "C", ((3, "often"), (2, "at times"), (1, "never"))),
        (THREE, "D", ((1, "often"), (2, "at times"), (3, "never"))),
        (THREE, "letters", (("A", "never"), ("B", "at times"), ("C", "often"))),
        (THREE, "letters-reversed", (("A", "often"), ("B", "at times"), ("C", "never"))),
        (THREE, "order-312", ((1, "often"), (2, "never"), (3, "at times"))),
        (FROM_0, "B", ((2, "none"), (1, "some"), (0, "all"))),
        (FROM_0, "D", ((0, "all"), (1, "some"), (2, "none"))),
        (SIGNED, "B", ((1, "unknown"), (0, "no"), (-1, "yes"))),
        (FALLING, "C", ((1, "bad"), (2, "fair"), (3, "good"))),
        (FALLING, "D", ((3, "bad"), (2, "fair"), (1, "good"))),
        (TWO, "B", ((2, "yes"), (1, "no"))),
    ],
)
def test_every_form_is_what_its_name_says(item, form, pairs):
    shown = present(item, form)
    assert shown.pairs == pairs
    # Whatever the form, a mark leads back to the option that it stands before.
    for mark, label in pairs:
        assert shown.mark_of(item.options.index(label)) == str(mark)


@given(st.permutations(range(4)))
def test_an_explicit_order_maps_marks_to_options(order):
    item = Item("q", "Which?", tuple("abcd"), (1, 2, 3, 4), "nominal")
    shown = present(item, "order-" + "".join(str(o + 1) for o in order))
    assert shown.order == tuple(order)
    assert [shown.mark_of(o) for o in order] == ["1", "2", "3", "4"]


def test_two_digit_numbers_are_marks_too():
    assert present(ELEVEN, "B").option_marks == tuple(str(10 - n) for n in range(11))


def test_what_looks_alike_is_asked_once():
    found = show([THREE, TWO], ("A", "orders"))
    assert found.names == ("A", *(f"orders-{n + 1}" for n in range(6)))
    assert len(found.shown) == 6 + 2
    # The first of all orders is the published one.
    assert found.index_FxQ[0].tolist() == found.index_FxQ[1].tolist()


def test_all_orders_of_all_items_count_equally():
    found = show([THREE, TWO], ("orders",))
    for q, item in enumerate((THREE, TWO)):
        orders = [found.shown[s].order for s in found.index_FxQ[:, q]]
        every = list(itertools.permutations(range(len(item.options))))
        assert {order: orders.count(order) for order in every} == dict.fromkeys(
            every, 6 // len(every)
        )


@pytest.mark.parametrize(
    ("presentations", "message"),
    [
        ((), "give at least one"),
        (("A", "A"), "A is there twice"),
        (("E",), "`presentations` E: choose from A, B, C, D"),
        (("order-3",), "choose from"),
        (("order-21",), "item 'q3' has 3 options"),
        (("orders",), "item 'q11' has 11 options"),
    ],
)
def test_presentations_that_no_item_can_have_are_refused(presentations, message):
    items = [ELEVEN] if "orders" in presentations else [THREE]
    with pytest.raises(UserError, match=message):
        show(items, presentations)


def test_more_options_than_letters_are_refused():
    long = Item("l", "Which?", tuple(map(str, range(27))), tuple(range(27)))
    with pytest.raises(UserError, match="27 options, more than there are letters"):
        show([long], ("letters",))


def test_the_default_balances_numbers_and_leaves_a_test():
    assert default_presentations(True) == ("A",)
    assert default_presentations(False) == ("A", "B")
    assert untuned_presentations(("A", "B")) == ("C", "D")
    assert len(show(vsm().items, FORMS).shown) == 4 * 24


def test_shown_items_are_in_their_published_form_by_default():
    found = show(vsm().items)
    assert found.names == ("A",)
    assert np.array_equal(found.index_FxQ, np.arange(24)[None])
