"""One queue of prompts for a fixed number of slots: the host's side of decoding.

The device programs (`jaxalign.lm.decode_loop`) know slots only. Here prompts wait until a slot is
free, finished replies are collected, and freed slots are filled again while the others go on
(continuous batching, as in Orca, Yu et al. 2022). A slot keeps its prompt's keys after the reply,
so a prompt that begins like one of those in the slots copies that beginning, in whole pieces, and a
prompt that is there already is not computed again.

None of this enters a reply: a prompt's pieces lie on a grid of its own, and its random key comes
from seed, id and sample.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Hashable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.lm.bits import as_bits
from jaxalign.lm.constrain import Constraint
from jaxalign.lm.decode_cache import PIECE, SHARES
from jaxalign.lm.decode_loop import (
    SEGMENT,
    Report,
    SlotShape,
    empty_slots,
    end_program,
    fork_program,
    prefill_program,
    prefill_sizes,
    segment_program,
    start_program,
)
from jaxalign.lm.weights import Params
from jaxalign.runtime.sharding import replicated

_WHOLE = b"whole"  # marks the key of a prompt that is in a slot to its last token


@dataclasses.dataclass
class DecodeCounts:
    """What a queue has done so far."""

    replies: int = 0
    new_tokens: int = 0
    steps: int = 0
    rows_decoded: int = 0  # rows of all decode steps, those of free slots included
    rows_useful: int = 0  # rows that wrote a token of a reply
    prefill_tokens: int = 0
    prefill_padding: int = 0  # computed beside them: ends of pieces, and padding pieces
    shared_tokens: int = 0  # copied from another slot instead

    def __str__(self) -> str:
        """Return one line for the log."""
        rows, useful = self.rows_decoded, self.rows_useful
        share = f" ({100 * useful / rows:.0f} % useful)" if rows else ""
        prompts = self.prefill_tokens + self.shared_tokens
        return (
            f"{self.replies:,} replies, {self.new_tokens:,} tokens: {rows:,} rows decoded in "
            f"{self.steps:,} steps{share}; {self.prefill_tokens:,} of {prompts:,} prompt tokens "
            f"prefilled, {self.shared_tokens:,} shared, {self.prefill_padding:,} padding"
        )


@dataclasses.dataclass(eq=False)
class _Reply:
    """A reply that is waited for, and where it is written once it has a slot."""

    name: Hashable
    prompt: np.ndarray  # int32 [n]
    id: int
    sample: int
    share: int = -1
    slot: int = -1
    source: int = -1  # the slot that its first `shared` tokens are copied from
    shared: int = 0
    after: _Reply | None = None  # the reply that fills `source` in the same round
    in_cache: bool = False  # whether the whole prompt is

    def beginnings(self) -> list[bytes]:
        """Return a key for every beginning in whole pieces, and one for the whole prompt."""
        whole = self.prompt.tobytes()
        size = PIECE * self.prompt.itemsize
        return [*(whole[:end] for end in range(size, len(whole) + 1, size)), whole + _WHOLE]


class DecodeQueue:
    """Prompts in, replies out, in the order in which they are finished.

    Args:
        shape: The shapes of the programs.
        params: The weights, on the shape's mesh.
        stop_tokens: Token ids that end a reply.
        seed: In [0, 2^32).
        extra_ExD: Embeddings beyond the vocabulary, in the dtype of activations.
        constraint: The form that replies are held to, if `shape.constrained`.
    """

    def __init__(
        self,
        shape: SlotShape,
        params: Params,
        stop_tokens: Sequence[int],
        seed: int,
        extra_ExD: np.ndarray | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.counts = DecodeCounts()
        self._shape, self._params = shape, as_bits(params)
        self._whole = replicated(shape.mesh)
        self._split = NamedSharding(shape.mesh, PartitionSpec(SHARES))
        self._stops = frozenset(int(token) for token in stop_tokens)
        self._stop = self._everywhere(np.asarray(list(stop_tokens), np.int32))
        self._seed = self._everywhere(np.uint32(seed))
        self._constraint = jax.tree.map(self._everywhere, constraint)
        self._waiting: collections.deque[_Reply] = collections.deque()
        self._writing: dict[tuple[int, int], _Reply] = {}  # by share and slot
        self._slots = empty_slots(shape)
        self._report: Report | None = None  # of the last segment
        self.renew(extra_ExD)

    def renew(self, extra_ExD: np.ndarray | None) -> None:
        """Take other embeddings beyond the vocabulary, and forget all prompts and replies.

        The queue then goes on like a new one with the same programs.

        Args:
            extra_ExD: As many rows as before, in the dtype of activations.
        """
        self._waiting.clear()
        if self._writing:  # whoever waited for them has given up
            self._slots = end_program(
                self._shape, self._slots, self._spread(np.ones(self.slots, np.bool_))
            )
            self._writing.clear()
        self._extra = () if extra_ExD is None else (self._everywhere(extra_ExD),)
        shares = range(self._shape.shares)
        self._free = [collections.deque(range(self._shape.slots)) for _ in shares]
        # What is in the slots: key of a beginning -> the prompts that have it, oldest first; and
        # the prompt in each slot.
        self._beginnings: list[dict[bytes, dict[_Reply, None]]] = [{} for _ in shares]
        self._held: dict[tuple[int, int], _Reply] = {}

    def __len__(self) -> int:
        """Return the number of replies that are not finished."""
        return len(self._waiting) + len(self._writing)

    @property
    def slots(self) -> int:
        """Number of replies that are written at a time, on all devices."""
        return self._shape.slots * self._shape.shares

    @property
    def positions(self) -> int:
        """Largest number of tokens of a prompt and its reply."""
        return self._shape.positions

    def add(self, name: Hashable, prompt: Sequence[int], number: int, sample: int = 0) -> None:
        """Put a prompt at the end of the queue.

        Args:
            name: What `receive` returns with the reply.
            prompt: Token ids; with the reply at most `shape.positions`.
            number: In [0, 2^32), from which the random key is derived.
            sample: Number of the reply among those to this prompt, likewise.
        """
        self._waiting.append(_Reply(name, np.asarray(prompt, np.int32), number, sample))

    def receive(self) -> list[tuple[Hashable, list[int]]]:
        """Decode until a reply is finished; return (name, tokens) of those that are.

        Without the stop token; an empty list if nothing is left.
        """
        finished: list[tuple[Hashable, list[int]]] = []
        while not finished and len(self):
            finished = self.step()
        return finished

    def step(self, steps: int = SEGMENT) -> list[tuple[Hashable, list[int]]]:
        """Decode a few steps; return (name, tokens) of the replies that are finished, if any.

        Args:
            steps: Tokens that each reply grows by, at most; at most `SEGMENT`.
        """
        self._admit()
        self._report = self._decode(steps)
        return self._collect(self._report)

    def prefill(self) -> None:
        """Give free slots to waiting prompts, and wait until their first tokens are drawn.

        `step` begins with the same, but does not wait; this is for timing them apart.
        """
        self._admit()
        jax.block_until_ready(self._slots)

    def written(self) -> dict[Hashable, list[int]]:
        """Return the tokens so far of the replies that are being written, by name."""
        rows = {
            reply.name: share * self._shape.slots + slot
            for (share, slot), reply in self._writing.items()
        }
        report = self._report
        return {n: report.tokens_BxG[row, : report.step_B[row]].tolist() for n, row in rows.items()}

    def end(self, names: Collection[Hashable]) -> list[tuple[Hashable, list[int]]]:
        """End some of the replies that `written` returns; return (name, tokens) of these."""
        if not names:
            return []
        ended_B = np.zeros(self.slots, np.bool_)
        for (share, slot), reply in self._writing.items():
            ended_B[share * self._shape.slots + slot] = reply.name in names
        self._slots = end_program(self._shape, self._slots, self._spread(ended_B))
        live_B = np.asarray(self._report.live_B) & ~ended_B
        return self._collect(self._report.replace(live_B=live_B))

    def _admit(self) -> None:
        """Give free slots to waiting prompts, and bring the prompts into the cache."""
        admitted = []
        while self._waiting and any(self._free):
            reply = self._waiting.popleft()
            self._place(reply)
            admitted.append(reply)
        # In waves: a prompt whose beginning is computed for another one waits for that.
        while admitted:
            ready = [r for r in admitted if r.after is None or r.after.in_cache]
            admitted = [r for r in admitted if r not in ready]
            self._fork([r for r in ready if r.shared and r.source != r.slot])
            self._prefill([r for r in ready if r.shared < len(r.prompt)])
            self._start(ready)
            for reply in ready:
                reply.in_cache, reply.after = True, None

    def _place(self, reply: _Reply) -> None:
        """Choose a slot, and the slot that has most of the prompt already."""
        keys = reply.beginnings()
        with_room = [share for share, free in enumerate(self._free) if free]
        # Where the whole prompt is, else where there is most room.
        share = max(
            with_room, key=lambda s: (keys[-1] in self._beginnings[s], len(self._free[s]), -s)
        )
        known = self._beginnings[share]
        n = len(reply.prompt)
        # At least the last token is computed, because the reply starts from its stream, unless the
        # whole prompt is there.
        found, reply.shared = (len(keys), n) if keys[-1] in known else (0, 0)
        if not found:
            found = (n - 1) // PIECE
            while found and keys[found - 1] not in known:
                found -= 1
            reply.shared = found * PIECE
        if found:
            held = min(known[keys[found - 1]], key=lambda r: not r.in_cache)
            reply.source, reply.after = held.slot, None if held.in_cache else held
            self.counts.shared_tokens += reply.shared
        # The slot's last prompt is no longer there for others.
        reply.share, reply.slot = share, self._free[share].popleft()
        at = share, reply.slot
        if at in self._held:
            gone = self._held[at]
            for key in gone.beginnings():
                del known[key][gone]
                if not known[key]:
                    del known[key]
        self._held[at] = self._writing[at] = reply
        for key in keys:
            known.setdefault(key, {})[reply] = None

    def _fork(self, replies: Sequence[_Reply]) -> None:
        for round_ in self._rounds(replies, self._shape.starts):
            source, target, tokens = self._table(3, self._shape.starts)
            for row, reply in round_:
                source[row], target[row], tokens[row] = reply.source, reply.slot, reply.shared
            arguments = map(self._spread, (source, target, tokens))
            self._slots = fork_program(self._shape, self._slots, *arguments)

    def _prefill(self, replies: Sequence[_Reply]) -> None:
        pieces = [
            (reply, start)
            for reply in replies
            for start in range(reply.shared, len(reply.prompt), PIECE)
        ]
        most, fewer = prefill_sizes(self._shape)
        while pieces:
            longest = max(collections.Counter(r.share for r, _ in pieces).values())
            # A call of the larger size that is less than half full costs more than some small ones.
            rows = most if longest > most // 2 else fewer
            now, pieces = self._first(pieces, rows)
            tokens = np.zeros((rows * self._shape.shares, PIECE), np.int32)
            slot, start, last = self._table(3, rows)
            slot[:], last[:] = self._shape.slots, -1
            for row, (reply, begin) in now:
                piece = reply.prompt[begin : begin + PIECE]
                tokens[row, : len(piece)] = piece
                slot[row], start[row] = reply.slot, begin
                if begin + PIECE >= len(reply.prompt):
                    last[row] = len(piece) - 1
                self.counts.prefill_tokens += len(piece)
                self.counts.prefill_padding -= len(piece)
            self.counts.prefill_padding += tokens.size
            arguments = map(self._spread, (tokens, slot, start, last))
            self._slots = prefill_program(
                self._shape, self._params, self._slots, *arguments, *self._extra
            )

    def _start(self, replies: Sequence[_Reply]) -> None:
        for round_ in self._rounds(replies, self._shape.starts):
            slot, length, sample = self._table(3, self._shape.starts)
            slot[:], number = self._shape.slots, np.zeros(len(slot), np.uint32)
            for row, reply in round_:
                slot[row], length[row] = reply.slot, len(reply.prompt)
                number[row], sample[row] = reply.id, reply.sample
            arguments = map(self._spread, (slot, length, number, sample))
            self._slots = start_program(
                self._shape,
                self._params,
                self._slots,
                *arguments,
                self._seed,
                self._stop,
                self._constraint,
            )

    def _decode(self, steps: int) -> Report:
        """Run one segment of at most `steps` decode steps."""
        shape = self._shape
        writing = collections.Counter(share for share, _ in self._writing)
        # While prompts wait every slot is in use; towards the end, fewer rows may hold the rest.
        rows = min(rows for rows in shape.decode_rows if rows >= max(writing.values()))
        (row_slots,) = self._table(1, rows)
        for share in range(shape.shares):
            # The slots in use first, so that they are among the rows.
            used = [(share, slot) not in self._writing for slot in range(shape.slots)]
            row_slots[share * rows :][:rows] = np.argsort(used, kind="stable")[:rows]
        everything = shape.slots * shape.shares
        # A few slots are refilled together: each refill costs a look of the host and a prefill.
        enough = max(1, everything // 16) if self._waiting else everything + 1
        self._slots, report = segment_program(
            shape,
            rows,
            self._params,
            self._slots,
            self._spread(row_slots),
            self._everywhere(np.int32(steps)),
            self._everywhere(np.int32(enough)),
            self._stop,
            self._constraint,
        )
        report = jax.device_get(report)
        self.counts.steps += int(report.steps)
        self.counts.rows_decoded += int(report.steps) * rows * shape.shares
        return report

    def _collect(self, report: Report) -> list[tuple[Hashable, list[int]]]:
        """Free the slots of finished replies and return those."""
        finished = []
        for (share, slot), reply in list(self._writing.items()):
            row = share * self._shape.slots + slot
            if report.live_B[row]:
                continue
            tokens = report.tokens_BxG[row, : report.step_B[row]].tolist()
            self.counts.replies += 1
            self.counts.new_tokens += len(tokens)
            self.counts.rows_useful += len(tokens) - 1  # the first one came from the prompt
            if tokens[-1] in self._stops:
                tokens.pop()
            finished.append((reply.name, tokens))
            del self._writing[share, slot]
            self._free[share].append(slot)
        return finished

    def _rounds(self, replies: Sequence[_Reply], rows: int) -> Iterator[list[tuple[int, _Reply]]]:
        """Yield (row, reply) of each call that takes `rows` replies on each share, in order."""
        left = [(reply, 0) for reply in replies]
        while left:
            now, left = self._first(left, rows)
            yield [(row, reply) for row, (reply, _) in now]

    def _first(
        self, work: Sequence[tuple[_Reply, int]], rows: int
    ) -> tuple[list[tuple[int, tuple[_Reply, int]]], list[tuple[_Reply, int]]]:
        """Split work into what the shares do in one call, with its rows, and the rest."""
        taken: collections.Counter[int] = collections.Counter()
        now, rest = [], []
        for entry in work:
            share = entry[0].share
            if taken[share] < rows:
                now.append((share * rows + taken[share], entry))
                taken[share] += 1
            else:
                rest.append(entry)
        return now, rest

    def _table(self, columns: int, rows: int) -> list[np.ndarray]:
        return [np.zeros(rows * self._shape.shares, np.int32) for _ in range(columns)]

    def _spread(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self._split)

    def _everywhere(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self._whole)
