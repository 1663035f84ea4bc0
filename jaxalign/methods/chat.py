"""A conversation with one model under several conditions at a time, all replies side by side.

Each condition is a column with a conversation of its own: what the model said under a persona is
answered on under that persona. The weights are loaded once; columns without an adapter, and those
with the same one, are decoded together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from jaxalign.answering.conversations import split_at_soft_prompt
from jaxalign.core.errors import UserError
from jaxalign.lm import generate as decoding
from jaxalign.lm.model import LM
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.ask import adapted_params
from jaxalign.methods.base import Condition
from jaxalign.prompts import Message, Prompts, load_prompts

# Positions of the caches of a conversation, at least: programs are compiled anew for longer ones.
_ROOM = 512

# Called with the texts of all replies as far as they are written.
OnText = Callable[[Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: The reply, without the token that ends it.
        tokens: Number of tokens, without that one.
        complete: Whether the model ended it itself; False if it was cut off at the largest number.
    """

    text: str
    tokens: int
    complete: bool


def reply_side_by_side(
    lm: LM,
    messages: str | Sequence[Message] | Sequence[Sequence[Message]],
    conditions: Sequence[Condition],
    *,
    prompts: Prompts | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    turn: int = 0,
    positions: int = 0,
    on_text: OnText | None = None,
) -> list[Reply]:
    """Return a model's replies under several conditions.

    In float32 a reply is the same whatever the other conditions are.

    Args:
        lm: The model.
        messages: What the user says; or a conversation that ends with the user's message; or one
            conversation for each condition.
        conditions: Personas, examples, soft prompts and adapters, in any number and order.
        prompts: The texts that word personas and examples; default: the model's, else the
            package's.
        sampling: How tokens are drawn, and how many at most; default: always the most likely one.
        seed: Decides what is drawn, together with `turn`; equal draws for all conditions.
        turn: Number of the reply in its conversation.
        positions: Tokens of a conversation and its reply that caches are made for, if that is more
            than these need: calls with the same value share their compiled programs.
        on_text: Called every few tokens with the texts so far, one for each condition.

    Returns:
        One reply for each condition.

    Raises:
        UserError: If a soft prompt is made for another model, if a conversation and the reply do
            not fit into the model's positions, or a number is out of range.

    >>> import jaxalign as ja
    >>> lm = ja.pocket_model()
    >>> asked = "Is family important in your life?"
    >>> few = Sampling(max_new_tokens=8, temperature=0.0)
    >>> replies = reply_side_by_side(lm, asked, [ja.Plain(), ja.Persona("CHN")], sampling=few)
    >>> len(replies), replies[0].tokens
    (2, 8)
    """
    prompts = load_prompts(model_folder=lm.folder) if prompts is None else prompts
    sampling = Sampling(max_new_tokens=256, temperature=0.0) if sampling is None else sampling
    if not 0 <= turn < 2**32:
        raise UserError(f"`turn` {turn}: must be at least 0 and below 2^32")
    conversations = _conversations(messages, len(conditions))
    columns: dict[int, list[int]] = {}  # those with the same adapter
    for column, condition in enumerate(conditions):
        columns.setdefault(id(condition.adapter), []).append(column)
    # All are encoded and checked before the first is answered.
    encoded = [
        _encode(lm, prompts, [(conditions[i], conversations[i]) for i in group], sampling)
        for group in columns.values()
    ]
    decode, texts = lm.tokenizer.decode, [""] * len(conditions)
    replies: dict[int, Reply] = {}
    for group, (tokens, extra_ExD) in zip(columns.values(), encoded, strict=True):

        def show(written: Mapping[int, Sequence[int]], group: Sequence[int] = group) -> None:
            for row, ids in written.items():
                # Half of a character shows as a replacement mark until its other half is there.
                texts[group[row]] = decode(ids).rstrip("\ufffd")
            cast(OnText, on_text)(tuple(texts))

        found = decoding.generate(
            lm.config,
            adapted_params(lm, conditions[group[0]]),
            tokens,
            sampling,
            lm.tokenizer.stop_ids,
            seed=seed,
            ids=[turn] * len(group),
            batch_size=len(group),
            mesh=lm.mesh,
            extra_embeddings=extra_ExD,
            positions=positions,
            on_tokens=None if on_text is None else show,
        )
        for column, ids in zip(group, found, strict=True):
            ended = len(ids) < sampling.max_new_tokens
            texts[column] = decode(ids)
            replies[column] = Reply(texts[column], len(ids), ended)
    return [replies[column] for column in range(len(conditions))]


