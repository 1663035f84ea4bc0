"""Choose the sizes of a training step from the lengths of examples: fast, and with little padding.

A step computes passes of R rows of T tokens, as many as it needs. Rows that are too long leave much
of the last pass empty, rows that are too short much of every row, and small passes are slow. Which
length wastes the least follows from the lengths of the examples, how many a step has, and how many
adapters are trained side by side, so a few are tried on a sample of the steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.runtime.platform import target_platform
from jaxalign.training.attention import query_block, scores_per_query
from jaxalign.training.packing import Batch, pack, place_units, units_of

# A pass takes about as long as it had this many tokens more: weights are read, steps are launched.
_OVERHEAD = 128
# Low-rank products are computed for a unit's full length; a place in a unit costs this many tokens.
_UNIT_PLACE = 0.1
MOST_UNITS = 16  # of a row: each has a copy of its adapter, and its gradient
_SAMPLED = 12000  # examples that sizes are compared on
# Room for examples in a row beyond their mean, where attention is computed one by one.
_MORE_EXAMPLES = 1.05
_MOST_PADDING = 0.13  # of the tokens that are computed, where any choice wastes so little

Step = Sequence[np.ndarray]  # the lengths of each adapter's examples in one step


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a step.

    Attributes:
        adapters: K, adapters whose state is on the devices together.
        passes: The most passes that any step may need; a step that needs fewer runs fewer.
        rows: R, rows of a pass; a multiple of the devices that they are spread over.
        row_length: T, tokens of a row.
        answers: A, answer tokens of a row.
        window: Most tokens of an example.
        units: U, units of a row (see `jaxalign.training.packing`); 0 where one adapter is trained.
        unit_length: M, tokens of a unit.
        unit_answers: Answer tokens of a unit.
        tail: Tokens of the shorter rows that a step may end with; 0 if there are none.
        tail_answers: Answer tokens of such a row.
        examples: Most examples of a row, whose attention is then computed one by one; 0 where rows
            are computed in blocks, with any number of examples.
        tail_examples: Most examples of a short row.
        options: Next tokens that may have a probability at an answer position; 0 where every target
            is one token.
    """

    adapters: int
    passes: int
    rows: int
    row_length: int
    answers: int
    window: int
    units: int = 0
    unit_length: int = 0
    unit_answers: int = 0
    tail: int = 0
    tail_answers: int = 0
    examples: int = 0
    tail_examples: int = 0
    options: int = 0

    def holds(self, longest: int, answer_share: float, options: int = 0) -> bool:
        """Return whether examples fit into its rows, wherever they stand.

        Args:
            longest: Tokens of the longest example.
            answer_share: Largest share of an example's tokens that are its answer.
            options: Most next tokens that have a probability; 0 where every target is one token.
        """
        if bool(options) != bool(self.options) or options > self.options:
            return False
        room = (
            (self.row_length, self.answers),
            (self.unit_length, self.unit_answers),
            (self.tail, self.tail_answers),
        )
        return longest <= self.window and all(answer_share * n <= answers for n, answers in room)

    @property
    def most_examples(self) -> tuple[int, int]:
        """`examples` and `tail_examples`, in the order of `batch`."""
        return self.examples, self.tail_examples

    @property
    def batch(self) -> tuple[Batch, ...]:
        """The batch of a step as `jax.ShapeDtypeStruct`s: its rows, and its short rows if any."""
        lead = (self.passes, self.rows)
        long = _abstract_batch(lead, self.row_length, self.answers, self.options)
        if self.units:
            unit = jax.ShapeDtypeStruct((*lead, self.units), np.int32)
            long = dataclasses.replace(long, adapter_BxU=unit, sizes_BxU=unit, answers_BxU=unit)
        if not self.tail:
            return (long,)
        tail = _abstract_batch((1, self.rows), self.tail, self.tail_answers, self.options)
        return long, tail


def _abstract_batch(lead: tuple[int, ...], row_length: int, answers: int, options: int) -> Batch:
    token = jax.ShapeDtypeStruct((*lead, row_length), np.int32)
    answer = jax.ShapeDtypeStruct((*lead, answers), np.int32)
    weight = jax.ShapeDtypeStruct((*lead, answers), np.float32)
    batch = Batch(token, token, token, answer, answer, weight)
    if not options:
        return batch
    return dataclasses.replace(
        batch,
        option_tokens_BxAxO=jax.ShapeDtypeStruct((*lead, answers, options), np.int32),
        option_masses_BxAxO=jax.ShapeDtypeStruct((*lead, answers, options), np.float32),
    )


