"""Read replies to items whose options were shown in another order, or with other marks.

A number is read as `jaxalign.surveys.replies` reads it, against the numbers that were shown, and
leads back to the option that it stood before. Letters are read with the same intent as first
integers: the first letter that stands for itself is the answer, and a letter that belongs to no
option is none. An option's text alone names it too.
"""

from __future__ import annotations

import re
import unicodedata

from jaxalign.surveys.presentations import Shown
from jaxalign.surveys.replies import ReaderName, read_option, without_reasoning
from jaxalign.surveys.responses import OPTION_LIST, OUT_OF_RANGE, UNREADABLE

# The reply is a letter, perhaps in brackets, or begins with one and a sign: "B", "(b)", "B. often".
_FIRST = re.compile(r"[\s\"'*(\[]*([A-Za-z])(?:[\s\"'*]*$|[\"'*]*[)\].:=–—-])")
# A letter after words that take it: "the answer is B", "I choose option b".
_CHOSEN = re.compile(
    r"\b(?i:answer|choose|choice|select|pick|say|option|letter)\b"
    r"(?:\W+(?i:is|would|be|option|letter|the|that)\b)*\W+([A-Z]|[a-z](?=\W*$))\b(?!['’])"
)
# A capital letter by itself, but for the words "A" and "I" within a sentence.
_ALONE = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])(?!(?<=[AI])\s+[a-z])")


def read_shown(text: str, shown: Shown, reader: ReaderName = "first_integer") -> int:
    """Return which of the item's options a reply names, counted in published order.

    Args:
        text: The reply.
        shown: The item as it was shown.
        reader: How a number is read from a text; not used for letters.

    Returns:
        Position of the option in the item, or `UNREADABLE`, `OUT_OF_RANGE` or `OPTION_LIST`.

    Examples:
        >>> from jaxalign.surveys import Item
        >>> from jaxalign.surveys.presentations import present
        >>> item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
        >>> read_shown("3", present(item, "B")), read_shown("I choose B.", present(item, "letters"))
        (0, 1)
    """
    if shown.has_letters:
        place = _read_letter(text, shown)
    else:
        place = read_option(text, shown.as_listed, reader)
    return shown.order[place] if place >= 0 else place


def _read_letter(text: str, shown: Shown) -> int:
    """Return the place in the list of the option that a reply names, or what else it is."""
    text = unicodedata.normalize("NFKC", without_reasoning(text))
    labels = [_plain(label) for _, label in shown.pairs]
    if (plain := _plain(text)) and labels.count(plain) == 1:
        return labels.index(plain)
    # A reply that repeats the list may say which option it takes, before or after.
    entries = _list_entries(text, shown)
    parts = [text[: entries[0].start()], text[entries[-1].end() :]] if entries else [text]
    for pattern in (_FIRST, _CHOSEN) if entries else (_FIRST, _CHOSEN, _ALONE):
        for part in parts:
            match = pattern.match(part) if pattern is _FIRST else pattern.search(part)
            if match is not None:
                letter = match[1].upper()
                return shown.marks.index(letter) if letter in shown.marks else OUT_OF_RANGE
    return OPTION_LIST if entries else UNREADABLE


def _list_entries(text: str, shown: Shown) -> list[re.Match[str]]:
    """Return where a reply repeats two or more options with their letters, in order; else none."""
    entries = []
    for mark, label in shown.pairs:
        words = r"\W+".join(map(re.escape, re.findall(r"\w+", label)))
        pattern = rf"(?<![A-Za-z0-9]){mark}\W+(?i:{words})"
        if words and (match := re.compile(pattern).search(text)):
            entries.append(match)
    return sorted(entries, key=re.Match.start) if len(entries) > 1 else []


def _plain(text: str) -> str:
    """Return only the letters and digits of a text, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())