@dataclasses.dataclass
class Chat:
    """A conversation that is kept under every condition.

    Attributes:
        lm: The model.
        conditions: What it is spoken to under, one for each column.
        sampling: How tokens are drawn, and how many at most.
        seed: Decides what is drawn.
        prompts: The texts that word personas and examples; default: the model's, else the
            package's.
        conversations: What has been said in each column.

    >>> import jaxalign as ja
    >>> chat = Chat(ja.pocket_model(), [ja.Plain(), ja.Persona("CHN")], Sampling(8, 0.0))
    >>> replies = chat.say("Is family important in your life?")
    >>> [message["role"] for message in chat.conversations[1]]
    ['user', 'assistant']
    """

    lm: LM
    conditions: Sequence[Condition]
    sampling: Sampling
    seed: int = 0
    prompts: Prompts | None = None
    conversations: list[list[Message]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.conversations:
            self.reset()

    def say(self, text: str, on_text: OnText | None = None) -> list[Reply]:
        """Say something in every column, and return the replies.

        Args:
            text: The user's message.
            on_text: Called every few tokens with the texts so far.

        Raises:
            UserError: If a conversation has become too long; they are left as they were.
        """
        said: Message = {"role": "user", "content": text}
        longest = self.lm.config.max_position_embeddings
        replies = reply_side_by_side(
            self.lm,
            [[*conversation, said] for conversation in self.conversations],
            self.conditions,
            prompts=self.prompts,
            sampling=self.sampling,
            seed=self.seed,
            turn=len(self.conversations[0]) // 2,
            positions=min(_ROOM, longest),
            on_text=on_text,
        )
        for conversation, reply in zip(self.conversations, replies, strict=True):
            conversation += [said, {"role": "assistant", "content": reply.text}]
        return replies

    def reset(self) -> None:
        """Forget what has been said."""
        self.conversations = [[] for _ in self.conditions]


def _conversations(
    messages: str | Sequence[Message] | Sequence[Sequence[Message]], conditions: int
) -> list[list[Message]]:
    """Return one conversation for each condition."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not messages or isinstance(messages[0], Mapping):
        return [list(cast(Sequence[Message], messages))] * conditions
    if len(messages) != conditions:
        raise UserError(f"`messages`: {len(messages)} conversations for {conditions} conditions")
    return [list(cast(Sequence[Message], conversation)) for conversation in messages]


def _encode(
    lm: LM,
    prompts: Prompts,
    asked: Sequence[tuple[Condition, list[Message]]],
    sampling: Sampling,
) -> tuple[list[list[int]], np.ndarray | None]:
    """Return conversations as token ids, and the embeddings of their soft prompts.

    Ids past the vocabulary stand for rows of the embeddings, float32 [E, D]; None without any.
    """
    config, tokens = lm.config, []
    soft_prompts: list[np.ndarray] = []
    for condition, messages in asked:
        conversation = [*condition.lead_in(prompts), *messages]
        soft = condition.soft_prompt
        if soft is None:
            tokens.append(lm.tokenizer.encode_chat(conversation))
        else:
            soft_MxD = np.asarray(soft.embeddings_MxD, np.float32)
            if soft_MxD.shape[1] != config.hidden_size:
                raise UserError(
                    f"soft prompt of condition {condition.name!r}: its embeddings are "
                    f"{soft_MxD.shape[1]} wide and the model's {config.hidden_size}; tune it for "
                    "this model"
                )
            before, after = split_at_soft_prompt(lm.tokenizer, conversation, soft.placement)
            first = config.vocab_size + sum(map(len, soft_prompts))
            tokens.append([*before, *range(first, first + len(soft_MxD)), *after])
            soft_prompts.append(soft_MxD)
        most = config.max_position_embeddings
        if len(tokens[-1]) + sampling.max_new_tokens > most:
            raise UserError(
                f"condition {condition.name!r}: the conversation has {len(tokens[-1])} tokens, and "
                f"with `max_new_tokens` {sampling.max_new_tokens} more it exceeds "
                f"max_position_embeddings={most}; shorten one of them"
            )
    return tokens, np.concatenate(soft_prompts) if soft_prompts else None
