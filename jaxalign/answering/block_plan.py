"""Cut any number of conversations into blocks of one shape, quickly.

A job may have millions of conversations, so nothing here loops over tokens. Conversations are
sorted, and each is known by how many tokens it shares with the one before it: whatever it adds
stands in one piece of its block. The order, the shared lengths and the cuts are found once for the
whole job; the tables of a block are made when it is computed.

Pure numpy: knows neither model nor JAX. Letters as in `jaxalign.answering.blocks`; U distinct text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.blocks import (
    ANSWER_ROW,
    ROW,
    Conversations,
    OptionTables,
    Shape,
    Tables,
)

_ROUND = 32  # sizes are rounded up to a multiple, so that like jobs share a program
_BALANCED = 64  # up to this many blocks are made equally long; of more, the last is no matter


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """Conversations in the order in which they are computed, cut into blocks of one shape.

    Attributes:
        shape: sizes that every block is padded to.
        order_N: int32, which conversation stands at each place of the order.
        starts_B: int64 [blocks + 1], the place where each block begins, and the end.
        tokens_asked: tokens of all conversations, each whole.
        tokens_distinct: tokens that are computed, without padding.
    """

    shape: Shape
    order_N: np.ndarray
    starts_B: np.ndarray
    tokens_asked: int
    tokens_distinct: int
    _text: _Text
    _options: OptionTables

    def __len__(self) -> int:
        return len(self.starts_B) - 1

    def members(self, block: int) -> np.ndarray:
        """Return which conversations a block answers, in the order of its results."""
        return self.order_N[self.starts_B[block] : self.starts_B[block + 1]]

    def describe(self) -> str:
        """Say how much is computed, for the log."""
        computed = len(self) * self.shape.tokens
        blocks = f"{len(self):,} block{'' if len(self) == 1 else 's'}"
        return (
            f"{len(self.order_N):,} conversations of {self.tokens_asked:,} tokens: {computed:,} "
            f"computed in {blocks} of {self.shape.tokens:,} "
            f"({self.tokens_distinct / computed:.0%} of them text)"
        )

    def tables(self, block: int) -> Tables:
        """Return the padded tables of a block."""
        shape, options, text = self.shape, self._options, self._text
        piece = _Piece.of(text, options, self.starts_B[block], self.starts_B[block + 1])
        own = _Owners(piece)
        conversation = own.conversation
        # Tokens that a conversation adds: ids, positions, and where they stand.
        tree, positions = (np.zeros(shape.tokens, np.int32) for _ in range(2))
        depth = piece.shared[conversation] + own.within
        after_lead_in = depth - piece.lead_in[conversation]
        at = np.where(
            after_lead_in < 0,
            piece.lead_in_at[conversation] + depth,
            piece.question_at[conversation] + after_lead_in,
        )
        places = piece.start[conversation] + own.within
        tree[places], positions[places] = text.flat[at], depth
        # Inner tokens of its options, right behind.
        n, i = own.option_conversation, own.option_within
        kind, behind = piece.kind[n], piece.start[n] + piece.new[n]
        tree[behind + i] = options.tokens_KxI[kind, i]
        positions[behind + i] = piece.length[n] + options.depth_KxI[kind, i]
        end = np.arange(1, shape.tokens + 1, dtype=np.int32)
        end[behind + i] = behind + options.end_KxI[kind, i]
        # Rows: the keys of one are the ancestors of its first conversation and all that follows.
        rows = piece.tree_rows(shape.tokens)
        answers, answer_rows = piece.answers(own)
        needed = np.zeros(len(piece.start), bool)
        needed[rows[0]] = needed[answer_rows[0]] = True
        ancestors = _walk(piece, needed, end)
        keys = _key_table(piece, ancestors, rows, shape.tokens // ROW, shape.keys)
        # Padding rows stand for themselves.
        first_padding = len(rows[0])
        padding = np.arange(first_padding * ROW, shape.tokens, dtype=np.int32)
        keys[first_padding:, :ROW] = padding.reshape(-1, ROW)
        count = len(answers)
        size = shape.answers // ANSWER_ROW
        answer_keys = _key_table(piece, ancestors, answer_rows, size, shape.answer_keys)
        all_answers = np.full(shape.answers, answers[-1], np.int32)
        all_answers[:count] = answers
        scored = np.full((shape.answers, shape.scored), -1, np.int32)
        a = own.answer_conversation
        scored[:count] = options.scored_KxAxY[piece.kind[a], own.answer_within]
        Q = len(piece.start)
        ends = np.zeros(shape.questions, np.int32)
        ends[:Q] = piece.first_answer
        sequences = np.full(shape.table_shapes().sequences, -1, np.int32)
        local = options.sequences_KxOxSxY[piece.kind]
        shift = piece.first_answer * shape.scored
        sequences[:Q] = np.where(local >= 0, local + shift[:, None, None, None], -1)
        # Padding questions read one option, so that nothing is divided by zero.
        sequences[Q:, 0, 0, 0] = 0
        return Tables(
            tree=tree,
            positions=positions,
            end=end,
            keys=keys,
            answers=all_answers,
            answer_keys=answer_keys,
            scored=scored,
            ends=ends,
            sequences=sequences,
        )


def plan_blocks(conversations: Conversations, block_tokens: int) -> BlockPlan:
    """Order conversations so that neighbours share text, and cut them into blocks of one shape.

    The plan depends on nothing but the conversations' tokens and options, so results depend neither
    on the devices nor on the order in which the conversations are given.

    Args:
        conversations: what is asked.
        block_tokens: tokens of a block at most; a longer conversation is a block by itself.

    Raises:
        ValueError: if there is no conversation, a question without tokens, or an option without a
            spelling.

    >>> stem = [5, 6, 7, 8]
    >>> questions = [np.array([*stem, 10 + q]) for q in range(3)]
    >>> yes_or_no = [[(1,)], [(2,)]]
    >>> asked = Conversations([np.array([3])], questions, [yes_or_no] * 3, [(0, 0), (0, 1), (0, 2)])
    >>> plan = plan_blocks(asked, 4096)
    >>> plan.tokens_asked, plan.tokens_distinct, len(plan)
    (18, 8, 1)
    """
    if not len(conversations) or not all(map(len, conversations.questions)):
        raise ValueError("nothing to ask, or a question without tokens")
    sets, set_of_question = conversations.option_sets
    options = OptionTables.of(sets)
    text, order = _in_order(conversations, set_of_question)
    inner = options.inner_K[text.kind].astype(np.int64)
    starts = _balanced_cut(text, inner, block_tokens)
    sizes = []
    distinct = 0
    for first, stop in itertools.pairwise(starts.tolist()):
        piece = _Piece.of(text, options, first, stop)
        distinct += piece.used
        sizes.append(piece.sizes())
    T, keys, A, answer_keys, Q = np.max(sizes, axis=0).tolist()
    options_each, spellings, spelling_tokens = options.sequences_KxOxSxY.shape[1:]
    shape = Shape(
        tokens=_round_up(T, ROW),
        keys=_round_up(keys, _ROUND),
        answers=_round_up(A, _ROUND),
        answer_keys=_round_up(answer_keys, _ROUND),
        scored=options.scored_KxAxY.shape[2],
        questions=_round_up(Q, _ROUND),
        options=options_each,
        spellings=spellings,
        spelling_tokens=spelling_tokens,
    )
    asked = int(text.length.sum())
    return BlockPlan(shape, order, starts, asked, distinct, text, options)


def with_one_shape(plans: Sequence[BlockPlan]) -> list[BlockPlan]:
    """Pad the blocks of several jobs to one shape, so that one compiled program answers them all.

    Raises:
        ValueError: if the jobs' questions differ in what is read of their options.
    """
    sizes = [dataclasses.asdict(plan.shape) for plan in plans]
    most = {name: max(size[name] for size in sizes) for name in sizes[0]}
    for name in ("scored", "options", "spellings", "spelling_tokens"):
        if any(size[name] != most[name] for size in sizes):
            raise ValueError(f"jobs whose questions differ in {name} cannot share a shape")
    return [dataclasses.replace(plan, shape=Shape(**most)) for plan in plans]


# -- the order --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Text:
    """The conversations of a job in order: arrays [N], and the flat ids that they point into."""

    flat: np.ndarray  # int32 ids of all distinct lead-ins and questions
    lead_in_at: np.ndarray  # int64: where the lead-in begins in `flat`
    question_at: np.ndarray  # int64
    lead_in: np.ndarray  # int64: tokens of the lead-in
    length: np.ndarray  # int64: tokens of the conversation
    shared: np.ndarray  # int64: tokens it shares with the one before it; 0 for the first
    kind: np.ndarray  # int32: its set of options


class _Ranked:
    """Distinct texts in lexicographic order, and how much any two of them share."""

    def __init__(self, texts: Sequence[np.ndarray]) -> None:
        # As big-endian bytes, texts sort by their ids, and a text before those that extend it.
        keys = [np.asarray(text).astype(">u4").tobytes() for text in texts]
        distinct = sorted(set(keys))
        rank = {key: u for u, key in enumerate(distinct)}
        self.rank = np.array([rank[key] for key in keys], np.int64)
        self.lengths = np.array([len(key) // 4 for key in distinct], np.int64)
        self.flat = np.frombuffer(b"".join(distinct), ">u4").astype(np.int32)
        self.at = np.cumsum(self.lengths) - self.lengths
        # Level j holds the least of 2**j neighbouring shared lengths, so that the least of any
        # range is found in two places.
        self._levels = [self._neighbours()]
        while len(self._levels[-1]) > 1 << (len(self._levels) - 1):
            last, step = self._levels[-1], 1 << (len(self._levels) - 1)
            self._levels.append(np.minimum(last[:-step], last[step:]))

    def _neighbours(self) -> np.ndarray:
        """Return how many tokens texts u and u + 1 both begin with."""
        shared = np.zeros(max(0, len(self.lengths) - 1), np.int64)
        for first in range(0, len(shared), 4096):
            u = np.arange(first, min(first + 4096, len(shared)))
            least = np.minimum(self.lengths[u], self.lengths[u + 1])
            column = np.arange(int(least.max(initial=0)) + 1)
            inside = column < least[:, None]
            a, b = (
                self.flat[np.minimum(self.at[v][:, None] + column, len(self.flat) - 1)]
                for v in (u, u + 1)
            )
            shared[u] = np.argmin(inside & (a == b), axis=1)  # the last column is never inside
        return shared

    def shared(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return how many tokens texts u and v (u <= v) both begin with."""
        out = self.lengths[u].copy()
        differ = u < v
        first, count = u[differ], (v - u)[differ]
        level = np.frexp(count)[1] - 1  # floor(log2(count))
        found = np.empty(len(first), np.int64)
        for j in np.unique(level).tolist():
            here = level == j
            last = first[here] + count[here] - (1 << j)
            found[here] = np.minimum(self._levels[j][first[here]], self._levels[j][last])
        out[differ] = found
        return out


