"""Pack examples of unequal length side by side into rows of equal length.

Every example has its own segment number and its own RoPE positions from 0 on, so it is computed in
a row exactly as if it stood alone. Only positions whose next token is scored go through the output
head: the answers of a survey are one or two tokens of a hundred.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids of one conversation, of which `tokens[prompt_length:]` is the answer.

    The loss counts the answer only. Prompt and answer have at least one token each.
    """

    tokens: tuple[int, ...]
    prompt_length: int

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length < len(self.tokens):
            raise UserError(
                f"an example of {len(self.tokens)} tokens with prompt_length={self.prompt_length}: "
                "prompt and answer need at least one token each"
            )

    @property
    def answer(self) -> tuple[int, ...]:
        """Token ids of the answer."""
        return self.tokens[self.prompt_length :]


Row = Sequence[Example]  # side by side, in this order


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed examples; leading axes may stand before B.

    A is the largest number of answer tokens in a row. A row with fewer has `weight` 0 in the
    remaining places, and a row without examples is all padding.
    """

    tokens_BxT: jax.Array  # int32
    positions_BxT: jax.Array  # int32: from 0 on in every example
    segments_BxT: jax.Array  # int32: 1, 2, ... by example; 0 is padding
    at_BxA: jax.Array  # int32: the positions whose next token is scored
    targets_BxA: jax.Array  # int32: that next token
    weight_BxA: jax.Array  # float32: 1, or 0 where there is no target


_FIELDS = [field.name for field in dataclasses.fields(Batch)]
jax.tree_util.register_dataclass(Batch, _FIELDS, meta_fields=[])


def pack(examples: Sequence[Example], row_length: int) -> list[list[Example]]:
    """Distribute examples over rows of at most `row_length` tokens.

    Best fit, longest first (Johnson 1973): each example goes into the row where it leaves the least
    room. Examples of equal length keep the order given.

    Returns:
        Rows that together hold every example once.

    Raises:
        UserError: If an example is longer than a row.
    """
    check_lengths(examples, row_length)
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        length = len(example.tokens)
        # The fullest row that still has room, or a new one.
        tightest = bisect.bisect_left(room, (length, -1))
        if tightest < len(room):
            left, row = room.pop(tightest)
        else:
            left, row = row_length, len(rows)
            rows.append([])
        rows[row].append(example)
        bisect.insort(room, (left - length, row))
    return rows


def check_lengths(examples: Sequence[Example], row_length: int) -> None:
    """Raise UserError, with their number, if examples are longer than a row."""
    lengths = [len(example.tokens) for example in examples]
    if too_long := sum(length > row_length for length in lengths):
        raise UserError(
            f"{too_long} of {len(lengths)} examples are longer than a row of {row_length} tokens "
            f"(the longest has {max(lengths)}); leave them out or lengthen the rows"
        )


def answer_count(row: Row) -> int:
    """Return the number of answer tokens of a row, which `Batch.at_BxA` must have room for."""
    return sum(len(example.answer) for example in row)


def fill(rows: Sequence[Row], row_count: int, row_length: int, answers: int) -> Batch:
    """Write packed rows into numpy arrays [row_count, row_length or answers].

    Rows that are left over are padding.

    Raises:
        ValueError: If rows, tokens or answers do not fit.
    """
    if len(rows) > row_count:
        raise ValueError(f"{len(rows)} rows in a batch of {row_count}")
    # Zeros are padding: segment 0 is seen by nobody, and weight 0 is not scored.
    tokens, positions, segments = np.zeros((3, row_count, row_length), np.int32)
    at, targets = np.zeros((2, row_count, answers), np.int32)
    weight = np.zeros((row_count, answers), np.float32)
    for b, row in enumerate(rows):
        start, scored = 0, 0
        for segment, example in enumerate(row, start=1):
            end, count = start + len(example.tokens), len(example.answer)
            tokens[b, start:end] = example.tokens
            positions[b, start:end] = np.arange(end - start)
            segments[b, start:end] = segment
            # The token before an answer token predicts it.
            at[b, scored : scored + count] = np.arange(end - count, end) - 1
            targets[b, scored : scored + count] = example.answer
            weight[b, scored : scored + count] = 1
            start, scored = end, scored + count
    return Batch(tokens, positions, segments, at, targets, weight)
