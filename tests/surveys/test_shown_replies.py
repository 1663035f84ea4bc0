"""Replies under a presentation: a number counts for the option that it stood before."""

from __future__ import annotations

import pytest

from jaxalign.surveys import Item
from jaxalign.surveys.presentations import FORMS, present
from jaxalign.surveys.replies import read_option
from jaxalign.surveys.responses import OPTION_LIST, OUT_OF_RANGE, UNREADABLE
from jaxalign.surveys.shown_replies import read_shown

ITEM = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
FROM_0 = Item("q", "How far?", tuple(f"step {n}" for n in range(11)), tuple(range(11)))
REPLIES = ("1", "3", "Option 2.", "4", "none", "<think>1?</think> 3", "often", "1-800", "0", "10")


@pytest.mark.parametrize("item", [ITEM, FROM_0])
def test_published_replies_are_read_as_ever(item):
    for reply in REPLIES:
        assert read_shown(reply, present(item)) == read_option(reply, item)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("item", [ITEM, FROM_0])
def test_a_number_names_the_option_that_it_stood_before(item, form):
    shown = present(item, form)
    for option in range(len(item.options)):
        reply = f"I choose {shown.mark_of(option)}."
        assert read_shown(reply, shown) == option
    assert read_shown("77", shown) == OUT_OF_RANGE
    assert read_shown("who knows", shown) == UNREADABLE
    listed = " ".join(f"{mark} = {label}" for mark, label in shown.pairs)
    assert read_shown(listed, shown) == OPTION_LIST


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("B", 1),
        ("(b)", 1),
        ("C. often", 2),
        ("**A**", 0),
        ("Ｂ", 1),  # full width
        ("选B", 1),
        ("The answer is C because I know.", 2),
        ("I would choose option a", 0),
        ("I think a person would say B.", 1),
        ("A person like me: B", 1),
        ("I'd go with C", 2),
        ("<think>A or B?</think>C", 2),
        ("at times", 1),
        ("Never!", 0),
        ("E", OUT_OF_RANGE),
        ("2", UNREADABLE),
        ("I do not know a thing", UNREADABLE),
        ("", UNREADABLE),
        ("A = never\nB = at times\nC = often", OPTION_LIST),
        ("A = never\nB = at times\nC = often\nAnswer: B", 1),
    ],
)
def test_letters(reply, place):
    """The place in the list; which option stands there depends on the presentation."""
    assert read_shown(reply, present(ITEM, "letters")) == place


def test_letters_in_reverse_lead_to_the_other_end():
    shown = present(ITEM, "letters-reversed")
    assert [read_shown(reply, shown) for reply in "ABC"] == [2, 1, 0]
    assert read_shown("never", shown) == 0


def test_an_option_cut_off_does_not_break_reading():
    """Labels with signs that mean something in a pattern."""
    item = Item("q", "Which?", ("(a) yes?", "no [never]", "***"), (1, 2, 3), "nominal")
    assert read_shown("B", present(item, "letters")) == 1
    assert read_shown("A: (a) yes?, B: no [never]", present(item, "letters")) == OPTION_LIST
