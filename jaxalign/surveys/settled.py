"""When is it clear which option a reply names, although the model would go on writing?

Whoever decodes replies only to read them (`jaxalign.surveys.replies.read_option`) can stop there. A
reply is settled once its first integer is complete and a word follows that belongs neither to a
list of options nor to a scale: after "I would choose 3 because I" no more is read, after "1 = never
2" or "3. Often" it is, since a reply that repeats the options names none of them. Nothing is
settled once a tag may begin, because reasoning and tags of a final answer change what is read.

What is not foreseen is a reply that answers in a sentence and repeats the options after it.
"""

from __future__ import annotations

import functools
import re

from jaxalign.surveys.replies import FIRST_INTEGER, plain_digits
from jaxalign.surveys.survey import Item

_TAG = re.compile(r"[<\[◁]")
_WORD = re.compile(r"[^\W\d_]+(?=[\W\d_])")  # a word, and what ends it
# Words between the numbers of a list or a scale, or before a list.
_CONNECTORS = frozenset(
    {"and", "or", "to", "through", "out", "of", "for", "being", "means", "as", "scale"}
    | {"option", "options", "choice", "choices", "answer", "answers", "number", "numbers"}
)


def is_settled(text: str, item: Item) -> bool:
    """Return whether the reader "first_integer" will find the same however the reply goes on.

    Args:
        text: The reply so far.
        item: The item that was asked, as it was shown.

    Examples:
        >>> from jaxalign.surveys import Item
        >>> item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
        >>> [is_settled(t, item) for t in ("I choose 3", "I choose 3 because I", "1 = never 2 = ")]
        [False, True, False]
    """
    text = plain_digits(text)
    number = FIRST_INTEGER.search(text)
    if number is None or _TAG.search(text):
        return False
    if text[number.end() : number.end() + 1].isalpha():
        return True  # lists and scales have something between a number and a word
    word = _WORD.search(text, number.end())
    # Another number before the first word: a list or a scale.
    if word is None or any(c.isdigit() for c in text[number.end() : word.start()]):
        return False
    known = word[0].casefold()
    return known not in _CONNECTORS and known not in _first_words(item)


@functools.lru_cache(maxsize=1024)
def _first_words(item: Item) -> frozenset[str]:
    """Return the words that an item's options begin with, in lower case."""
    found = (re.search(r"[^\W\d_]+", option) for option in item.options)
    return frozenset(word[0].casefold() for word in found if word)