def _in_order(
    conversations: Conversations, set_of_question: np.ndarray
) -> tuple[_Text, np.ndarray]:
    """Return the conversations in order, and their places in the order that was given."""
    lead_ins, questions = _Ranked(conversations.lead_ins), _Ranked(conversations.questions)
    p, q = conversations.pairs[:, 0], conversations.pairs[:, 1]
    u, v, kind = lead_ins.rank[p], questions.rank[q], set_of_question[q]
    order = np.lexsort((kind, v, u))
    u, v, kind = u[order], v[order], kind[order]
    shared = np.zeros(len(order), np.int64)
    # Equal lead-ins: all of it, and what the questions share. Otherwise what lead-ins share.
    same = u[1:] == u[:-1]
    above, below = u[:-1], u[1:]
    shared[1:] = np.where(same, lead_ins.lengths[below], lead_ins.shared(above, below))
    shared[1:][same] += questions.shared(
        np.minimum(v[:-1], v[1:])[same], np.maximum(v[:-1], v[1:])[same]
    )
    text = _Text(
        flat=np.concatenate([lead_ins.flat, questions.flat]),
        lead_in_at=lead_ins.at[u],
        question_at=len(lead_ins.flat) + questions.at[v],
        lead_in=lead_ins.lengths[u],
        length=lead_ins.lengths[u] + questions.lengths[v],
        shared=shared,
        kind=kind,
    )
    return text, order.astype(np.int32)


