"""Cut any number of conversations into blocks of one shape, so that one compiled program does all.

A block is a prefix tree of its conversations in depth-first order: what neighbours share, a lead-in
or a question's stem, is computed once. In that order a token's descendants stand right after it,
so one number per token, where they end, says who sees whom: token j is seen by i if
j <= i < end[j]. Tables of keys follow from it, and masks are made on the device.

`jaxalign.answering.plan` plans one interview as tightly as possible; here it is many
blocks, quickly, each
padded to the shape of the largest. Pure numpy: knows neither model nor JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.answering.plan import Spellings

ROW, ANSWER_ROW = 64, 8  # queries that share a table of keys: tree tokens, answer nodes
_ROUND = 32  # other sizes are rounded up to a multiple, so that like jobs share a program


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Conversation n: the tokens of `lead_ins[p]`, then of `questions[q]`; p, q = `pairs[n]`."""

    lead_ins: Sequence[np.ndarray]
    questions: Sequence[np.ndarray]
    options: Sequence[Spellings]  # of each question
    pairs: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.pairs)

    def tokens(self, n: int) -> np.ndarray:
        p, q = self.pairs[n]
        return np.concatenate([self.lead_ins[p], self.questions[q]])

    def spellings(self, n: int) -> Spellings:
        return self.options[self.pairs[n][1]]


@dataclasses.dataclass(frozen=True)
class Block:
    """The tree of some conversations. An answer node is a token whose next token is read."""

    tokens: list[int]
    depth: list[int]
    end: list[int]
    scored: dict[int, dict[int, int]]  # answer node -> token read there -> its column
    ends: set[int]  # answer nodes at the end of a conversation; the others are inside options
    paths: list  # [conversation][option][spelling] -> (node, column) pairs


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of padded tables; what a compiled program depends on."""

    tokens: int  # T
    keys: int  # S of a row of tree tokens
    answers: int  # A, at least one of them padding
    answer_keys: int  # S of a row of answer nodes
    scored: int  # Y
    inner: int
    questions: int  # Q
    options: int  # O
    spellings: int
    spelling_tokens: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """A block padded to a shape; int32. Names as in `jaxalign.answering.options.PreparedItems`."""

    tree: np.ndarray  # [T]
    positions: np.ndarray  # [T]
    end: np.ndarray  # [T]
    keys: np.ndarray  # [R, S]; -1 for padding
    answer_keys: np.ndarray  # [R', S']; -1 for padding
    answers: np.ndarray  # [A]
    scored: np.ndarray  # [A, Y]
    inner: np.ndarray
    sequences: np.ndarray  # [Q, O, spellings, tokens]


def cut(conversations: Conversations, block_tokens: int) -> list[range]:
    """Consecutive conversations that make blocks of at most `block_tokens` tokens.

    A conversation longer than that is a block of its own. The cut knows nothing of devices, so
    neither do results.
    """
    blocks, start, total, before = [], 0, 0, np.empty(0, np.int32)
    for n in range(len(conversations)):
        tokens = conversations.tokens(n)
        inside = sum(len(s) - 1 for option in conversations.spellings(n) for s in option)
        new = len(tokens) - _shared(before, tokens) + inside
        if n > start and total + new > block_tokens:
            blocks.append(range(start, n))
            start, total, new = n, 0, len(tokens) + inside
        total, before = total + new, tokens
    return [*blocks, range(start, len(conversations))] if len(conversations) else []


def plan_block(conversations: Conversations, some: range) -> Block:
    """The tree of these conversations, and where their options are read."""
    tree, scored, ends, paths = _Tree(), {}, set(), []
    for n in some:
        tokens, options = conversations.tokens(n), conversations.spellings(n)
        end = tree.grow(tokens)
        ends.add(end)
        # Spellings that begin alike next to each other, so that they share their nodes.
        places = sorted((s, o, i) for o, option in enumerate(options) for i, s in enumerate(option))
        path = [[[] for _ in option] for option in options]
        for spelling, o, i in places:
            nodes = [end, *tree.branch(tokens, spelling[:-1])]
            path[o][i] = [_read(scored, *read) for read in zip(nodes, spelling, strict=True)]
        paths.append(path)
    return Block(*tree.finish(), scored, ends, paths)


def shape_of(blocks: Iterator[Block]) -> Shape:
    """The smallest shape, rounded up, that holds every block."""
    most = np.max([_sizes(block) for block in blocks], axis=0).tolist()
    T, keys, A, answer_keys, Y, inner, Q, *options = most
    return Shape(
        tokens=_up(T, ROW),
        keys=_up(keys, _ROUND),
        answers=_up(A + 1, _ROUND),
        answer_keys=_up(answer_keys, _ROUND),
        scored=Y,
        inner=_up(inner, _ROUND),
        questions=_up(Q, _ROUND),
        options=options[0],
        spellings=options[1],
        spelling_tokens=options[2],
    )


def pad_block(block: Block, shape: Shape) -> Tables:
    """The block's tables. Padding tokens see themselves alone and are read by nobody."""
    nodes = sorted(block.scored)
    row = {node: a for a, node in enumerate(nodes)}
    end = _padded_end(block, shape.tokens)
    scored = np.zeros((shape.answers, shape.scored), np.int32)
    for node, columns in block.scored.items():
        scored[row[node], : len(columns)] = list(columns)
    inner = [row[node] for node in nodes if node not in block.ends]
    answers = _filled(nodes, shape.answers, nodes[-1])
    return Tables(
        tree=_filled(block.tokens, shape.tokens, 0),
        positions=_filled(block.depth, shape.tokens, 0),
        end=end,
        keys=np.stack([_filled(keys, shape.keys, -1) for keys in _tree_keys(end)]),
        answer_keys=np.stack(
            [_filled(keys, shape.answer_keys, -1) for keys in _answer_keys(end, answers)]
        ),
        answers=answers,
        scored=scored,
        inner=_filled(inner, shape.inner, shape.answers - 1),  # an answer that nobody reads
        sequences=_sequences(block, row, shape),
    )


