"""Read replies to items as they were shown, and tell when no more of one needs to be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.surveys.presentations import Shown
from jaxalign.surveys.replies import without_reasoning
from jaxalign.surveys.settled import is_settled
from jaxalign.surveys.shown_replies import read_shown

_HEADER_TOKENS = 16  # of a conversation's end, which show how a reply begins
_MOST_REMEMBERED = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class ReplyReader:
    """Reads replies as tokens. Replies repeat: what was read of the same tokens is remembered.

    Attributes:
        rows: The items as they were shown.
        decode: Turns token ids into text.
        in_reasoning: Whether the chat template has opened a reasoning tag before the reply. Such
            replies are never settled early: up to the closing tag they read as nothing.
    """

    rows: Sequence[Shown]
    decode: Callable[[list[int]], str]
    in_reasoning: bool = False
    _options: dict[tuple[int, tuple[int, ...]], int] = dataclasses.field(default_factory=dict)
    _settled: dict[tuple[int, tuple[int, ...]], bool] = dataclasses.field(default_factory=dict)

    def read(self, row: int, tokens: Sequence[int]) -> int:
        """Return which option a reply names, in published order; below 0: why it names none."""
        key = row, tuple(tokens)
        if key not in self._options:
            _remember(self._options, key, read_shown(self.decode(list(tokens)), self.rows[row]))
        return self._options[key]

    def is_settled(self, row: int, tokens: Sequence[int]) -> bool:
        """Return whether more tokens would not change what is read of a reply."""
        shown = self.rows[row]
        if self.in_reasoning or shown.has_letters:
            return False
        key = row, tuple(tokens)
        if key not in self._settled:
            text = self.decode(list(tokens))
            _remember(self._settled, key, is_settled(text, shown.as_listed))
        return self._settled[key]


def make_reader(tokenizer: Tokenizer, rows: Sequence[Shown], prompt: Sequence[int]) -> ReplyReader:
    """Return the reader of replies to some items.

    Args:
        tokenizer: The model's.
        rows: The items as they are shown.
        prompt: Token ids of one of the conversations, whose end tells how all replies begin.
    """
    # Without the rows of a soft prompt, which have no text.
    header = [int(t) for t in prompt[-_HEADER_TOKENS:] if t < tokenizer.vocab_size]
    text = tokenizer.decode(header) + "x"
    return ReplyReader(rows, tokenizer.decode, not without_reasoning(text).endswith("x"))


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    known[key] = value
