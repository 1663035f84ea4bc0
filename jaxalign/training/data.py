"""Decide which examples an optimiser step sees: a pure function of the key and the step's number.

Every adapter has its own examples, in its own order, with its own number of steps. One step of all
of them is a `Batch` [K, G, B, T]: K adapters, G passes whose gradients are summed, B rows of T
tokens in each. A step is a number of examples, as papers state it, packed into as many rows as it
needs. No state is kept between steps, so a resumed run only has to continue counting.
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

_START, _ORDER = 1, 2  # uses of an adapter's key; folded in, so that they are independent
_MULTIPLE = 64  # row lengths are multiples of this many tokens
# A row of this many tokens spends about as much on attention as on everything else.
_ATTENTION_BALANCE = 2048
_SAMPLED_STEPS = 40  # number of steps that row lengths are compared on


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a `Batch`: [adapters, passes, rows, row_length], with `answers` per row.

    `passes` is the most that any step needs; a step that needs fewer runs fewer.
    """

    adapters: int
    passes: int
    rows: int
    row_length: int
    answers: int

    @property
    def batch(self) -> Batch:
        """The batch of a step, as `jax.ShapeDtypeStruct`s."""
        lead = (self.adapters, self.passes, self.rows)
        token = jax.ShapeDtypeStruct((*lead, self.row_length), np.int32)
        answer = jax.ShapeDtypeStruct((*lead, self.answers), np.int32)
        weight = jax.ShapeDtypeStruct((*lead, self.answers), np.float32)
        return Batch(token, token, token, answer, answer, weight)


def adapter_key(seed: int, name: str) -> jax.Array:
    """Return the key of the adapter `name`; it does not depend on other adapters beside it."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def start_key(key: jax.Array) -> jax.Array:
    """Return the key that an adapter's initial values are drawn with."""
    return jax.random.fold_in(key, _START)


def epoch_order(key: jax.Array, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` examples in an epoch, int [count]."""
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return np.asarray(jax.random.permutation(key, count))


class Stream:
    """The examples of one adapter, `batch` per step; an epoch's last step may have fewer."""

    def __init__(self, examples: Sequence[Example], key: jax.Array, batch: int, epochs: int):
        """Use `key` for the order of the examples in each epoch."""
        self._examples, self._batch = examples, batch
        self._steps_per_epoch = math.ceil(len(examples) / batch)
        self.steps = epochs * self._steps_per_epoch
        # The current and the next epoch's order are kept, at most.
        self._order = functools.lru_cache(2)(lambda n: epoch_order(key, n, len(examples)))

    def step(self, step: int) -> list[Example]:
        """Return the examples of a step, counted from 0; none after the last step."""
        if step >= self.steps:
            return []
        epoch, index = divmod(step, self._steps_per_epoch)
        chosen = self._order(epoch)[index * self._batch : (index + 1) * self._batch]
        return [self._examples[i] for i in chosen]


class TrainData:
    """The examples of several adapters, as steps of one shape.

    Attributes:
        names: Names of the adapters.
        steps_K: int32, number of steps of each adapter.
        steps: Number of steps of the longest.
        shape: Sizes of the batch of a step.
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
        """Choose the shape that every step fits in.

        Args:
            examples: Examples of each adapter by its name, at least one each.
            keys: Keys of the adapters, in the same order.
            batch: Examples per step and adapter.
            epochs: Number of times that each example is seen.
            row_length: Tokens of a row; None: the length that wastes the fewest.
            tokens_per_pass: Tokens of an adapter that a pass may hold on one device; determines how
                much memory a pass needs, and does not change the result.
            data_devices: Devices that the rows of a pass are spread over.

        Raises:
            UserError: If an adapter has no examples, or one of them is longer than a row.
        """
        for name, sequence in examples.items():
            if not sequence:
                raise UserError(f"no examples to train {name!r} on")
        self.names = tuple(examples)
        self._streams = [
            Stream(sequence, key, batch, epochs)
            for sequence, key in zip(examples.values(), keys, strict=True)
        ]
        self.steps_K = np.array([stream.steps for stream in self._streams], np.int32)
        self.steps = int(self.steps_K.max())
        all_examples = [example for sequence in examples.values() for example in sequence]
        if row_length is None:
            row_length = self._best_length(max(len(e.tokens) for e in all_examples))
        check_lengths(all_examples, row_length)
        self.shape = self._shape(row_length, tokens_per_pass, data_devices)

    def examples(self, step: int) -> list[list[Example]]:
        """Return each adapter's examples of a step; none for an adapter that has finished."""
        return [stream.step(step) for stream in self._streams]

    def batch(self, step: int) -> tuple[Batch, int]:
        """Return a step's numpy arrays [K, G, B, T or A], and how many of the G passes it needs."""
        s = self.shape
        packed = [pack(examples, s.row_length) for examples in self.examples(step)]
        filled = [fill(rows, s.passes * s.rows, s.row_length, s.answers) for rows in packed]
        # Per adapter, rows [G * B, ...] become passes [G, B, ...].
        shaped = jax.tree.map(
            lambda *xs: np.stack([x.reshape(s.passes, s.rows, -1) for x in xs]), *filled
        )
        return shaped, math.ceil(max(map(len, packed)) / s.rows)

    def _best_length(self, longest: int) -> int:
        """Return the cheapest of a few row lengths that hold the longest example.

        Candidates are 1, 1.25, 1.5, 2, 3 and 4 times the longest example, rounded up.
        """
        shortest = math.ceil(longest / _MULTIPLE) * _MULTIPLE
        lengths = [
            math.ceil(shortest * n / (4 * _MULTIPLE)) * _MULTIPLE for n in (4, 5, 6, 8, 12, 16)
        ]
        steps = range(0, self.steps, math.ceil(self.steps / _SAMPLED_STEPS))
        chunks = [examples for step in steps for examples in self.examples(step)]

        def cost(length: int) -> float:
            rows = sum(len(pack(examples, length)) for examples in chunks)
            # Attention grows with the square of the length, everything else linearly.
            return rows * length * (1 + length / _ATTENTION_BALANCE)

        return min(lengths, key=cost)

    def _shape(self, row_length: int, tokens_per_pass: int, data_devices: int) -> Shape:
        """Return the shape that the largest step fits in.

        The rows of a pass are a multiple of the devices that they are spread over.
        """
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
