"""Encode very many conversations quickly: each lead-in once, and each question once.

18 countries x 13,000 questions are 234,000 conversations. A tokenizer treats the text on either
side of a special token separately, so a conversation is the tokens of its lead-in followed by those
of its question. To see that the chat template words questions alike, the first one is encoded whole
after every lead-in, and the last one after a lead-in of each kind.

Llama 2's template writes a system message into the turn of the question, so that no special token
stands between them. Questions are then encoded once for each kind of lead-in, from where they first
differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxalign.answering.blocks import Conversations
from jaxalign.answering.conversations import Placement, option_spellings, split_at_soft_prompt
from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.presentations import Shown
from jaxalign.surveys.survey import Item


@dataclasses.dataclass(frozen=True)
class SoftLeadIn:
    """A soft prompt, and messages between it and the question.

    Attributes:
        ids: token ids that stand for the soft prompt, `vocab_size + i` for row i of the embeddings
            that are given besides the model's own.
        placement: where the soft prompt stands (`split_at_soft_prompt`).
        messages: the messages.
    """

    ids: Sequence[int]
    placement: Placement
    messages: Sequence[Message] = ()


LeadIn = Sequence[Message] | SoftLeadIn
"""What stands before a question: messages, or a soft prompt and messages."""


def encode(
    tokenizer: Tokenizer,
    prompts: Prompts,
    lead_ins: Sequence[LeadIn],
    items: Sequence[Item | Shown],
    pairs: np.ndarray | Sequence[tuple[int, int]] | None = None,
) -> Conversations:
    """Encode questions after lead-ins.

    Args:
        tokenizer: the model's tokenizer and chat template.
        prompts: the texts that word a question.
        lead_ins: what stands before a question.
        items: the questions, or questions as they are shown.
        pairs: which question is asked after which lead-in, as positions (lead-in, item), int
            [N, 2]; default: every question after every lead-in, lead-in by lead-in.

    Raises:
        UserError: if there is nothing to ask, the chat template words a question differently after
            another lead-in, or a soft prompt cannot stand where it should.
    """
    if not items or not lead_ins:
        raise UserError(f"{len(items)} questions after {len(lead_ins)} lead-ins: nothing to ask")
    if pairs is None:
        every = np.indices((len(lead_ins), len(items)), np.int32)
        pairs = every.reshape(2, -1).T
    pairs = np.asarray(pairs, np.int32).reshape(-1, 2)
    asked = _Encoder(tokenizer, [prompts.user(item) for item in items])
    spellings = option_spellings(tokenizer, items)
    behind = np.array([_is_behind(lead_in) for lead_in in lead_ins])
    before = [lead_in for lead_in in lead_ins if not _is_behind(lead_in)]
    encoded, questions, starts = asked.before(before) if before else ([], [], [])
    spellings = spellings * max(1, len(questions) // len(items))
    start_of = np.zeros(len(lead_ins), np.int32)
    start_of[~behind] = starts
    moved = pairs.copy()
    moved[:, 1] += start_of[pairs[:, 0]]
    if not behind.any():
        return Conversations(encoded, questions, spellings, moved)
    return _with_prompts_behind(asked, lead_ins, (encoded, questions, spellings), behind, moved)


def _with_prompts_behind(
    asked: _Encoder,
    lead_ins: Sequence[LeadIn],
    encoded: tuple[list, list, list],
    behind: np.ndarray,
    pairs: np.ndarray,
) -> Conversations:
    """Return the conversations where some soft prompts stand behind the question.

    For those the question's text is the lead-in, which is computed once for all prompts, and what
    is asked is the prompt with the end of the message.
    """
    firsts, seconds, spellings = (list(part) for part in encoded)
    options = spellings[: len(seconds)]  # none where every prompt stands behind the question
    texts: dict[tuple, tuple[int, tuple[int, ...]]] = {}  # (messages, item) -> lead-in, tail
    prompts: dict[tuple, int] = {}  # (lead-in, tail, options) -> question
    place = np.cumsum(~behind) - 1  # among the lead-ins that stand before the question
    out = np.empty((len(pairs), 2), np.int32)
    for n, (p, q) in enumerate(pairs.tolist()):
        if not behind[p]:
            out[n] = place[p], q
            continue
        lead_in = lead_ins[p]
        content = repr(lead_in.messages), q
        if content not in texts:
            text, tail = asked.split(lead_in, q)
            texts[content] = len(firsts), tuple(tail)
            firsts.append(np.asarray(text, np.int32))
        first, tail = texts[content]
        asking = p, tail, id(spellings[q])
        if asking not in prompts:
            prompts[asking] = len(seconds)
            seconds.append(np.array([*lead_in.ids, *tail], np.int32))
            options.append(spellings[q])
        out[n] = first, prompts[asking]
    return Conversations(firsts, seconds, options, out)


class _Encoder:
    """The questions of a job, which are rendered once each."""

    def __init__(self, tokenizer: Tokenizer, questions: Sequence[Message]) -> None:
        self.tokenizer, self.questions = tokenizer, questions

    def split(self, lead_in: SoftLeadIn, q: int) -> tuple[list[int], list[int]]:
        """Return the ids before and after the soft prompt, of the conversation with question q."""
        messages = [*lead_in.messages, self.questions[q]]
        return split_at_soft_prompt(self.tokenizer, messages, lead_in.placement)

    def whole(self, lead_in: LeadIn, q: int) -> np.ndarray:
        """Return the ids of the conversation with question q, int32."""
        if isinstance(lead_in, SoftLeadIn):
            before, after = self.split(lead_in, q)
            return np.array([*before, *lead_in.ids, *after], np.int32)
        messages = [*lead_in, self.questions[q]]
        return np.array(self.tokenizer.encode_chat(messages), np.int32)

    def before(
        self, lead_ins: Sequence[LeadIn]
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
        """Return the ids of lead-ins that stand before the question, and of the questions.

        Returns:
            The lead-ins; the questions, once or once for each kind of lead-in; and the position of
            the first of a lead-in's questions.
        """
        kinds = [_kind(lead_in) for lead_in in lead_ins]
        try:
            # A question's tokens begin at the last special token that all questions have in common.
            return *self._cut(lead_ins, _last_special), [0] * len(lead_ins)
        except UserError:
            if len(lead_ins) == 1:
                raise
        encoded: dict[int, np.ndarray] = {}
        questions: list[np.ndarray] = []
        starts = dict.fromkeys(kinds, 0)
        for kind in starts:
            starts[kind] = len(questions)
            members = [p for p, other in enumerate(kinds) if other == kind]
            rows, asked = self._cut([lead_ins[p] for p in members], _first_difference)
            encoded.update(zip(members, rows, strict=True))
            questions += asked
        return [encoded[p] for p in range(len(lead_ins))], questions, [starts[k] for k in kinds]

    def _cut(
        self, lead_ins: Sequence[LeadIn], find_start: Callable[..., int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the ids of lead-ins and of questions, which begin where `find_start` says.

        Raises:
            UserError: if the tokens of a question depend on the lead-in.
        """
        conversations = [self.whole(lead_ins[0], q) for q in range(len(self.questions))]
        start = find_start(self.tokenizer, conversations)
        questions = [conversation[start:] for conversation in conversations]
        encoded, kinds = [], set()
        for lead_in in lead_ins:
            first = self.whole(lead_in, 0)
            before = first[: max(0, len(first) - len(questions[0]))]
            self._check(first, before, questions[0])
            if (kind := _kind(lead_in)) not in kinds:
                kinds.add(kind)
                self._check(self.whole(lead_in, len(questions) - 1), before, questions[-1])
            encoded.append(before)
        return encoded, questions

    def _check(self, conversation: np.ndarray, before: np.ndarray, question: np.ndarray) -> None:
        """Raise UserError unless a conversation is its lead-in followed by the question."""
        if not np.array_equal(conversation, np.concatenate([before, question])):
            raise UserError(
                f"{self.tokenizer.folder}: its chat template words a question differently after "
                "another lead-in; give a template that does not"
            )


def _kind(lead_in: LeadIn) -> tuple[object, ...]:
    """Return what a chat template may make its wording depend on: where a prompt stands, roles."""
    if isinstance(lead_in, SoftLeadIn):
        return (lead_in.placement, *_kind(lead_in.messages))
    return tuple(message["role"] for message in lead_in)


def _is_behind(lead_in: LeadIn) -> bool:
    return isinstance(lead_in, SoftLeadIn) and lead_in.placement == "after"


def _last_special(tokenizer: Tokenizer, conversations: Sequence[np.ndarray]) -> int:
    """Return the position of the last special token before the conversations first differ."""
    special = set(tokenizer.tokenizer.get_added_vocab().values())
    shared = _first_difference(tokenizer, conversations)
    return max((i for i in range(shared) if int(conversations[0][i]) in special), default=0)


def _first_difference(tokenizer: Tokenizer, conversations: Sequence[np.ndarray]) -> int:
    """Return the position where the conversations first differ, at most that of a last token."""
    first, shared = conversations[0], min(map(len, conversations)) - 1
    for other in conversations:
        differ = np.flatnonzero(first[:shared] != other[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return shared
