"""Read free-text replies as answers: which option does a reply name?

There are two readers. "first_integer" is what CultureSPA (Xu et al. 2025, arXiv 2410.12971)
publishes: the first integer anywhere in the reply, so that the number of a helpline becomes an
answer. "strict" wants nothing but an answer: an option's number, on its own, with that option's
text or after a short lead-in such as "I would choose option"; a number as a word; or an option's
text alone. With either, a number that belongs to no option is not an answer.

Before either reads, three things are taken care of that no published rule covers: what a model
writes while it reasons (`without_reasoning`) is no part of its reply; digits of other scripts count
as digits; and a reply that repeats the list of options names none of them (`option_list`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.reply_files import Replies
from jaxalign.surveys.responses import NO_REPLY, OPTION_LIST, OUT_OF_RANGE, UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey

ReaderName = Literal["first_integer", "strict"]
Numbering = Literal["codes", "positions"]

# A sign counts where a number may begin: "-1", "(-1)", but neither "1-5" nor "COVID-19".
FIRST_INTEGER = re.compile(r"(?:(?<![^\s(\[\"'*:=])[-−‐‑])?[0-9]+")
# Words that people and models put before a number that is their whole answer.
_LEAD_IN = "i|my|the|would|will|d|ll|choose|select|say|think|pick|answer|option|number|is|with|a"
_STRICT = re.compile(
    rf"\W*(?:(?:{_LEAD_IN})\W+)*(?<![-−‐‑.,0-9])(?P<number>[0-9]{{1,4}})"
    r"(?:\W*|(?:\s*/\s*|\s+out\s+of\s+)(?P<top>[0-9]{1,4})\W*"
    r"|[\s.):\-=–—,(\]*]+(?P<label>.*\S)\s*)",
    re.IGNORECASE | re.DOTALL,
)
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_WORDS_ZH = "零一二三四五六七八九十"
_WORD = re.compile(
    rf"\W*(?:(?:my|the|answer|option|number|is)\W+)*(?:选项|选择|选|答案是?)?\W*"
    rf"(?P<word>{'|'.join(_WORDS)}|[{_WORDS_ZH}])(?:\W*|[\s.):\-=–—,(]+(?P<label>.*\S)\s*)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_STRICT = 500  # characters; a number with an option's text is shorter
# Where a reply that repeats the options says which one it takes.
_CHOICE = re.compile(
    r"\b(?:answer|choose|choice|select|pick|say)\b(?:\W+(?:is|would|be|option|number|that))*\W*"
    r"(?<![-−‐‑.,0-9])([0-9]{1,4})\b(?![-−.,][0-9])",
    re.IGNORECASE,
)

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|seed:think"
_OPEN = rf"<(?:{_NAMES})(?:\s[^<>]*)?>|\[(?:THINK|THINKING)\]|◁think▷"
_OPEN += r"|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel\|>analysis<\|message\|>"
_CLOSE = rf"</(?:{_NAMES})\s*>|\[/(?:THINK|THINKING)\]|◁/think▷"
_CLOSE += r"|<\|end_of_thought\|>|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>"
_TAG = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
# The tags of a final answer, which stay; and the channels of gpt-oss where special tokens are lost.
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_LOST_CHANNELS = re.compile(r"\s*analysis.*assistantfinal", re.DOTALL)


def without_reasoning(text: str) -> str:
    """Return a reply without what the model wrote while it reasoned.

    That is whatever stands between tags such as `<think>` and `</think>`, before a closing tag
    whose opening one the chat template has written, and after an opening tag that a reply which was
    cut off never closes.

    Examples:
        >>> from jaxalign.surveys.replies import without_reasoning
        >>> without_reasoning("<think>3 of them ...</think> 2")
        ' 2'
    """
    kept: list[str] = []
    start: int | None = 0  # where the reply goes on; None within the reasoning
    for tag in _TAG.finditer(text):
        if tag["open"] and start is not None:
            kept.append(text[start : tag.start()])
            start = None
        elif tag["close"]:
            if start is not None:  # the template has written the opening tag
                kept.clear()
            start = tag.end()
    text = "".join(kept) + ("" if start is None else text[start:])
    if lost := _LOST_CHANNELS.match(text):
        text = text[lost.end() :]
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else text


def plain_digits(text: str) -> str:
    """Return a text with the digits of all scripts as 0-9, also those in circles."""
    if text.isascii():
        return text
    return "".join(_plain_digit(c) for c in text)


def _plain_digit(c: str) -> str:
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    # ①-⑳ and ❶-❿ are numbers; superscripts are not.
    numbered = "①" <= c <= "⑳" or "❶" <= c <= "❿"
    return str(int(unicodedata.numeric(c))) if numbered else c


def first_integer(text: str, item: Item) -> int | None:
    """Return the first integer in the reply, None if there is none; `item` is unused.

    As published, what follows the digits does not matter: 1 for "1.1" and for "1-800".
    """
    match = FIRST_INTEGER.search(text)
    if match is None:
        return None
    digits = match[0].lstrip("-−‐‑")
    number = int(digits[:9])  # nine digits are out of any item's range
    return number if digits == match[0] else -number


def strict(text: str, item: Item) -> int | None:
    """Return the number if the reply is nothing but an answer, else None.

    3 for "3", "(3)", "3.", "Option 3", "I would choose option 3.", "three" and, if the third of
    five options is "Agree", "3. Agree", "3 = Agree" and "3 out of 5". None for "3.5", "-3",
    "2 or 3", "1-5", "1-800" or a number in an explanation.
    """
    if len(text) > _LONGEST_STRICT:
        return None
    if match := _STRICT.fullmatch(text):
        number = int(match["number"])
        if match["top"]:
            top = max(*item.codes, len(item.codes))
            return number if int(match["top"]) in (top, len(item.codes)) else None
    elif match := _WORD.fullmatch(text):
        word = match["word"].lower()
        number = _WORDS.index(word) if word in _WORDS else _WORDS_ZH.index(word)
    else:
        return None
    label = match["label"]
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


def option_list(text: str, item: Item) -> tuple[str, str] | None:
    """Find the list of options in a reply that repeats it.

    A list is two or more options in a row, in order, each with its number and text, the last of
    which may be cut off; or the numbers of all options in a row.

    Returns:
        What stands before the list and after it; None if the reply holds no such list.

    Examples:
        >>> from jaxalign.surveys import Item
        >>> from jaxalign.surveys.replies import option_list
        >>> item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
        >>> option_list("1 = never 2 = at times", item)
        ('', '')
        >>> option_list("2 = at times", item) is None
        True
    """
    numbered, bare, _ = _list_patterns(item)
    entries = [
        (m.start(), m.end(), int(m.lastgroup[1:])) for m in numbered.finditer(text) if m.lastgroup
    ]
    for step in (1, -1):  # options may also be shown from the last one
        run: list[tuple[int, int, int]] = []
        for start, end, option in entries:
            follows = run and _BETWEEN.fullmatch(text, run[-1][1], start)
            if follows and (option - run[-1][2]) * step > 0:
                run.append((start, end, option))
            elif len(run) > 1:
                break
            else:
                run = [(start, end, option)]
        if len(run) > 1:
            return text[: run[0][0]], text[run[-1][1] :]
        if run and _is_cut_off(text[run[-1][1] :], item, run[-1][2] + step):
            return text[: run[0][0]], ""
    if match := bare.search(text):
        return text[: match.start()], text[match.end() :]
    return None


def _is_cut_off(rest: str, item: Item, option: int) -> bool:
    """Return whether `rest` is how an option begins: its number, a sign and a part of its text."""
    match = _CUT_OFF.fullmatch(rest)
    if match is None or not 0 <= option < len(item.options):
        return False
    number, label = int(match[1]), _plain(match[2])
    return number in (item.codes[option], option + 1) and (
        _plain(item.options[option]).startswith(label)
    )


_CUT_OFF = re.compile(r"[\W_]*(?:option[\W_]+)?([0-9]{1,4})[\])]?\s*[=:.)\-–—]\s*(.*?)", re.DOTALL)
_BETWEEN = re.compile(r"[\W_]*(?:(?:and|or|option)[\W_]+)?", re.IGNORECASE)


@functools.lru_cache(maxsize=1024)
def _list_patterns(item: Item) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return what matches an option with its number, all numbers in a row, and the scale's ends."""
    options = []
    for p, (code, label) in enumerate(zip(item.codes, item.options, strict=True)):
        words = r"\W+".join(map(re.escape, re.findall(r"\w+", plain_digits(label))))
        numbers = "|".join({str(code), str(p + 1)})
        if words:
            # Scripts without spaces may write the next number right behind a label.
            end = r"(?![A-Za-z0-9_])" if words[-1].isascii() else ""
            pattern = rf"(?P<o{p}>(?:{numbers})[\])]?[\s.:=)\-–—*]+{words}{end})"
            options.append((-len(words), pattern))
    # Longer labels first: one option's text may begin with another's.
    numbered = "|".join(pattern for _, pattern in sorted(options)) or r"(?!)"
    gap = r"(?:\s*[,;/|]\s*(?:(?:or|and)\s+)?|\s+(?:(?:or|and)\s+)?)"
    rows = {
        gap.join(re.escape(str(n)) for n in numbers)
        for numbers in (item.codes, range(1, len(item.codes) + 1))
    }
    ends = {
        rf"{numbers[0]}\s*(?:-|–|to|through)\s*{numbers[-1]}"
        for numbers in (item.codes, range(1, len(item.codes) + 1))
        if len(numbers) > 2
    }
    alone = r"(?<![\w.,-])(?:{})(?![\w-]|[.,][0-9])"  # no part of a longer number or row
    return (
        re.compile(rf"(?<![A-Za-z0-9_.])(?:{numbered})", re.IGNORECASE),
        re.compile(alone.format("|".join(sorted(rows))), re.IGNORECASE),
        re.compile(alone.format("|".join(sorted(ends)) or r"(?!)"), re.IGNORECASE),
    )