def choose_shape(
    steps: Sequence[Step],
    batch: int,
    adapters: int,
    side_by_side: int,
    window: int,
    answer_share: float,
    tokens_per_pass: int,
    devices: int = 1,
) -> Shape:
    """Choose the sizes of a step.

    Args:
        steps: A sample of the steps: the lengths of the examples of each adapter that is active.
        batch: Most examples of an adapter in a step.
        adapters: Adapters trained in all; with more than one, rows hold units.
        side_by_side: Adapters whose state is on the devices together.
        window: Most tokens of an example.
        answer_share: Largest share of an example's tokens that are its answer.
        tokens_per_pass: Tokens that one device may compute at a time, over all adapters.
        devices: Devices that the rows of a pass are spread over; each computes one of them.
    """
    steps = _sample(steps)
    # Lengths are compared by what they compute for the sampled steps, not by a formula: how well
    # examples fit into rows depends on their lengths.
    useful = sum(int(lengths.sum()) for step in steps for lengths in step)
    most = max((sum(int(x.sum()) for x in step) for step in steps), default=window)
    row_lengths = _row_lengths(window, most, tokens_per_pass, devices)
    if adapters > 1:
        tried = _unit_costs(steps, row_lengths, window, devices)
    else:
        mean = useful / max(1, sum(len(lengths) for step in steps for lengths in step))
        tried = [c for T in row_lengths for c in _single_costs(steps, T, window, mean, devices)]

    def rank(choice: _Choice) -> tuple[float, ...]:
        padding = 1 - useful / max(1, choice.tokens)
        # Whatever wastes little, the fastest of it; rows of one length if possible, because each
        # length is compiled; and where everything wastes much, what wastes the least.
        return (max(0, padding - _MOST_PADDING), choice.tail > 0, choice.cost)

    best = min(tried, key=rank)
    return make_shape(
        batch,
        side_by_side,
        window,
        answer_share,
        best.row_length,
        devices,
        best.units,
        best.unit_length,
        best.tail,
        best.examples,
        best.tail_examples,
    )


