"""Lay examples of unequal length side by side into rows of equal length.

Every example has its own segment number and its own RoPE positions from 0 on, so it is computed in
a row exactly as if it stood alone. Only positions whose next token is scored go through the output
head: the answers of a survey are one or two tokens of a hundred.

Where several adapters are trained in one program, a row holds the examples of several of them.
Those of one adapter are cut into *units*, runs of at most M tokens, whose gradient is computed by
itself and added to the adapter's others in one order. Which examples a unit holds depends on
nothing but the adapter's own examples, so an adapter's bits do not depend on what is trained beside
it.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

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


@dataclasses.dataclass(frozen=True, eq=False)
class OptionTargets:
    """What N examples are trained toward where several next tokens have a probability each.

    They take the place of the first answer tokens. At a position whose tokens begin with -1, and at
    those after the last, the answer's own token is the target.

    Attributes:
        tokens_NxAxO: int32, different token ids at each of A answer positions; -1 for none.
        masses_NxAxO: float32, their probabilities; 0 for none. They sum to less than 1 at a
            position that is reached by some of the options only.

    Example:
        >>> targets = OptionTargets(np.array([[[7, 8]]]), np.float32([[[0.25, 0.75]]]))
        >>> targets.options
        2
    """

    tokens_NxAxO: np.ndarray
    masses_NxAxO: np.ndarray

    @property
    def options(self) -> int:
        """The most tokens of a position."""
        return self.tokens_NxAxO.shape[-1]

    def take(self, chosen: np.ndarray) -> OptionTargets:
        """Return those of some of the examples."""
        return OptionTargets(self.tokens_NxAxO[chosen], self.masses_NxAxO[chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Many examples as arrays: N conversations, each of P pieces of one pool of token ids.

    Examples that share a beginning share its tokens, as those of a survey do that are asked of one
    country: 234,000 of them take 10 MB instead of 2 GB as lists of integers.

    Attributes:
        pool: int32, the token ids that the pieces are cut from.
        starts_NxP: int64, where each piece of an example begins in the pool.
        sizes_NxP: int64, number of tokens of each piece.
        prompt_lengths: int64 [N], number of tokens before the answer.
        targets: Probabilities of the next tokens at answer positions, in place of the answer.

    Example:
        >>> examples = Examples.of([Example((5, 6, 7), 2), Example((8, 9), 1)])
        >>> len(examples), examples.lengths.tolist(), examples.answers.tolist()
        (2, [3, 2], [1, 1])
        >>> examples.tokens([1, 0]).tolist()
        [8, 9, 5, 6, 7]
    """

    pool: np.ndarray
    starts_NxP: np.ndarray
    sizes_NxP: np.ndarray
    prompt_lengths: np.ndarray
    targets: OptionTargets | None = None

    def __post_init__(self) -> None:
        bad = np.flatnonzero((self.prompt_lengths < 1) | (self.answers < 1))
        if len(bad):
            n = bad[0]
            raise UserError(
                f"an example of {self.lengths[n]} tokens with "
                f"prompt_length={self.prompt_lengths[n]}: prompt and answer need at least one "
                "token each"
            )

    @classmethod
    def of(cls, examples: Examples | Iterable[Example]) -> Examples:
        """Return examples as arrays; arrays are returned as they are."""
        if isinstance(examples, Examples):
            return examples
        examples = list(examples)
        sizes = np.array([len(e.tokens) for e in examples], np.int64)
        pool = np.fromiter((t for e in examples for t in e.tokens), np.int32, int(sizes.sum()))
        prompts = np.array([e.prompt_length for e in examples], np.int64)
        starts = np.cumsum(sizes) - sizes
        return cls(pool, starts[:, None], sizes[:, None], prompts)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __iter__(self) -> Iterator[Example]:
        return map(self.example, range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, int64 [N]."""
        return self.sizes_NxP.sum(axis=1)

    @property
    def answers(self) -> np.ndarray:
        """Number of answer tokens of each example, int64 [N]."""
        return self.lengths - self.prompt_lengths

    def take(self, chosen: np.ndarray) -> Examples:
        """Return some of the examples; their tokens are not copied."""
        return Examples(
            self.pool,
            self.starts_NxP[chosen],
            self.sizes_NxP[chosen],
            self.prompt_lengths[chosen],
            self.targets and self.targets.take(chosen),
        )

    def tokens(self, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the token ids of some examples, one after the other, int32."""
        starts, sizes = self.starts_NxP[chosen].ravel(), self.sizes_NxP[chosen].ravel()
        return self.pool[np.repeat(starts, sizes) + ranges(sizes)]

    def example(self, n: int) -> Example:
        """Return one of them."""
        return Example(tuple(self.tokens([n]).tolist()), int(self.prompt_lengths[n]))


def ranges(sizes: np.ndarray) -> np.ndarray:
    """Return 0, 1, ..., size - 1 for each size, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed examples; leading axes may stand before B.

    A is the largest number of answer tokens in a row. A row with fewer has `weight` 0 in the
    remaining places, and a row without examples is all padding. `adapter`, `sizes` and `answers`
    are there where rows hold the examples of several adapters: units stand one after the other in a
    row, and so do their answers; a unit that is not used has no tokens. The last two fields are
    there where examples have probabilities for targets.
    """

    tokens_BxT: jax.Array  # int32
    positions_BxT: jax.Array  # int32: from 0 on in every example
    segments_BxT: jax.Array  # int32: 1, 2, ... by example; 0 is padding
    at_BxA: jax.Array  # int32: the positions whose next token is scored
    targets_BxA: jax.Array  # int32: that next token
    weight_BxA: jax.Array  # float32: 1, or 0 where there is no target
    adapter_BxU: jax.Array | None = None  # int32: which adapter each unit trains
    sizes_BxU: jax.Array | None = None  # int32: tokens of each unit
    answers_BxU: jax.Array | None = None  # int32: answer tokens of each unit
    option_tokens_BxAxO: jax.Array | None = None  # int32: next tokens that have a probability
    option_masses_BxAxO: jax.Array | None = None  # float32: these; 0 for none


_FIELDS = [field.name for field in dataclasses.fields(Batch)]
jax.tree_util.register_dataclass(Batch, _FIELDS, meta_fields=[])


def pack(
    lengths: Sequence[int] | np.ndarray, row_length: int, most: int | None = None
) -> list[list[int]]:
    """Distribute examples over rows of at most `row_length` tokens.

    Best fit, longest first (Johnson 1973): each example goes into the row where it leaves the least
    room. Examples of equal length keep the order given.

    Args:
        lengths: Number of tokens of each example, at most `row_length`.
        row_length: Number of tokens of a row.
        most: Most examples of a row; default: any number.

    Returns:
        Rows that together hold the position of every example once.
    """
    lengths = np.asarray(lengths)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for n in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[n])
        # The fullest row that still has room, or a new one.
        tightest = bisect.bisect_left(room, (length, -1))
        if tightest < len(room):
            left, row = room.pop(tightest)
        else:
            left, row = row_length, len(rows)
            rows.append([])
        rows[row].append(n)
        if most is None or len(rows[row]) < most:
            bisect.insort(room, (left - length, row))
    return rows


