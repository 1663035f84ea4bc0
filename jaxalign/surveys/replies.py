"""Free-text replies read as answers: which option does a reply name?

Readers. "first_integer" is what CultureSPA (Xu et al. 2025, arXiv 2410.12971) publishes: the first
integer of the reply, wherever it stands, so that a helpline's number becomes an answer. "strict"
takes an option's number on its own, alone or followed by that option's text, or after a short
lead-in such as "I would choose option". Either way a number that no option has is no answer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.reply_files import Replies
from jaxalign.surveys.survey import Item, Survey

ReaderName = Literal["first_integer", "strict"]
Numbering = Literal["codes", "positions"]

_FIRST_INTEGER = re.compile(r"[0-9]+")
# What people and models put before a number that is their whole answer.
_LEAD_IN = "i|my|the|would|will|d|ll|choose|select|say|pick|answer|option|number|is|with|a"
_STRICT = re.compile(
    rf"\W*(?:(?:{_LEAD_IN})\W+)*(?<![-−.,0-9])([0-9]{{1,4}})(?:\W*|[.):\-]\s*(?P<label>.*\S)\s*)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_STRICT = 500  # characters; a number on its own with an option's text is shorter


@dataclasses.dataclass(frozen=True)
class Answers:
    """Replies as answers, items in the instrument's order."""

    answers_Q: np.ndarray  # float32 position of the option, NaN where there is no answer
    replies: int  # items that got a reply
    unreadable: tuple[str, ...]  # ids of items whose reply has no number
    out_of_range: tuple[str, ...]  # ids of items whose number no option has


def first_integer(text: str, item: Item) -> int | None:
    """The first run of digits 0-9 in the reply, None if there is none. Any item."""
    match = _FIRST_INTEGER.search(text)
    return int(match[0][:9]) if match else None  # nine digits are out of any range as well


def strict(text: str, item: Item) -> int | None:
    """The number that is the reply, None if the reply says anything else.

    "3", "(3)", "3.", "Option 3", "I would choose option 3." and "3. Agree" where the third option
    is "Agree"; not "3.5", "-3", "2 or 3", "1-800" or a number inside an explanation.
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
    """Texts that may follow a number: its option's, under either numbering. Not those that are
    numbers themselves, or "3.5" would be 3 on a scale that has a 5."""
    places = {position(number, item, numbering) for numbering in get_args(Numbering)} - {None}
    return {label for p in places if not (label := _plain(item.options[p])).isdigit()} - {""}


def _plain(text: str) -> str:
    """Letters and digits only, lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def position(number: int, item: Item, numbering: Numbering) -> int | None:
    """Which option a number means, None if none. "codes": the item's own codes, which may begin at
    0; "positions": options shown as 1, 2, ... whatever their codes."""
    codes = item.codes if numbering == "codes" else tuple(range(1, len(item.codes) + 1))
    return codes.index(number) if number in codes else None


def read_answers(
    replies: Replies,
    instrument: Survey,
    reader: ReaderName = "first_integer",
    numbering: Numbering = "codes",
) -> Answers:
    """Each reply as the position of an option.

    An item without a reply is NaN and not unreadable. Raises UserError for a reply to an item that
    the instrument lacks, and for options other than the instrument's.
    """
    by_id = {item.id: q for q, item in enumerate(instrument.items)}
    answers_Q = np.full(len(by_id), np.nan, np.float32)
    unreadable, out_of_range = [], []
    for item_id, text in replies.texts.items():
        item = _item(replies, instrument, by_id, item_id)
        number = READERS[reader](text, item)
        at = None if number is None else position(number, item, numbering)
        if number is None:
            unreadable.append(item_id)
        elif at is None:
            out_of_range.append(item_id)
        else:
            answers_Q[by_id[item_id]] = at
    return Answers(answers_Q, len(replies.texts), tuple(unreadable), tuple(out_of_range))


def _item(replies: Replies, instrument: Survey, by_id: Mapping[str, int], item_id: str) -> Item:
    if item_id not in by_id:
        raise UserError(f"{replies.source}: item {item_id!r} is not in {instrument.name}")
    item = instrument.items[by_id[item_id]]
    shown = replies.options.get(item_id)
    if shown and shown != item.options:
        n = next((i for i, (a, b) in enumerate(zip(shown, item.options, strict=False)) if a != b),
                 min(len(shown), len(item.options)))  # fmt: skip
        raise UserError(
            f"{replies.source}: item {item_id}: {len(shown)} options, which differ from the "
            f"survey's {len(item.options)} at option {n + 1}"
        )
    return item
