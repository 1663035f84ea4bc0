"""Read free-text replies as answers: which option does a reply name?

There are two readers. "first_integer" is what CultureSPA (Xu et al. 2025, arXiv 2410.12971)
publishes: the first integer anywhere in the reply, so that the number of a helpline becomes an
answer. "strict" wants an option's number on its own, or followed by that option's text, or after a
short lead-in such as "I would choose option". With either, a number that belongs to no option is
not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.reply_files import Replies
from jaxalign.surveys.responses import NO_REPLY, OUT_OF_RANGE, UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey

ReaderName = Literal["first_integer", "strict"]
Numbering = Literal["codes", "positions"]

_FIRST_INTEGER = re.compile(r"[0-9]+")
# Words that people and models put before a number that is their whole answer.
_LEAD_IN = "i|my|the|would|will|d|ll|choose|select|say|pick|answer|option|number|is|with|a"
_STRICT = re.compile(
    rf"\W*(?:(?:{_LEAD_IN})\W+)*(?<![-−.,0-9])([0-9]{{1,4}})(?:\W*|[.):\-]\s*(?P<label>.*\S)\s*)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_STRICT = 500  # characters; a number with an option's text is shorter


def first_integer(text: str, item: Item) -> int | None:
    """Return the first run of digits 0-9 in the reply, None if there is none; `item` is unused."""
    match = _FIRST_INTEGER.search(text)
    return int(match[0][:9]) if match else None  # nine digits are out of any item's range


def strict(text: str, item: Item) -> int | None:
    """Return the number if the reply is nothing but an option's number, else None.

    3 for "3", "(3)", "3.", "Option 3", "I would choose option 3." and, if the third option is
    "Agree", "3. Agree". None for "3.5", "-3", "2 or 3", "1-800" or a number in an explanation.
    """
    match = _STRICT.fullmatch(text) if len(text) <= _LONGEST_STRICT else None
    if not match:
        return None
    number, label = int(match[1]), match["label"]
    return number if not label or _plain(label) in _labels_of(number, item) else None


READERS: Mapping[str, Callable[[str, Item], int | None]] = {
    "first_integer": first_integer,
    "strict": strict,
}


def _labels_of(number: int, item: Item) -> set[str]:
    """Return texts that may follow a number: its option's, under either numbering.

    Labels that are numbers themselves are left out, or "3.5" would be 3 on a scale that has a 5.
    """
    positions = {position(number, item, numbering) for numbering in get_args(Numbering)} - {None}
    return {label for p in positions if not (label := _plain(item.options[p])).isdigit()} - {""}


def _plain(text: str) -> str:
    """Return only the letters and digits of a text, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def position(number: int, item: Item, numbering: Numbering) -> int | None:
    """Return the position of the option that a number means, None if it means none.

    With the numbering "codes" it is one of the item's codes, which may begin at 0. With "positions"
    the options were numbered 1, 2, ... whatever their codes.
    """
    codes = item.codes if numbering == "codes" else tuple(range(1, len(item.codes) + 1))
    return codes.index(number) if number in codes else None


def read_answers(
    replies: Replies,
    survey: Survey,
    reader: ReaderName = "first_integer",
    numbering: Numbering = "codes",
) -> Responses:
    """Read the replies of one run as responses to a survey.

    Args:
        replies: The run.
        survey: The survey that was asked.
        reader: How an option's number is read from a text.
        numbering: What the number means; see `position`.

    Returns:
        Responses under one condition, named by the replies' country or "unaware". An item without
        a reply is `NO_REPLY`.

    Raises:
        UserError: A reply is to an item that the survey lacks, or other options were shown.

    Examples:
        >>> from pathlib import Path
        >>> from jaxalign.surveys import Item, Survey
        >>> from jaxalign.surveys.reply_files import Replies
        >>> item = Item("q1", "How often do you read?", ("never", "sometimes", "often"), (1, 2, 3))
        >>> survey = Survey("reading", "1", "made up", "official", (item,))
        >>> replies = Replies(Path("r.json"), "aware", "USA", 0, {"q1": "Option 3, often"}, {})
        >>> read_answers(replies, survey).most_likely()
        array([[3.]], dtype=float32)
    """
    by_id = {item.id: q for q, item in enumerate(survey.items)}
    positions = np.full((1, 1, len(by_id)), NO_REPLY, np.int32)
    for item_id, text in replies.texts.items():
        item = _item(replies, survey, by_id, item_id)
        number = READERS[reader](text, item)
        option = None if number is None else position(number, item, numbering)
        if number is None:
            option = UNREADABLE
        elif option is None:
            option = OUT_OF_RANGE
        positions[0, 0, by_id[item_id]] = option
    return Responses.from_positions(survey, [replies.country or replies.mode], positions)


def _item(replies: Replies, survey: Survey, by_id: Mapping[str, int], item_id: str) -> Item:
    """Return the item that was replied to. Raise UserError if the survey has no such item."""
    if item_id not in by_id:
        raise UserError(f"{replies.source}: item {item_id!r} is not in {survey.name}")
    item = survey.items[by_id[item_id]]
    shown = replies.options.get(item_id)
    if shown and shown != item.options:
        pairs = enumerate(zip(shown, item.options, strict=False), start=1)
        fewer = min(len(shown), len(item.options))
        n = next((n for n, (a, b) in pairs if a != b), fewer + 1)
        raise UserError(
            f"{replies.source}: item {item_id}: {len(shown)} options, which differ from the "
            f"survey's {len(item.options)} at option {n}"
        )
    return item
