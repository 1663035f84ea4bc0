"""Conversations as tokens, quickly: a lead-in is encoded once, and so is a question.

18 countries x 13,000 questions are 234,000 conversations. Text on either side of a special token
is tokenised apart, so a conversation is the tokens of its lead-in and those of its question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.answering.blocks import Conversations
from jaxalign.answering.conversations import option_spellings
from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.survey import Item


def encode(
    tokens: Tokenizer,
    prompts: Prompts,
    lead_ins: Sequence[Sequence[Message]],
    items: Sequence[Item],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Conversations:
    """Each question after each lead-in, lead-in by lead-in; or `pairs` of their positions only.

    Raises UserError where there is nothing to ask, and for a chat template that words a question
    differently after another lead-in.
    """
    if not items or not lead_ins:
        raise UserError(f"{len(items)} questions after {len(lead_ins)} lead-ins: nothing to ask")
    whole = [_chat(tokens, [*lead_ins[0], prompts.user(item)]) for item in items]
    at = _last_special(tokens, whole)
    questions = [conversation[at:] for conversation in whole]
    found = []
    for lead_in in lead_ins:
        first, last = (_chat(tokens, [*lead_in, prompts.user(i)]) for i in (items[0], items[-1]))
        before = first[: max(0, len(first) - len(questions[0]))]
        for conversation, question in ((first, questions[0]), (last, questions[-1])):
            if not np.array_equal(conversation, np.concatenate([before, question])):
                raise UserError(
                    f"{tokens.folder}: its chat template words a question differently after "
                    "another lead-in; give a template that does not"
                )
        found.append(before)
    if pairs is None:
        pairs = [(p, q) for p in range(len(lead_ins)) for q in range(len(items))]
    return Conversations(found, questions, option_spellings(tokens, items), pairs)


def _chat(tokens: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    return np.asarray(tokens.encode_chat(messages), np.int32)


def _last_special(tokens: Tokenizer, conversations: Sequence[np.ndarray]) -> int:
    """Where the last special token stands that all conversations have in common."""
    special = set(tokens.tokenizer.get_added_vocab().values())
    first, shared = conversations[0], min(map(len, conversations)) - 1
    for other in conversations:
        differ = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return max((i for i in range(shared) if int(first[i]) in special), default=0)
