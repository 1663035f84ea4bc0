"""A model's reply in words, under any condition or several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from jaxalign.lm.model import LM
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.base import Condition
from jaxalign.methods.chat import reply_side_by_side
from jaxalign.methods.conditions import Plain
from jaxalign.prompts import Message, Prompts


@overload
def generate(
    lm: LM,
    text_or_messages: str | Sequence[Message],
    *,
    condition: Condition | None = None,
    prompts: Prompts | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str: ...


@overload
def generate(
    lm: LM,
    text_or_messages: str | Sequence[Message],
    *,
    condition: Sequence[Condition],
    prompts: Prompts | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]: ...


def generate(
    lm: LM,
    text_or_messages: str | Sequence[Message],
    *,
    condition: Condition | Sequence[Condition] | None = None,
    prompts: Prompts | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str | list[str]:
    """Return the model's reply to a message or a conversation, under one condition or several.

    Args:
        lm: the model.
        text_or_messages: what the user says; or a whole conversation as a list of messages
            {"role": ..., "content": ...} that ends with the user's.
        condition: a persona, examples, a tuned soft prompt or an adapter; default: none of them. A
            list of conditions gives a list of replies, decoded together.
        prompts: the texts that word personas and examples; default: the model's, else the
            package's.
        max_new_tokens: tokens after which the reply is cut off.
        temperature: 0 takes the most likely token every time; higher values draw more freely.
        top_p: draw from the fewest most likely tokens whose probabilities add up to this.
        seed: decides what is drawn; the same seed gives the same reply, alone or in a list.

    Returns:
        The reply's text, without the token that ends it; for a list of conditions, a list.

    Raises:
        UserError: if the conversation and the reply do not fit into the model's positions, or a
            number is out of range.

    >>> import jaxalign as ja
    >>> lm = ja.pocket_model()
    >>> reply = ja.generate(lm, "Is family important in your life?", max_new_tokens=8)
    >>> isinstance(reply, str)
    True
    >>> asked = "Is family important in your life?"
    >>> ja.generate(lm, asked, condition=[ja.Plain()], max_new_tokens=8) == [reply]
    True
    """
    several = isinstance(condition, Sequence)
    conditions = list(condition) if several else [Plain() if condition is None else condition]
    replies = reply_side_by_side(
        lm,
        text_or_messages,
        conditions,
        prompts=prompts,
        sampling=Sampling(max_new_tokens, temperature, top_p),
        seed=seed,
    )
    texts = [reply.text for reply in replies]
    return texts if several else texts[0]
