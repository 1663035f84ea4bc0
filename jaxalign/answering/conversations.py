"""From conversations to layouts: how a tokenizer, prompt texts and items become what is computed.

Everything that words a question to a model goes through here, so that soft prompts, baselines and
all other methods differ in what they say and in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxalign.answering.plan import Layout, plan_layout
from jaxalign.answering.plan_suffix import SuffixLayout, plan_suffix_layout
from jaxalign.answering.prefix_tree import Spellings
from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.presentations import Shown, present
from jaxalign.surveys.survey import Item

Placement = Literal["front", "system", "after"]  # where a soft prompt stands

_SENTINEL = "[[soft prompt]]"  # stands for the prompt while the chat template renders


def soft_prompt_layout(
    tokenizer: Tokenizer,
    prompts: Prompts,
    items: Sequence[Item | Shown],
    placement: Placement,
    prompt_length: int,
    lead_in: Sequence[Message] = (),
    per_token: bool = False,
) -> Layout | SuffixLayout:
    """Lay out items that are asked under a soft prompt, each in a conversation of its own.

    Args:
        tokenizer: the model's tokenizer and chat template.
        prompts: the texts that word a question.
        items: the items to ask, or items as they are shown.
        placement: where the soft prompt stands (`split_at_soft_prompt`).
        prompt_length: M, tokens of the soft prompt.
        lead_in: messages between the soft prompt and the question.
        per_token: whether an option counts by the mean log-probability of its tokens.

    Returns:
        The layout; a `SuffixLayout` for the placement "after".
    """
    conversations = [[*lead_in, prompts.user(item)] for item in items]
    split = [split_at_soft_prompt(tokenizer, chat, placement) for chat in conversations]
    before, after = zip(*split, strict=True)
    options = option_spellings(tokenizer, items)
    if placement == "after":
        return plan_suffix_layout(before, prompt_length, after, options, per_token)
    return plan_layout(before[0], prompt_length, after, options, per_token)


def split_at_soft_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], placement: Placement
) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation before and after the place of a soft prompt.

    Args:
        tokenizer: the model's tokenizer and chat template.
        messages: the conversation, which ends with the user's message.
        placement: "front" is before everything, without a system message, as PEFT does it.
            "system" makes the soft prompt the content of a system message, which comes first.
            "after" is at the end of the last message, after the question.

    Raises:
        UserError: if the conversation has a system message and the soft prompt would be another.
    """
    if placement == "front":
        return [], tokenizer.encode_chat(messages)
    if placement == "after":
        *earlier, last = messages
        ended = last | {"content": last["content"] + "\n" + _SENTINEL}
        return tokenizer.encode_chat_split([*earlier, ended], _SENTINEL)
    if messages[0]["role"] == "system":
        raise UserError(
            "a soft prompt in the place of the system message cannot be combined with a persona, "
            "which is a system message too; tune one that is placed in front"
        )
    system = {"role": "system", "content": _SENTINEL}
    return tokenizer.encode_chat_split([system, *messages], _SENTINEL)


def conversation_layout(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    items: Sequence[Item | Shown],
) -> Layout:
    """Lay out conversations without a soft prompt, each ending in the question of its item."""
    encoded = [tokenizer.encode_chat(conversation) for conversation in conversations]
    return plan_layout([], 0, encoded, option_spellings(tokenizer, items))


def option_spellings(tokenizer: Tokenizer, items: Sequence[Item | Shown]) -> list[Spellings]:
    """Return, per item, the token ids of every spelling of what names each of its options.

    That is the number or letter before the option, wherever it stands in the list that is shown, or
    the option's text. Options are in the item's own order whichever way they are shown, so answers
    are read by their meaning. Equal spellings are one object.
    """
    known: dict[tuple, Spellings] = {}
    spellings = []
    for shown in map(present, items):
        by_mark = shown.reply == "mark"
        key = shown.reply, shown.option_marks if by_mark else shown.item.options
        if key not in known:
            write = tokenizer.option_tokens if by_mark else tokenizer.label_tokens
            try:
                known[key] = write(key[1])
            except UserError as error:
                raise UserError(f"item {shown.item.id!r}: {error}") from None
        spellings.append(known[key])
    return spellings
