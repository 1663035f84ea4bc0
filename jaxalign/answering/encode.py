"""Encode very many conversations quickly: each lead-in once, and each question once.

18 countries x 13,000 questions are 234,000 conversations. A tokenizer treats the text on either
side of a special token separately, so a conversation is the tokens of its lead-in followed by those
of its question.
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
    tokenizer: Tokenizer,
    prompts: Prompts,
    lead_ins: Sequence[Sequence[Message]],
    items: Sequence[Item],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Conversations:
    """Encode questions after lead-ins.

    Args:
        tokenizer: the model's tokenizer and chat template.
        prompts: the texts that word a question.
        lead_ins: messages that stand before a question.
        items: the questions.
        pairs: which question is asked after which lead-in, as positions (lead-in, item); default:
            every question after every lead-in, lead-in by lead-in.

    Raises:
        UserError: if there is nothing to ask, or the chat template words a question differently
            after another lead-in.
    """
    if not items or not lead_ins:
        raise UserError(f"{len(items)} questions after {len(lead_ins)} lead-ins: nothing to ask")
    # A question's tokens begin at the last special token that all questions have in common.
    conversations = [_chat(tokenizer, [*lead_ins[0], prompts.user(item)]) for item in items]
    start = _last_special(tokenizer, conversations)
    questions = [conversation[start:] for conversation in conversations]
    encoded_lead_ins = []
    for lead_in in lead_ins:
        first, last = (
            _chat(tokenizer, [*lead_in, prompts.user(item)]) for item in (items[0], items[-1])
        )
        before = first[: max(0, len(first) - len(questions[0]))]
        for conversation, question in ((first, questions[0]), (last, questions[-1])):
            if not np.array_equal(conversation, np.concatenate([before, question])):
                raise UserError(
                    f"{tokenizer.folder}: its chat template words a question differently after "
                    "another lead-in; give a template that does not"
                )
        encoded_lead_ins.append(before)
    if pairs is None:
        pairs = [(p, q) for p in range(len(lead_ins)) for q in range(len(items))]
    return Conversations(encoded_lead_ins, questions, option_spellings(tokenizer, items), pairs)


def _chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    return np.asarray(tokenizer.encode_chat(messages), np.int32)


def _last_special(tokenizer: Tokenizer, conversations: Sequence[np.ndarray]) -> int:
    """Return the position of the last special token before the conversations first differ."""
    special = set(tokenizer.tokenizer.get_added_vocab().values())
    first, shared = conversations[0], min(map(len, conversations)) - 1
    for other in conversations:
        differ = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return max((i for i in range(shared) if int(first[i]) in special), default=0)
