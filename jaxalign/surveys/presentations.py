"""How an item is shown: the order of its options, and the marks that stand before them.

A model may answer the number or the place in the list, whatever is written there. The same item
shown in several forms, with every answer mapped back to its meaning, tells the two apart. An item
with the codes 1, 2, 3 and the options a, b, c looks like this:

    A                 1 a   2 b   3 c    as published
    B                 3 a   2 b   1 c    same order, the codes assigned the other way round
    C                 3 c   2 b   1 a    reverse order, each option keeps its code
    D                 1 c   2 b   3 a    reverse order, the codes from the top as in A
    letters           A a   B b   C c    as published, with letters
    letters-reversed  A c   B b   C a    reverse order, letters from the top
    order-312         1 c   2 a   3 b    one explicit order, the codes from the top as in A
    orders            all orders of an item of up to 5 options, the codes from the top as in A

Codes are the survey's own: where they begin at 0, so do the numbers of every form.

Pure Python and numpy. Letters: F presentation, S shown item, Q item.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import string
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Item

PUBLISHED = "A"
FORMS = ("A", "B", "C", "D")
"""The forms with numbers: either display order, with the codes either way round."""
GENERAL = (*FORMS, "letters", "letters-reversed")
"""The presentations of any item, whatever its number of options."""
NAMES = (*GENERAL, "orders", "order-...")
"""What may be chosen; the last stands for one explicit order, such as order-312."""
MOST_ORDERED = 5
"""Options of an item that `orders` shows in all orders, at most: 5 make 120 orders."""

Reply = Literal["mark", "label"]

_ORDER = re.compile(r"order-([1-9]+)")


@dataclasses.dataclass(frozen=True)
class Shown:
    """An item as it is put to a model.

    It is not an item itself: its numbers need neither rise nor fall.

    Attributes:
        item: The item, with its options in published order.
        order: Which of the item's options stands at each place of the list, from the top.
        marks: What stands before the option at each place: a number or a letter.
        reply: What is read as the answer: an option's "mark" or its text, the "label".

    Examples:
        >>> item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
        >>> shown = present(item, "D")
        >>> shown.pairs
        ((1, 'often'), (2, 'at times'), (3, 'never'))
        >>> shown.mark_of(0)
        '3'
    """

    item: Item
    order: tuple[int, ...]
    marks: tuple[str, ...]
    reply: Reply = "mark"

    @property
    def has_letters(self) -> bool:
        """Whether the marks are letters and not numbers."""
        return self.marks[0].isalpha()

    @property
    def pairs(self) -> tuple[tuple[int | str, str], ...]:
        """The list that is shown, from the top: a number or letter, and the option's text."""
        marks = self.marks if self.has_letters else map(int, self.marks)
        return tuple((m, self.item.options[o]) for m, o in zip(marks, self.order, strict=True))

    @functools.cached_property
    def as_listed(self) -> Item:
        """The list that is shown as an item of its own, for readers of numbers.

        Its options are those of the list from the top, and their codes the numbers before them.
        """
        pairs = self.pairs
        codes, options = (tuple(column) for column in zip(*pairs, strict=True))
        if (codes, options) == (self.item.codes, self.item.options):
            return self.item
        # No order of codes is asked of a nominal item.
        return dataclasses.replace(self.item, codes=codes, options=options, scale="nominal")

    @functools.cached_property
    def option_marks(self) -> tuple[str, ...]:
        """The mark of each of the item's options, in published order."""
        marks = dict(zip(self.order, self.marks, strict=True))
        return tuple(marks[option] for option in range(len(self.order)))

    def mark_of(self, option: int) -> str:
        """Return what stands before one of the item's options, counted in published order."""
        return self.option_marks[option]

    def reply_of(self, option: int) -> str:
        """Return the reply that names one of the item's options: its mark, or its text."""
        return self.mark_of(option) if self.reply == "mark" else self.item.options[option]


@dataclasses.dataclass(frozen=True)
class ShownItems:
    """Items under several presentations; what looks alike is there once.

    Attributes:
        shown: S shown items.
        index_FxQ: int32, which of them is item q under presentation f.
        names: F names of the presentations.
    """

    shown: tuple[Shown, ...]
    index_FxQ: np.ndarray
    names: tuple[str, ...]


def default_presentations(is_pocket: bool) -> tuple[str, ...]:
    """Return the presentations of a run that names none.

    The pocket model was trained on the published form alone; any other model's answers are
    averaged over both ways of numbering the options.
    """
    return (PUBLISHED,) if is_pocket else ("A", "B")


def untuned_presentations(presentations: Sequence[str]) -> tuple[str, ...]:
    """Return the forms A to D that are not among `presentations`, as a test of what is tuned.

    >>> untuned_presentations(("A", "B"))
    ('C', 'D')
    """
    return tuple(name for name in FORMS if name not in presentations)