def units_of(lengths: np.ndarray, unit_length: int) -> list[list[int]]:
    """Cut an adapter's examples of a step into units of at most `unit_length` tokens.

    Returns:
        The positions of each unit's examples. Shorter units come first: what is left to be placed
        at the end are then full ones of all adapters, and the gaps of earlier rows were filled with
        whatever fits.
    """
    units = pack(lengths, unit_length)
    return sorted(units, key=lambda unit: int(lengths[unit].sum()))


def place_units(
    sizes: Sequence[Sequence[int]], row_length: int, most_units: int
) -> list[list[tuple[int, int]]]:
    """Place the units of several adapters in rows, those of each adapter in the order given.

    A row takes the largest unit that fits among the next ones of all adapters, until none fits.

    Args:
        sizes: For each adapter, the tokens of its units.
        row_length: Most tokens of a row.
        most_units: Most units of a row.

    Returns:
        Rows of (adapter, number of its unit).
    """
    next_unit = [0] * len(sizes)
    # The next unit of each adapter, by size; among equals, the last adapter's is taken first.
    waiting = sorted((units[0], k) for k, units in enumerate(sizes) if len(units))
    rows: list[list[tuple[int, int]]] = []
    while waiting:
        row: list[tuple[int, int]] = []
        room = row_length
        while len(row) < most_units:
            largest = bisect.bisect_right(waiting, (room, len(sizes))) - 1
            if largest < 0:
                break
            size, k = waiting.pop(largest)
            row.append((k, next_unit[k]))
            room -= size
            next_unit[k] += 1
            if next_unit[k] < len(sizes[k]):
                bisect.insort(waiting, (sizes[k][next_unit[k]], k))
        if not row:
            raise ValueError(f"a unit of {waiting[0][0]} tokens in rows of {row_length}")
        rows.append(row)
    return rows


def check_lengths(lengths: np.ndarray, row_length: int) -> None:
    """Raise UserError, with their number, if examples are longer than a row."""
    if too_long := int(np.sum(np.asarray(lengths) > row_length)):
        raise UserError(
            f"{too_long} of {len(lengths)} examples are longer than a row of {row_length} tokens "
            f"(the longest has {max(lengths)}); leave them out or lengthen the rows"
        )