# -- the cut ----------------------------------------------------------------------------------


def _balanced_cut(text: _Text, inner: np.ndarray, block_tokens: int) -> np.ndarray:
    """Return where blocks begin, and the end: as few blocks as possible, equally long if few."""
    starts = _cut(text, inner, block_tokens)
    # The least limit, in whole rows, that needs no more blocks.
    low, high = 1, -(-block_tokens // ROW)
    while len(starts) - 1 <= _BALANCED and low < high:
        middle = (low + high) // 2
        if len(_cut(text, inner, middle * ROW)) == len(starts):
            high = middle
        else:
            low = middle + 1
    if len(starts) - 1 <= _BALANCED and high * ROW < block_tokens:
        starts = _cut(text, inner, high * ROW)
    return starts


def _cut(text: _Text, inner: np.ndarray, limit: int) -> np.ndarray:
    """Cut so that no block, but one of a single conversation, has more than `limit` tokens."""
    total = np.cumsum(text.length - text.shared + inner)
    starts = [0]
    while starts[-1] < len(total):
        # The first conversation of a block is whole, whatever it shares with the one before.
        first = starts[-1]
        room = limit - text.length[first] - inner[first] + total[first]
        starts.append(max(first + 1, int(np.searchsorted(total, room, side="right"))))
    return np.array(starts, np.int64)


# -- the tables of a block --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The conversations of one block: arrays [Q], as in `_Text`, and their places in the block."""

    lead_in_at: np.ndarray
    question_at: np.ndarray
    lead_in: np.ndarray
    length: np.ndarray
    shared: np.ndarray
    kind: np.ndarray
    new: np.ndarray  # tokens that the conversation adds
    inner: np.ndarray  # inner tokens of its options
    start: np.ndarray  # place of its first token
    first_answer: np.ndarray  # its first answer node
    used: int  # tokens of the block

    @classmethod
    def of(cls, text: _Text, options: OptionTables, first: int, stop: int) -> _Piece:
        here = slice(first, stop)
        length, kind = text.length[here], text.kind[here]
        shared = text.shared[here].copy()
        shared[0] = 0  # the first conversation stands there whole
        new, inner = length - shared, options.inner_K[kind].astype(np.int64)
        after = np.cumsum(new + inner)
        return cls(
            lead_in_at=text.lead_in_at[here],
            question_at=text.question_at[here],
            lead_in=text.lead_in[here],
            length=length,
            shared=shared,
            kind=kind,
            new=new,
            inner=inner,
            start=after - new - inner,
            first_answer=np.cumsum(1 + inner) - 1 - inner,
            used=int(after[-1]),
        )

    def tree_rows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first conversation of each row of tokens, and the row's last place.

        Rows of nothing but padding are left out.
        """
        first = np.arange(0, self.used, ROW)
        conversation = np.searchsorted(self.start, first, side="right") - 1
        return conversation, np.minimum(first + ROW, length) - 1

    def answers(self, own: _Owners) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Return the places of the answer nodes, and their rows as `tree_rows` does."""
        # A conversation that adds nothing ends where the one before it ends.
        last = np.where(self.new > 0, self.start + self.new - 1, 0)
        last = np.maximum.accumulate(last)
        n, i = own.answer_conversation, own.answer_within
        places = np.where(i == 0, last[n], self.start[n] + self.new[n] + i - 1)
        rows = np.arange(0, len(n), ANSWER_ROW)
        # Places of different conversations are not in order where one adds nothing.
        return places, (n[rows], np.maximum.reduceat(places, rows))

    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return T, S, A, S of answer rows, and Q."""
        own = _Owners(self)
        answers, answer_rows = self.answers(own)
        rows = self.tree_rows(_round_up(self.used, ROW))
        widths = [int(self.widths(*some).max()) for some in (rows, answer_rows)]
        return self.used, widths[0], len(answers), widths[1], len(self.start)

    def widths(self, conversation: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return how many keys rows have: the first conversation's ancestors, and what follows."""
        return self.shared[conversation] + np.maximum(0, last + 1 - self.start[conversation])


class _Owners:
    """Which conversation each token, inner token and answer node belongs to, and its number."""

    def __init__(self, piece: _Piece) -> None:
        self.conversation, self.within = _ragged(piece.new)
        self.option_conversation, self.option_within = _ragged(piece.inner)
        self.answer_conversation, self.answer_within = _ragged(1 + piece.inner)


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the owner of each entry where owner n has `counts[n]`, and its number among them.

    >>> [x.tolist() for x in _ragged(np.array([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]


def _walk(piece: _Piece, needed: np.ndarray, end: np.ndarray) -> dict[int, np.ndarray]:
    """Fill in where descendants end; return the ancestors of those conversations' first tokens.

    One step a conversation: `path` holds the places of the tokens of the conversation so far.
    """
    path = np.empty(int(piece.length.max()), np.int32)
    places = np.arange(piece.used, dtype=np.int32)
    ancestors, before = {}, 0
    steps = zip(
        piece.shared.tolist(),
        piece.length.tolist(),
        piece.start.tolist(),
        needed.tolist(),
        strict=True,
    )
    for n, (shared, length, start, wanted) in enumerate(steps):
        # What is not shared with this conversation has seen its last descendant.
        end[path[shared:before]] = start
        if wanted:
            ancestors[n] = path[:shared].copy()
        path[shared:length] = places[start : start + length - shared]
        before = length
    end[path[:before]] = piece.used
    return ancestors


def _key_table(
    piece: _Piece,
    ancestors: dict[int, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    count: int,
    width: int,
) -> np.ndarray:
    """Return the keys of each row, int32 [count, width]; -1 for padding."""
    table = np.full((count, width), -1, np.int32)
    places = np.arange(int(rows[1].max()) + 1, dtype=np.int32)
    steps = zip(rows[0].tolist(), piece.start[rows[0]].tolist(), rows[1].tolist(), strict=True)
    for row, (n, start, last) in zip(table, steps, strict=False):
        above, own = ancestors[n], places[start : last + 1]
        row[: len(above)] = above
        row[len(above) : len(above) + len(own)] = own
    return table


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