class _Tree:
    """A prefix tree grown in depth-first order; a sequence shares with the one before it only."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.end: list[int] = []
        self._path: list[int] = []  # nodes of the sequence grown last
        self._last = np.empty(0, np.int32)

    def grow(self, sequence: np.ndarray) -> int:
        """Add a sequence; returns the node of its last token."""
        shared, first = _shared(self._last, sequence), len(self.tokens)
        self._close(shared)
        new = len(sequence) - shared
        self.tokens += sequence[shared:].tolist()
        self.depth += range(shared, len(sequence))
        self.end += [-1] * new
        self._path += range(first, first + new)
        self._last = sequence
        return self._path[-1]

    def branch(self, sequence: np.ndarray, after: Sequence[int]) -> list[int]:
        """Nodes of the tokens `after` a sequence that has been grown."""
        if not after:
            return []
        self.grow(np.concatenate([sequence, np.asarray(after, np.int32)]))
        return self._path[-len(after) :]

    def finish(self) -> tuple[list[int], list[int], list[int]]:
        self._close(0)
        return self.tokens, self.depth, self.end

    def _close(self, depth: int) -> None:
        for node in self._path[depth:]:
            self.end[node] = len(self.tokens)
        del self._path[depth:]


def _read(scored: dict[int, dict[int, int]], node: int, token: int) -> tuple[int, int]:
    columns = scored.setdefault(node, {})
    return node, columns.setdefault(int(token), len(columns))


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that both begin with."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(np.argmax(differ)) if differ.any() else n


def _sizes(block: Block) -> list[int]:
    end = _padded_end(block, _up(len(block.end), ROW))
    keys, answer_keys = _tree_keys(end), _answer_keys(end, np.array(sorted(block.scored)))
    options = [option for path in block.paths for option in path]
    return [
        len(block.end),
        max(map(len, keys)),
        len(block.scored),
        max(map(len, answer_keys)),
        max(map(len, block.scored.values())),
        len(block.scored) - len(block.ends),
        len(block.paths),
        max(map(len, block.paths)),
        max(map(len, options)),
        max(len(spelling) for option in options for spelling in option),
    ]


def _padded_end(block: Block, length: int) -> np.ndarray:
    """Padding tokens see themselves alone."""
    return np.append(block.end, np.arange(len(block.end), length) + 1).astype(np.int32)


def _tree_keys(end: np.ndarray) -> list[np.ndarray]:
    """Per row, what its tokens see: the row itself, and of what is before it the ancestors of its
    first token. (An ancestor of a later one is either.)"""
    return [
        np.append(np.flatnonzero(end[:i] > i), np.arange(i, i + ROW))
        for i in range(0, len(end), ROW)
    ]


def _answer_keys(end: np.ndarray, answers: np.ndarray) -> list[np.ndarray]:
    """Per row of answer nodes, the tokens that any of them sees."""
    rows = []
    for i in range(0, len(answers), ANSWER_ROW):
        nodes = answers[i : i + ANSWER_ROW, None]
        tokens = np.arange(nodes.max() + 1)
        sees = (tokens <= nodes) & (nodes < end[: len(tokens)])
        rows.append(np.flatnonzero(sees.any(axis=0)))
    return rows


def _sequences(block: Block, row: dict[int, int], shape: Shape) -> np.ndarray:
    """Padding questions read one option, so that nothing is divided by nothing."""
    size = shape.questions, shape.options, shape.spellings, shape.spelling_tokens
    table = np.full(size, -1, np.int32)
    table[len(block.paths) :, 0, 0, 0] = 0
    for q, path in enumerate(block.paths):
        for o, option in enumerate(path):
            for s, spelling in enumerate(option):
                flat = [row[node] * shape.scored + column for node, column in spelling]
                table[q, o, s, : len(flat)] = flat
    return table


def _filled(values: Sequence[int], length: int, fill: int) -> np.ndarray:
    out = np.full(length, fill, np.int32)
    out[: len(values)] = values
    return out


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