def fill(
    rows: Sequence[Sequence[tuple[Examples, np.ndarray]]],
    row_count: int,
    row_length: int,
    answers: int,
    options: int = 0,
) -> Batch:
    """Write examples into numpy arrays [row_count, row_length or answers].

    Args:
        rows: For each row, examples and which of them stand there, one after the other.
        row_count: Number of rows; those that are left over are padding.
        row_length: Number of tokens of a row.
        answers: Most answer tokens of a row.
        options: Most next tokens that have a probability; 0 where every target is one token.

    Raises:
        ValueError: If rows, tokens or answers do not fit.
    """
    if len(rows) > row_count:
        raise ValueError(f"{len(rows)} rows in a batch of {row_count}")
    # Zeros are padding: segment 0 is seen by nobody, and weight 0 is not scored.
    tokens, positions, segments = np.zeros((3, row_count * row_length), np.int32)
    at, targets = np.zeros((2, row_count * answers), np.int32)
    weight = np.zeros(row_count * answers, np.float32)
    batch = Batch(
        *(x.reshape(row_count, row_length) for x in (tokens, positions, segments)),
        *(x.reshape(row_count, answers) for x in (at, targets, weight)),
    )
    if options:
        option_tokens = np.zeros((row_count * answers, options), np.int32)
        option_masses = np.zeros((row_count * answers, options), np.float32)
        shape = row_count, answers, options
        batch = dataclasses.replace(
            batch,
            option_tokens_BxAxO=option_tokens.reshape(shape),
            option_masses_BxAxO=option_masses.reshape(shape),
        )
    parts = [(b, examples, chosen) for b, row in enumerate(rows) for examples, chosen in row]
    if not parts:
        return batch
    # Everything below is by example, in the order in which they stand.
    row_of = np.repeat([b for b, _, _ in parts], [len(chosen) for _, _, chosen in parts])
    sizes = np.concatenate([e.sizes_NxP[c].sum(axis=1) for _, e, c in parts])
    scored = sizes - np.concatenate([e.prompt_lengths[c] for _, e, c in parts])
    starts, first_scored = _within_rows(sizes, row_of), _within_rows(scored, row_of)
    if (starts + sizes).max() > row_length or (first_scored + scored).max() > answers:
        raise ValueError(
            f"{(starts + sizes).max()} tokens and {(first_scored + scored).max()} answers in rows "
            f"of {row_length} and {answers}"
        )
    # Where each token stands in the flat arrays.
    inside = ranges(sizes)
    where = np.repeat(row_of * row_length + starts, sizes) + inside
    tokens[where] = np.concatenate([e.tokens(c) for _, e, c in parts])
    positions[where] = inside
    segments[where] = np.repeat(_within_rows(np.ones_like(sizes), row_of) + 1, sizes)
    # Where each answer token stands. The token before it predicts it.
    inside = ranges(scored)
    slot = np.repeat(row_of * answers + first_scored, scored) + inside
    at[slot] = np.repeat(starts + sizes - scored, scored) + inside - 1
    targets[slot] = tokens[np.repeat(row_of * row_length, scored) + at[slot] + 1]
    weight[slot] = 1
    if options:
        # A target that is one token has all of the mass.
        option_tokens[slot, 0], option_masses[slot, 0] = targets[slot], 1
        first = row_of * answers + first_scored
        counts = [len(chosen) for _, _, chosen in parts]
        for (_, examples, chosen), slots in zip(
            parts, np.split(first, np.cumsum(counts)[:-1]), strict=True
        ):
            if examples.targets is not None:
                _set_options(option_tokens, option_masses, slots, examples.targets.take(chosen))
    return batch


def _set_options(
    tokens: np.ndarray, masses: np.ndarray, first_N: np.ndarray, targets: OptionTargets
) -> None:
    """Write targets into the rows of two arrays, where the examples' answers begin at `first_N`."""
    for a in range(targets.tokens_NxAxO.shape[1]):
        given_NxO, masses_NxO = targets.tokens_NxAxO[:, a], targets.masses_NxAxO[:, a]
        own = given_NxO[:, 0] >= 0
        tokens[first_N[own] + a] = masses[first_N[own] + a] = 0
        tokens[first_N[own] + a, : targets.options] = np.maximum(given_NxO[own], 0)
        masses[first_N[own] + a, : targets.options] = masses_NxO[own]


def _within_rows(sizes: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Return where each of consecutive things begins in its row; rows are in ascending order."""
    starts = np.cumsum(sizes) - sizes
    new_row = np.flatnonzero(np.diff(row_of, prepend=-1))
    counts = np.diff(np.append(new_row, len(row_of)))
    return starts - np.repeat(starts[new_row], counts)
