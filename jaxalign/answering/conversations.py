"""From conversations to layouts: how a tokenizer, prompt texts and items become an interview.

Everything that words a question to a model goes through here, so that the soft prompt, the
baselines and whatever else answers items differ in what they say and in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxalign.answering.plan import Layout, plan_layout
from jaxalign.answering.plan_suffix import SuffixLayout, plan_suffix_layout
from jaxalign.answering.prefix_tree import Spellings
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.survey import Item

Placement = Literal["front", "system", "after"]  # where a soft prompt stands

_SENTINEL = "[[soft prompt]]"  # stands for the prompt while the chat template renders


def soft_prompt_layout(
    tokens: Tokenizer,
    prompts: Prompts,
    items: Sequence[Item],
    placement: Placement,
    prompt_length: int,
) -> Layout | SuffixLayout:
    """Each item as the user's only message, a soft prompt of M tokens in its place.

    "front": before everything, no system message, as PEFT does. "system": the soft prompt is the
    system message's content. "after": at the end of the user's message, after the question.
    """
    questions = [prompts.user(item) for item in items]
    if placement == "after":
        ended = [q | {"content": q["content"] + "\n" + _SENTINEL} for q in questions]
        split = [tokens.encode_chat_split([question], _SENTINEL) for question in ended]
        texts, tails = zip(*split, strict=True)
        return plan_suffix_layout(texts, prompt_length, tails, option_spellings(tokens, items))
    if placement == "front":
        before, after = [], [tokens.encode_chat([question]) for question in questions]
    else:
        system = {"role": "system", "content": _SENTINEL}
        split = [tokens.encode_chat_split([system, q], _SENTINEL) for q in questions]
        before, after = split[0][0], [rest for _, rest in split]
    return plan_layout(before, prompt_length, after, option_spellings(tokens, items))


def conversation_layout(
    tokens: Tokenizer, conversations: Sequence[Sequence[Message]], items: Sequence[Item]
) -> Layout:
    """Conversations without a soft prompt, each ending in the question of its item."""
    encoded = [tokens.encode_chat(conversation) for conversation in conversations]
    return plan_layout([], 0, encoded, option_spellings(tokens, items))


def option_spellings(tokens: Tokenizer, items: Sequence[Item]) -> list[Spellings]:
    """Per item, what the tokenizer makes of each option's number."""
    known = {codes: tokens.option_tokens(codes) for codes in {item.codes for item in items}}
    return [known[item.codes] for item in items]