def present(item: Item | Shown, presentation: str = PUBLISHED, reply: Reply = "mark") -> Shown:
    """Return an item in one presentation; what is shown already stays as it is.

    Args:
        item: The item.
        presentation: Name of the presentation, but for "orders".
        reply: What is read as the answer.

    Raises:
        UserError: If there is no such presentation, or the item has too many or too few options
            for it.
    """
    if isinstance(item, Shown):
        return item
    count = len(item.options)
    order, numbers = tuple(range(count)), tuple(map(str, item.codes))
    marks = numbers
    if presentation == "B":
        marks = numbers[::-1]
    elif presentation == "C":
        order, marks = order[::-1], numbers[::-1]
    elif presentation in ("D", "letters-reversed"):
        order = order[::-1]
    elif match := _ORDER.fullmatch(presentation):
        order = tuple(int(digit) - 1 for digit in match[1])
        if sorted(order) != list(range(count)):
            raise UserError(
                f"`presentations` {presentation}: item {item.id!r} has {count} options; name each "
                "of them once, counted from 1"
            )
    elif presentation not in (PUBLISHED, "letters"):
        raise UserError(f"`presentations` {presentation}: choose from {', '.join(NAMES)}")
    if presentation in ("letters", "letters-reversed"):
        if count > len(string.ascii_uppercase):
            raise UserError(
                f"`presentations` {presentation}: item {item.id!r} has {count} options, more than "
                "there are letters; choose forms with numbers"
            )
        marks = tuple(string.ascii_uppercase[:count])
    return Shown(item, order, marks, reply)


def check_presentations(presentations: Sequence[str], name: str = "presentations") -> None:
    """Raise UserError unless every presentation is known and none is there twice.

    Args:
        presentations: Names of presentations.
        name: What the message calls them.
    """
    if not presentations:
        raise UserError(f"`{name}`: give at least one, such as A")
    for presentation in presentations:
        known = presentation in NAMES[:-1] or _is_order(presentation)
        if not known:
            raise UserError(f"`{name}` {presentation}: choose from {', '.join(NAMES)}")
        if list(presentations).count(presentation) > 1:
            raise UserError(f"`{name}`: {presentation} is there twice")


def _is_order(presentation: str) -> bool:
    match = _ORDER.fullmatch(presentation)
    return match is not None and sorted(match[1]) == [str(n + 1) for n in range(len(match[1]))]


def is_general(presentation: str) -> bool:
    """Return whether a presentation says how to show any item, whatever its number of options."""
    return presentation in GENERAL


def show(
    items: Sequence[Item], presentations: Sequence[str] = (PUBLISHED,), reply: Reply = "mark"
) -> ShownItems:
    """Show items under each of several presentations.

    "orders" stands for as many presentations as the item with the most options has orders. An item
    with fewer repeats its own, each equally often, so that a plain mean over the presentations is
    the mean over all orders of every item.

    Args:
        items: Q items.
        presentations: Names of presentations, each once.
        reply: What is read as the answer: an option's "mark" or its text, the "label".

    Raises:
        UserError: If a presentation is unknown or there twice, or an item cannot be shown in it.

    Examples:
        >>> item = Item("q", "Is it?", ("yes", "no"), (1, 2), "nominal")
        >>> found = show([item], ("A", "B", "orders"))
        >>> found.names, found.index_FxQ.tolist()
        (('A', 'B', 'orders-1', 'orders-2'), [[0], [1], [0], [2]])
    """
    check_presentations(presentations)
    names: list[str] = []
    rows: list[list[Shown]] = []  # the items under each presentation
    for presentation in presentations:
        if presentation == "orders":
            orders_Q = [_all_orders(item, reply) for item in items]
            most = max(map(len, orders_Q))
            names += [f"orders-{n + 1}" for n in range(most)]
            rows += [[orders[n % len(orders)] for orders in orders_Q] for n in range(most)]
        else:
            names.append(presentation)
            rows.append([present(item, presentation, reply) for item in items])
    number: dict[tuple, int] = {}  # by item and look; an item's position stands for its content
    shown: list[Shown] = []
    index_FxQ = np.empty((len(rows), len(items)), np.int32)
    for f, row in enumerate(rows):
        for q, one in enumerate(row):
            look = q, one.order, one.marks
            if look not in number:
                number[look] = len(shown)
                shown.append(one)
            index_FxQ[f, q] = number[look]
    return ShownItems(tuple(shown), index_FxQ, tuple(names))


def _all_orders(item: Item, reply: Reply) -> list[Shown]:
    """Return an item in all orders of its options, the published one first."""
    count = len(item.options)
    if count > MOST_ORDERED:
        raise UserError(
            f"`presentations` orders: item {item.id!r} has {count} options and so too many orders; "
            f"all of them are shown for up to {MOST_ORDERED} options. Choose from A, B, C and D"
        )
    marks = tuple(map(str, item.codes))
    return [Shown(item, order, marks, reply) for order in itertools.permutations(range(count))]
