"""Who writes the replies to requests for questions: a model through one queue, or any function.

Requests may be sent at any time, and replies come back in whatever order they are finished, so that
a topic whose round is complete goes on while others still write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from jaxalign.lm.constrain import Constraint
from jaxalign.lm.decode_queue import DecodeQueue
from jaxalign.lm.generate import Sampling, open_queue
from jaxalign.lm.model import LM
from jaxalign.prompts import Message

_log = logging.getLogger("jaxalign")

Reply = str | bytes | None  # None: the conversation is too long to be asked


class Writer(Protocol):
    """Takes conversations, each with a number below 2^32 that its randomness must follow."""

    def send(self, conversations: Sequence[list[Message]], ids: Sequence[int]) -> None:
        """Take conversations to reply to."""

    def receive(self) -> list[tuple[int, Reply]]:
        """Wait for replies; return (id, reply) of at least one, if any is still to come."""

    def finish(self) -> None:
        """Be told that nothing more will be sent, after every reply was received."""


class FunctionWriter:
    """A writer whose replies are a function's.

    Args:
        write: Returns the replies to conversations, given these and their ids.
        at_once: Largest number of conversations handed to it at a time.
    """

    def __init__(
        self,
        write: Callable[[list[list[Message]], list[int]], Sequence[Reply]],
        at_once: int = 256,
    ) -> None:
        self._write, self._at_once = write, at_once
        self._waiting: list[tuple[list[Message], int]] = []

    def send(self, conversations: Sequence[list[Message]], ids: Sequence[int]) -> None:
        """Take conversations to reply to."""
        self._waiting += zip(conversations, ids, strict=True)

    def receive(self) -> list[tuple[int, Reply]]:
        """Return the replies to the first conversations that wait."""
        now, self._waiting = self._waiting[: self._at_once], self._waiting[self._at_once :]
        ids = [number for _, number in now]
        replies = self._write([conversation for conversation, _ in now], ids) if now else []
        return list(zip(ids, replies, strict=True))

    def finish(self) -> None:
        """Do nothing."""


class ModelWriter:
    """A writer that samples its replies from a model.

    Args:
        lm: The model.
        sampling: How replies are sampled.
        seed: Seed of the replies.
        batch_size: Number of replies written at a time.
        replies: About how many there will be.
        positions: Tokens of a request and its reply that caches are made for. Longer ones wait
            until the others are done and larger caches can be made.
        constraint: The form that replies are held to.
    """

    def __init__(
        self,
        lm: LM,
        sampling: Sampling,
        seed: int,
        batch_size: int | None,
        replies: int,
        positions: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self._lm, self._sampling, self._seed = lm, sampling, seed
        self._batch_size, self._replies, self._positions = batch_size, replies, positions
        self._constraint = constraint
        self._queue: DecodeQueue | None = None
        self._too_long: list[tuple[int, Reply]] = []
        self._later: list[tuple[int, list[int]]] = []

    def send(self, conversations: Sequence[list[Message]], ids: Sequence[int]) -> None:
        """Take conversations to reply to."""
        room = self._lm.config.max_position_embeddings
        for conversation, number in zip(conversations, ids, strict=True):
            prompt = self._lm.tokenizer.encode_chat(conversation)
            needed = len(prompt) + self._sampling.max_new_tokens
            if needed > room:
                self._too_long.append((number, None))
            elif self._queue is not None and needed <= self._queue.positions:
                self._queue.add(number, prompt, number)
            else:
                self._later.append((number, prompt))

    def receive(self) -> list[tuple[int, Reply]]:
        """Return the replies that are finished next, and None for conversations without room."""
        refused, self._too_long = self._too_long, []
        if refused:
            return refused
        if self._later and not (self._queue and len(self._queue)):
            self._open()
        if self._queue is None:
            return []
        decode = self._lm.tokenizer.decode
        return [(number, decode(tokens)) for number, tokens in self._queue.receive()]

    def finish(self) -> None:
        """Log how busy the device was, and free the caches."""
        if self._queue is not None:
            _log.debug("questions written: %s", self._queue.counts)
        self._queue = None

    def _open(self) -> None:
        """Make a queue whose caches hold every conversation that waits."""
        longest = max(len(prompt) for _, prompt in self._later) + self._sampling.max_new_tokens
        self._positions = max(self._positions, longest)
        counts = None if self._queue is None else self._queue.counts
        self._queue = None  # its caches are freed before the larger ones are made
        self._queue = open_queue(
            self._lm.config,
            self._lm.params,
            self._sampling,
            self._lm.tokenizer.stop_ids,
            self._seed,
            replies=self._replies,
            batch_size=self._batch_size,
            positions=min(self._positions, self._lm.config.max_position_embeddings),
            mesh=self._lm.mesh,
            constraint=self._constraint,
        )
        if counts is not None:
            self._queue.counts = counts
        for number, prompt in self._later:
            self._queue.add(number, prompt, number)
        self._later = []