def make_shape(
    batch: int,
    side_by_side: int,
    window: int,
    answer_share: float,
    row_length: int,
    devices: int = 1,
    units: int = 0,
    unit_length: int = 0,
    tail: int = 0,
    examples: int = 0,
    tail_examples: int = 0,
) -> Shape:
    """Return the shape with these rows; its passes hold the examples of any step.

    Two rows that follow each other hold more than one row's tokens or a row's units, except for the
    last and for rows with as many examples as they may have, so a bound on the number of passes
    needs no packing.
    """
    most_tokens = side_by_side * batch * window
    most_rows = 2 * most_tokens // row_length + 2
    if units:
        most_units = side_by_side * min(batch, 2 * batch * window // unit_length + 1)
        # Either no unit fits any more, and they leave less than the largest, or a row has all.
        room = max(1, row_length - unit_length)
        most_rows = min(most_units, most_tokens // room + most_units // units + 2)
    else:
        most_rows += batch // examples if examples else 0
        most_rows = min(most_rows, side_by_side * batch)
    answers = lambda tokens: max(1, min(tokens, math.ceil(answer_share * tokens)))  # noqa: E731
    return Shape(
        adapters=side_by_side,
        passes=math.ceil(most_rows / devices),
        rows=devices,
        row_length=row_length,
        answers=answers(row_length),
        window=window,
        units=units,
        unit_length=unit_length,
        unit_answers=answers(unit_length) if units else 0,
        tail=tail,
        tail_answers=answers(tail) if tail else 0,
        examples=examples,
        tail_examples=tail_examples,
    )


def estimated_steps(
    lengths: Sequence[int] | np.ndarray, batch: int, adapters: int, seed: int = 0
) -> list[Step]:
    """Return steps as they may be, from the lengths that examples are expected to have.

    For programs that are compiled before the examples are known. Adapters use up their examples one
    after the other.

    Args:
        lengths: Lengths of examples like those that will be trained on.
        batch: Examples of an adapter in a step.
        adapters: Adapters side by side.
        seed: Seed of the draws.
    """
    random = np.random.default_rng(seed)
    # From all of them to the last one, evenly: nothing is known about how they differ.
    active = np.unique(np.linspace(adapters, 1, 8).astype(int))[::-1]
    return [[random.choice(np.asarray(lengths), batch) for _ in range(n)] for n in active]


def computed_tokens(shape: Shape, passes: int, tails: int) -> int:
    """Return the tokens that a step computes, on all devices and for all adapters."""
    return shape.rows * (passes * shape.row_length + tails * shape.tail)


def single_rows(lengths: np.ndarray, shape: Shape) -> tuple[list[list[int]], list[list[int]]]:
    """Return the rows and the short rows of one adapter's step, as positions of its examples."""
    rows = pack(lengths, shape.row_length, shape.examples or None)
    if not shape.tail:
        return rows, []
    # The last pass is one of short rows if what it holds fits there.
    full = max(0, (len(rows) - 1) // shape.rows * shape.rows)
    rows.sort(key=lambda row: -int(lengths[row].sum()))
    last = rows[full:]
    most = shape.tail_examples or len(lengths)
    if all(lengths[row].sum() <= shape.tail and len(row) <= most for row in last):
        return rows[:full], last
    return rows, []


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Lengths of rows and units, the tokens computed with them, and their cost in tokens."""

    tokens: int
    cost: float
    row_length: int
    tail: int = 0
    unit_length: int = 0
    units: int = 0
    examples: int = 0
    tail_examples: int = 0


def _unit_costs(
    steps: Sequence[Step], row_lengths: Sequence[int], window: int, devices: int
) -> list[_Choice]:
    """Return what rows of several adapters cost, for each length of rows and units."""
    tried = []
    for M in _unit_lengths(window, max(row_lengths)):
        sizes = [
            [[int(lengths[unit].sum()) for unit in units_of(lengths, M)] for lengths in step]
            for step in steps
        ]
        for T in row_lengths:
            units = _most_units(T, M)
            if units > MOST_UNITS or T < M:
                continue
            passes = sum(math.ceil(len(place_units(s, T, units)) / devices) for s in sizes)
            cost = passes * (T + _OVERHEAD + _UNIT_PLACE * units * M)
            tried.append(_Choice(passes * devices * T, cost, T, 0, M, units))
    return tried


def _single_costs(
    steps: Sequence[Step], row_length: int, window: int, mean: float, devices: int
) -> list[_Choice]:
    """Return what rows of one adapter cost, without and with short rows of half their length."""
    plain, tried = Shape(1, 1, devices, row_length, 1, window), []
    for tail in (0, _whole_blocks(row_length // 2, window)):
        # Half the length is enough to save most of a last row that holds few tokens.
        examples, tail_examples = (_one_by_one(T, window, mean) for T in (row_length, tail))
        shape = dataclasses.replace(
            plain, tail=tail, examples=examples, tail_examples=tail_examples
        )
        passes = tails = 0
        for lengths in (x for step in steps for x in step):
            rows, short = single_rows(lengths, shape)
            passes += math.ceil(len(rows) / devices)
            tails += math.ceil(len(short) / devices)
        tokens = computed_tokens(shape, passes, tails)
        cost = tokens / devices + _OVERHEAD * (passes + tails)
        tried.append(
            _Choice(tokens, cost, row_length, tail, examples=examples, tail_examples=tail_examples)
        )
    return tried


def _one_by_one(row_length: int, window: int, mean: float) -> int:
    """Return how many examples of a row attention computes one by one; 0 if blocks are better.

    That is where examples are about as long as the longest. A GPU computes them one by one always,
    because cuDNN does; a TPU never does.
    """
    platform = target_platform()
    if not row_length or platform == "tpu":
        return 0
    examples = math.ceil(_MORE_EXAMPLES * row_length / mean)
    if platform == "gpu":
        return examples
    one_by_one = scores_per_query(row_length, window, examples)
    return examples if one_by_one < scores_per_query(row_length, window) else 0


def _sample(steps: Sequence[Step]) -> Sequence[Step]:
    """Return evenly spaced steps with about `_SAMPLED` examples together."""
    per_step = max(1, sum(len(x) for step in steps for x in step) // max(1, len(steps)))
    wanted = max(4, _SAMPLED // per_step)
    every = math.ceil(len(steps) / wanted)
    return [step for step in steps[::every] if len(step)]


def _row_lengths(window: int, most: int, tokens_per_pass: int, devices: int) -> list[int]:
    """Return lengths of rows to try: from one example up to the budget, or to a whole step."""
    shortest = math.ceil(window / 32) * 32
    longest = max(shortest, min(tokens_per_pass, math.ceil(most / devices)))
    # Steps of a fifth: finer ones hardly change what is wasted.
    tried, length = {shortest}, float(shortest)
    while length < longest:
        length *= 1.19
        tried.add(_whole_blocks(math.ceil(length), window))
    tried.add(_whole_blocks(longest, window))
    return sorted(T for T in tried if shortest <= T <= max(shortest, tokens_per_pass))


def _whole_blocks(tokens: int, window: int) -> int:
    """Round up to what attention computes in blocks, or to 32 tokens in a short row."""
    block = query_block(window)
    multiple = block if tokens > window + block else 32
    return math.ceil(tokens / multiple) * multiple


def _unit_lengths(window: int, longest: int) -> list[int]:
    shortest = math.ceil(window / 32) * 32
    lengths = [n * shortest // 64 * 32 for n in (2, 3, 4, 6, 8, 12, 16)]
    return [n for n in lengths if n <= longest]


def _most_units(row_length: int, unit_length: int) -> int:
    """Return the units that a row has room for: a few more than full ones."""
    return math.ceil(1.3 * row_length / unit_length) + 1
