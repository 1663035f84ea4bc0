"""Which examples an optimiser step sees: a pure function of the key and the step's number.

Every adapter has its own examples, in its own order, with its own number of steps; a step of all of
them is one `Batch` [K, G, B, T]: K adapters, G passes whose gradients are summed, B rows of T
tokens in each. A step is cut by examples, as papers state it, and packed into as many rows as it
needs. Nothing is remembered between steps, so to resume is to go on counting.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.training.packing import Batch, Example, answer_count, check_lengths, fill, pack

_START, _ORDER = 1, 2  # what a key is used for; folded in, so that the uses are independent
_MULTIPLE = 64  # of tokens, that a row's length is rounded up to
_SHORT = 2048  # a row of so many tokens spends as much on attention as on the rest, or less
_SAMPLE = 40  # steps that row lengths are compared on


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a `Batch`: [adapters, passes, rows, row_length], `answers` a row. `passes` is
    the most that a step needs; a step that needs fewer does fewer."""

    adapters: int
    passes: int
    rows: int
    row_length: int
    answers: int

    @property
    def batch(self) -> Batch:
        """`jax.ShapeDtypeStruct`s of a step's batch."""
        lead = (self.adapters, self.passes, self.rows)
        token = jax.ShapeDtypeStruct((*lead, self.row_length), np.int32)
        answer = jax.ShapeDtypeStruct((*lead, self.answers), np.int32)
        weight = jax.ShapeDtypeStruct((*lead, self.answers), np.float32)
        return Batch(token, token, token, answer, answer, weight)


def adapter_key(seed: int, name: str) -> jax.Array:
    """The key of the adapter `name`, whatever other adapters are trained beside it."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def start_key(key: jax.Array) -> jax.Array:
    """What an adapter's initial values are drawn with."""
    return jax.random.fold_in(key, _START)


def epoch_order(key: jax.Array, epoch: int, count: int) -> np.ndarray:
    """The order of `count` examples in an epoch, int [count]."""
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return np.asarray(jax.random.permutation(key, count))


class Stream:
    """The examples of one adapter, `batch` of them a step; an epoch's last step may have fewer."""

    def __init__(self, examples: Sequence[Example], key: jax.Array, batch: int, epochs: int):
        self._examples, self._batch = examples, batch
        self._per_epoch = math.ceil(len(examples) / batch)
        self.steps = epochs * self._per_epoch
        self._order = functools.lru_cache(2)(lambda n: epoch_order(key, n, len(examples)))

    def step(self, step: int) -> list[Example]:
        """The examples of step `step`, counted from 0; none after the last."""
        if step >= self.steps:
            return []
        epoch, place = divmod(step, self._per_epoch)
        chosen = self._order(epoch)[place * self._batch : (place + 1) * self._batch]
        return [self._examples[i] for i in chosen]


class TrainData:
    """Examples of several adapters by name, as steps of one shape.

    Args:
      examples: at least one for every adapter.
      keys: of the adapters, in the same order.
      batch: examples per step and adapter.
      row_length: tokens; None takes the length that wastes the fewest.
      tokens_per_pass: how many an adapter's pass may hold on one device of `data_devices`; sets
        what a pass needs in memory, and not the result.

    Raises UserError for no examples, and for some longer than a row.
    """

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        keys: Sequence[jax.Array],
        batch: int,
        epochs: int = 1,
        row_length: int | None = None,
        tokens_per_pass: int = 8192,
        data_devices: int = 1,
    ):
        for name, some in examples.items():
            if not some:
                raise UserError(f"no examples to train {name!r} on")
        self.names = tuple(examples)
        self._streams = [
            Stream(some, key, batch, epochs)
            for some, key in zip(examples.values(), keys, strict=True)
        ]
        self.steps_K = np.array([stream.steps for stream in self._streams], np.int32)
        self.steps = int(self.steps_K.max())
        everything = [example for some in examples.values() for example in some]
        if row_length is None:
            row_length = self._best_length(max(len(e.tokens) for e in everything))
        check_lengths(everything, row_length)
        self.shape = self._shape(row_length, tokens_per_pass, data_devices)

    def examples(self, step: int) -> list[list[Example]]:
        """Of each adapter, those of step `step`; none where the adapter has finished."""
        return [stream.step(step) for stream in self._streams]

    def batch(self, step: int) -> tuple[Batch, int]:
        """numpy arrays [K, G, B, T or A] of step `step`, and how many of the G passes it needs."""
        s = self.shape
        packed = [pack(examples, s.row_length) for examples in self.examples(step)]
        filled = [fill(rows, s.passes * s.rows, s.row_length, s.answers) for rows in packed]
        shaped = jax.tree.map(
            lambda *xs: np.stack([x.reshape(s.passes, s.rows, -1) for x in xs]), *filled
        )
        return shaped, math.ceil(max(map(len, packed)) / s.rows)

    def _best_length(self, longest: int) -> int:
        """Of a few lengths from the longest example's on, the one whose rows cost the least."""
        shortest = math.ceil(longest / _MULTIPLE) * _MULTIPLE
        lengths = [
            math.ceil(shortest * n / (4 * _MULTIPLE)) * _MULTIPLE for n in (4, 5, 6, 8, 12, 16)
        ]
        steps = range(0, self.steps, math.ceil(self.steps / _SAMPLE))
        chunks = [examples for step in steps for examples in self.examples(step)]

        def cost(length: int) -> float:
            rows = sum(len(pack(examples, length)) for examples in chunks)
            return rows * length * (1 + length / _SHORT)

        return min(lengths, key=cost)

    def _shape(self, row_length: int, tokens_per_pass: int, data_devices: int) -> Shape:
        """Room for the largest step. Rows of a pass are a multiple of the devices they are on."""
        most_rows = most_answers = 0
        for step in range(self.steps):
            for examples in self.examples(step):
                rows = pack(examples, row_length)
                most_rows = max(most_rows, len(rows))
                most_answers = max(most_answers, *map(answer_count, rows), 0)
        per_device = max(1, tokens_per_pass // row_length)
        rows = data_devices * min(per_device, math.ceil(most_rows / data_devices))
        return Shape(
            len(self._streams), math.ceil(most_rows / rows), rows, row_length, most_answers
        )