def read_option(
    text: str, item: Item, reader: ReaderName = "first_integer", numbering: Numbering = "codes"
) -> int:
    """Return which option a reply names, counted from 0, or what else it is.

    Args:
        text: The reply.
        item: The item that was asked.
        reader: How an option's number is read from a text.
        numbering: What the number means; see `position`.

    Returns:
        Position of the option; or `UNREADABLE`, `OUT_OF_RANGE` or, for a reply that repeats the
        options without taking one, `OPTION_LIST`.

    Examples:
        >>> from jaxalign.surveys import Item
        >>> from jaxalign.surveys.replies import read_option
        >>> item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
        >>> read_option("<think>1 is out.</think> 2", item), read_option("7", item)
        (1, -2)
    """
    text = plain_digits(without_reasoning(text))
    around = option_list(text, item)
    if around is None:
        # "A scale from 1 to 10" names no option either.
        _, _, scale = _list_patterns(item)
        rest = scale.sub(" ", text)
        option = _named(READERS[reader], rest, item, numbering)
        only_scale = rest != text and not any(c.isdigit() for c in rest)
        return OPTION_LIST if option == UNREADABLE and only_scale else option
    # A reply may still say which option it takes, before or after it repeats them.
    for read in (strict, _chosen):
        for part in around:
            if (option := _named(read, part, item, numbering)) != UNREADABLE:
                return option
    return OPTION_LIST


