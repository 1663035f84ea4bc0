"""A reply is cut off only where more of it would not change what is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.presentations import present
from jaxalign.surveys.replies import read_option
from jaxalign.surveys.reply_files import read_replies
from jaxalign.surveys.settled import is_settled
from jaxalign.surveys.survey import Item

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
OFTEN = Item("q", "How often?", ("Never", "At times", "Often", "Not sure"), (1, 2, 3, 4))
LIST = "1 = Never 2 = At times 3 = Often 4 = Not sure"
# Replies as models write them, and as they repeat lists and scales.
REPLIES = (
    "3",
    "3\n",
    "3How2Do you want1Do",
    "I would choose 3 because I often read.",
    "3. Often",
    "3 (Often), since I like it",
    "My answer is 2, at times.",
    "On a scale from 1 to 4, I would say 3 or so, I think",
    "Between 1 and 4, I would choose 2 because of work.",
    "1-4: I choose 3 as it is",
    "1, 2, 3 and 4 are all possible, so none",
    "I choose 3 out of 4 options here, really",
    "2 or 3, depending on the day",
    "3.5 is what I feel",
    "-3 is no answer at all",
    "7 is my answer",
    LIST,
    LIST + " I choose 2 of them",
    "1. Never\n2. At times\n3. Often",
    "4 = Not sure 3 = Often 2 = At times",
    "<think>1 is out, as I see it.</think> 2 is right, then",
    "３ is what I take, as ever",
    "No number at all, sorry",
    "",
)


def cut(text: str, item: Item) -> str | None:
    """The reply up to where it is settled; None if it never is."""
    ends = (end for end in range(len(text) + 1) if is_settled(text[:end], item))
    return next((text[:end] for end in ends), None)


@pytest.mark.parametrize("form", ["A", "B", "C", "D"])
@pytest.mark.parametrize("text", REPLIES)
def test_the_beginning_reads_as_the_whole(text, form):
    item = present(OFTEN, form).as_listed
    for end in range(len(text) + 1):
        if is_settled(text[:end], item):
            assert read_option(text[:end], item) == read_option(text, item), text[:end]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("3How2Do", "3H"),
        ("3 is my answer", "3 is "),
        ("I choose 3 because I", "I choose 3 because "),
        ("3. Often is", None),
        ("3 or 4", None),
        ("1 to 4", None),
        ("13", None),
        ("3, 4", None),
        ("<think> 3 is", None),
    ],
)
def test_where_a_reply_is_cut(text, end):
    assert cut(text, OFTEN) == end


@pytest.mark.user_data
@pytest.mark.skipif(DATA is None, reason="needs JAXALIGN_CULTURESPA_DATA")
def test_published_replies_read_the_same_when_cut():
    survey = culturespa.read(Path(DATA))
    items, checked = {item.id: item for item in survey.items}, 0
    for path in sorted((Path(DATA) / "result").glob("*.json")):
        for replies in read_replies(path):
            for item_id in items.keys() & replies.texts.keys():
                text, item = replies.texts[item_id], items[item_id]
                beginning = cut(text[:200], item)
                if beginning is not None:
                    assert read_option(beginning, item) == read_option(text, item), text
                checked += 1
    assert checked > 500
