"""Conversations as tokens, quickly: a lead-in is encoded once, and so is a question.

18 countries x 13,000 questions are 234,000 conversations. Text on either side of a special token
is tokenised apart, so a conversation is the tokens of its lead-in and those of its question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.culturespa.blocks import Conversations
from jaxalign.culturespa.styles import Interviews, Style
from jaxalign.errors import UserError
from jaxalign.interview import option_spellings
from jaxalign.llama.tokens import Tokens
from jaxalign.prompts import Message, Prompts
from jaxalign.survey.instrument import Item

NOBODY = ("",)  # the country of a style that names none


def encode(
    tokens: Tokens,
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


def asked_of(style: Style, countries: Sequence[str]) -> tuple[str, ...]:
    """Whom a style is put to: `countries`, or nobody where it names none and is asked once."""
    return NOBODY if style == "unaware" else tuple(countries)


def encode_styles(
    tokens: Tokens,
    interviews: Interviews,
    styles: Sequence[Style],
    countries: Sequence[str],
    items: Sequence[Item],
) -> Conversations:
    """Every item in every style to every country of `asked_of`, style by style and country by
    country; a style's results reshape to [C, Q]."""
    lead_ins, pairs = [], []
    for style in styles:
        groups = interviews.groups(style, items)
        for country in asked_of(style, countries):
            place = {}
            for group in groups:
                place |= {q: len(lead_ins) for q in group}
                lead_ins.append(interviews.lead_in(style, country, items[group[0]]))
            pairs += [(place[q], q) for q in range(len(items))]
    return encode(tokens, interviews.texts.prompts, lead_ins, items, pairs)


def _chat(tokens: Tokens, messages: Sequence[Message]) -> np.ndarray:
    return np.asarray(tokens.encode_chat(messages), np.int32)


def _last_special(tokens: Tokens, conversations: Sequence[np.ndarray]) -> int:
    """Where the last special token stands that all conversations have in common."""
    special = set(tokens.tokenizer.get_added_vocab().values())
    first, shared = conversations[0], min(map(len, conversations)) - 1
    for other in conversations:
        differ = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return max((i for i in range(shared) if int(first[i]) in special), default=0)