def _named(
    read: Callable[[str, Item], int | None], text: str, item: Item, numbering: Numbering
) -> int:
    """Return the option that a reader finds in a text, `UNREADABLE` or `OUT_OF_RANGE`."""
    number = read(text, item)
    if number is not None:
        option = position(number, item, numbering)
        return OUT_OF_RANGE if option is None else option
    if read is strict and (plain := _plain(text)) and not plain.isdigit():
        # An option's text alone names it, if no other option reads alike.
        same = [p for p, option in enumerate(item.options) if _plain(option) == plain]
        if len(same) == 1:
            return same[0]
    return UNREADABLE


def _chosen(text: str, item: Item) -> int | None:
    """Return the number after a phrase such as "I choose"; `item` is unused."""
    match = _CHOICE.search(text)
    return int(match[1]) if match else None


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

        Replies to items that the survey lacks are left out; `items_left_out` names them.

    Raises:
        UserError: No reply is to an item of the survey, or other options were shown.

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
    left_out = items_left_out(replies, survey)
    if len(left_out) == len(replies.texts):
        raise UserError(
            f"{replies.source}: item {left_out[0]!r} is not in {survey.name}, nor is any other of "
            f"its {len(left_out)} items"
        )
    for item_id, text in replies.texts.items():
        if item_id in by_id:
            item = _shown_item(replies, survey.items[by_id[item_id]])
            positions[0, 0, by_id[item_id]] = read_option(text, item, reader, numbering)
    return Responses.from_positions(survey, [replies.country or replies.mode], positions)


def items_left_out(replies: Replies, survey: Survey) -> tuple[str, ...]:
    """Return the ids of items that were replied to and that the survey lacks.

    A country's survey file lacks what the country was not asked.
    """
    known = {item.id for item in survey.items}
    return tuple(item_id for item_id in replies.texts if item_id not in known)


def _shown_item(replies: Replies, item: Item) -> Item:
    """Return the item as it was shown. Raise UserError if its options are not the survey's."""
    shown = replies.options.get(item.id)
    if not shown or shown == item.options:
        return item
    if len(shown) == len(item.options) and item.options == tuple(map(str, item.codes)):
        # The survey has codes and no wording, so only the number of options can be compared.
        return dataclasses.replace(item, options=shown)
    pairs = enumerate(zip(shown, item.options, strict=False), start=1)
    fewer = min(len(shown), len(item.options))
    n = next((n for n, (a, b) in pairs if a != b), fewer + 1)
    raise UserError(
        f"{replies.source}: item {item.id}: {len(shown)} options, which differ from the survey's "
        f"{len(item.options)} at option {n}"
    )
