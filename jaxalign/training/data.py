"""Decide which examples an optimiser step sees: a pure function of the key and the step's number.

Every adapter has its own examples, in its own order, with its own number of steps. A step is a
number of examples, as papers state it, laid out in as many rows as it needs. No state is kept
between steps, so a resumed run only has to continue counting.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.training.packing import (
    Batch,
    Example,
    Examples,
    check_lengths,
    fill,
    place_units,
    units_of,
)
from jaxalign.training.shape import Shape, Step, choose_shape, computed_tokens, single_rows

_START, _ORDER = 1, 2  # uses of an adapter's key; folded in, so that they are independent
_SAMPLED_STEPS = 64  # of a run, evenly spaced: what row lengths are compared on


def adapter_key(seed: int, name: str) -> jax.Array:
    """Return the key of the adapter `name`; it does not depend on other adapters beside it."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def start_key(key: jax.Array) -> jax.Array:
    """Return the key that an adapter's initial values are drawn with."""
    return jax.random.fold_in(key, _START)


def epoch_order(key: jax.Array, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` examples in an epoch, int [count].

    It is that of `jax.random.permutation`, which would be compiled anew for every count.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    order = np.arange(count)
    # Sorted by random numbers, often enough that equal ones do not matter.
    for _ in range(math.ceil(3 * math.log(max(1, count)) / math.log(2**32 - 1))):
        key, subkey = jax.random.split(key)
        # A number depends on its place alone, so those of a longer array begin with the same ones.
        bits = np.asarray(_random_bits(subkey, 1 << max(0, count - 1).bit_length()))[:count]
        order = order[np.argsort(bits, kind="stable")]
    return order


@functools.partial(jax.jit, static_argnums=1)
def _random_bits(key: jax.Array, count: int) -> jax.Array:
    return jax.random.bits(key, (count,), jnp.uint32)


class Stream:
    """The examples of one adapter, `batch` per step; an epoch's last step may have fewer."""

    def __init__(
        self, examples: Examples | Iterable[Example], key: jax.Array, batch: int, epochs: int
    ):
        """Use `key` for the order of the examples in each epoch."""
        self.examples, self._batch = Examples.of(examples), batch
        self.lengths = self.examples.lengths
        count = len(self.examples)
        self._steps_per_epoch = math.ceil(count / batch)
        self.steps = epochs * self._steps_per_epoch
        # The current and the next epoch's order are kept, at most.
        self._order = functools.lru_cache(2)(lambda n: epoch_order(key, n, count))

    def step(self, step: int) -> np.ndarray:
        """Return the positions of a step's examples, counted from 0; none after the last step."""
        if step >= self.steps:
            return np.zeros(0, np.int64)
        epoch, index = divmod(step, self._steps_per_epoch)
        return self._order(epoch)[index * self._batch : (index + 1) * self._batch]


class TrainData:
    """The examples of adapters that are trained side by side, as steps of one shape.

    Attributes:
        names: Names of the adapters.
        steps_K: int32, number of steps of each adapter.
        steps: Number of steps of the longest.
        shape: Sizes of a step.
    """

    def __init__(self, names: Sequence[str], streams: Sequence[Stream], shape: Shape):
        """Lay out the examples of each name's stream; there may be fewer than the shape has room
        for."""
        self.names, self._streams, self.shape = tuple(names), tuple(streams), shape
        self.steps_K = np.array([stream.steps for stream in streams], np.int32)
        self.steps = int(self.steps_K.max(initial=0))

    def examples(self, step: int) -> list[list[Example]]:
        """Return each adapter's examples of a step; none for an adapter that has finished."""
        return [
            [stream.examples.example(int(n)) for n in stream.step(step)] for stream in self._streams
        ]

    def batch(self, step: int) -> tuple[tuple[Batch, ...], np.ndarray]:
        """Return a step's numpy arrays [G, R, ...], and how many passes of each batch it needs."""
        if self.shape.units:
            return self._batch_of_units(step)
        ((examples, chosen),) = ((s.examples, s.step(step)) for s in self._streams)
        shape, batches, passes = self.shape, [], []
        sizes = [(shape.passes, shape.row_length, shape.answers)]
        if shape.tail:
            sizes.append((1, shape.tail, shape.tail_answers))
        layout = single_rows(self._streams[0].lengths[chosen], shape)
        for rows, (most, row_length, answers), examples_of_row in zip(
            layout, sizes, shape.most_examples, strict=False
        ):
            if examples_of_row and max(map(len, rows), default=0) > examples_of_row:
                raise ValueError(f"a row has more than {examples_of_row} examples")
            filled = fill(
                [[(examples, chosen[row])] for row in rows],
                most * shape.rows,
                row_length,
                answers,
                shape.options,
            )
            batches.append(_in_passes(filled, shape.rows))
            passes.append(math.ceil(len(rows) / shape.rows))
        return tuple(batches), np.array([*passes, 0][:2], np.int32)

    def _batch_of_units(self, step: int) -> tuple[tuple[Batch, ...], np.ndarray]:
        shape = self.shape
        rows, units = self._rows_of_units(step)
        filled = fill(
            [[(self._streams[k].examples, units[k][n]) for k, n in row] for row in rows],
            shape.passes * shape.rows,
            shape.row_length,
            shape.answers,
            shape.options,
        )
        # What each unit of a row trains, and how many tokens and answers it has.
        adapter, sizes, answers = np.zeros((3, shape.passes * shape.rows, shape.units), np.int32)
        for b, row in enumerate(rows):
            for u, (k, n) in enumerate(row):
                stream, chosen = self._streams[k], units[k][n]
                adapter[b, u], sizes[b, u] = k, stream.lengths[chosen].sum()
                answers[b, u] = sizes[b, u] - stream.examples.prompt_lengths[chosen].sum()
        filled = dataclasses.replace(
            filled, adapter_BxU=adapter, sizes_BxU=sizes, answers_BxU=answers
        )
        passes = math.ceil(len(rows) / shape.rows)
        return (_in_passes(filled, shape.rows),), np.array([passes, 0], np.int32)

    def _rows_of_units(
        self, step: int
    ) -> tuple[list[list[tuple[int, int]]], list[list[np.ndarray]]]:
        """Return a step's rows as (adapter, unit), and the examples of each adapter's units."""
        units, sizes = [], []
        for stream in self._streams:
            chosen = stream.step(step)
            lengths = stream.lengths[chosen]
            of_stream = units_of(lengths, self.shape.unit_length)
            units.append([chosen[unit] for unit in of_stream])
            sizes.append([int(lengths[unit].sum()) for unit in of_stream])
        return place_units(sizes, self.shape.row_length, self.shape.units), units

    def tokens(self, step: int) -> tuple[int, int]:
        """Return the tokens of a step's examples, and how many are computed for them."""
        useful = sum(int(stream.lengths[stream.step(step)].sum()) for stream in self._streams)
        if self.shape.units:
            passes, tails = math.ceil(len(self._rows_of_units(step)[0]) / self.shape.rows), 0
        else:
            (stream,) = self._streams
            layout = single_rows(stream.lengths[stream.step(step)], self.shape)
            passes, tails = (math.ceil(len(rows) / self.shape.rows) for rows in layout)
        return useful, computed_tokens(self.shape, passes, tails)


def make_streams(
    examples: Mapping[str, Examples | Iterable[Example]],
    keys: Sequence[jax.Array],
    batch: int,
    epochs: int = 1,
) -> dict[str, Stream]:
    """Return the stream of each adapter.

    Raises:
        UserError: If an adapter has no examples.
    """
    streams = {
        name: Stream(given, key, batch, epochs)
        for (name, given), key in zip(examples.items(), keys, strict=True)
    }
    for name, stream in streams.items():
        if not len(stream.examples):
            raise UserError(f"no examples to train {name!r} on")
    return streams


def shape_of_streams(
    groups: Sequence[Sequence[Stream]],
    batch: int,
    tokens_per_pass: int,
    window: int | None = None,
    devices: int = 1,
) -> Shape:
    """Return the shape that every step of every group fits in.

    Args:
        groups: The streams of the adapters that are side by side, group by group.
        batch: Examples of an adapter in a step.
        tokens_per_pass: Tokens that a device may compute at a time.
        window: Most tokens of an example; default: those of the longest there is.
        devices: Devices that rows are spread over.

    Raises:
        UserError: If an example is longer than `window`.
    """
    streams = [stream for group in groups for stream in group]
    lengths = np.concatenate([stream.lengths for stream in streams])
    window = window or int(lengths.max())
    check_lengths(lengths, window)
    share = max(float((s.examples.answers / s.lengths).max()) for s in streams)
    shape = choose_shape(
        [step for group in groups for step in _sampled_steps(group)],
        batch,
        len(streams),
        max(map(len, groups)),
        window,
        share,
        tokens_per_pass,
        devices,
    )
    return dataclasses.replace(shape, options=most_options(stream.examples for stream in streams))


def most_options(examples: Iterable[Examples]) -> int:
    """Return the most next tokens that have a probability at a position; 0 without such targets."""
    return max(each.targets.options if each.targets else 0 for each in examples)


def _sampled_steps(group: Sequence[Stream]) -> list[Step]:
    steps = max(stream.steps for stream in group)
    sampled = np.unique(np.linspace(0, steps - 1, min(steps, _SAMPLED_STEPS)).astype(int))
    return [[s.lengths[s.step(n)] for s in group if n < s.steps] for n in sampled.tolist()]


def _in_passes(batch: Batch, rows: int) -> Batch:
    """Return rows [G * R, ...] as passes [G, R, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)
