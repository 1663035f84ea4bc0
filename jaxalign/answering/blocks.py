"""Cut any number of conversations into blocks of one shape, so that one compiled program does all.

A block is a prefix tree of its conversations in depth-first order, so that what neighbours share, a
lead-in or a question's stem, is computed once (`jaxalign.answering.prefix_tree`). Tables of keys
follow from where each token's descendants end; masks are made on the device.

`jaxalign.answering.plan` lays out one set of items as tightly as possible. Here there are many
blocks, planned quickly, each padded to the shape of the largest.

Pure numpy: knows neither model nor JAX. Letters: T token, S key of a row, A answer node, Y token
read there, R row, Q conversation, O option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.answering.prefix_tree import (
    Paths,
    PrefixTree,
    Spellings,
    pad_rows,
    sequence_table,
    shared_length,
)

ROW, ANSWER_ROW = 64, 8  # queries that share a table of keys: tree tokens, answer nodes
_ROUND = 32  # other sizes are rounded up to a multiple, so that like jobs share a program


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Questions after lead-ins, as token ids; each distinct lead-in and question is held once.

    Conversation n is the tokens of `lead_ins[p]`, then those of `questions[q]`, where p, q is
    `pairs[n]`.
    """

    lead_ins: Sequence[np.ndarray]
    questions: Sequence[np.ndarray]
    options: Sequence[Spellings]  # of each question
    pairs: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.pairs)

    def tokens(self, n: int) -> np.ndarray:
        """Return the token ids of conversation n."""
        p, q = self.pairs[n]
        return np.concatenate([self.lead_ins[p], self.questions[q]])

    def spellings(self, n: int) -> Spellings:
        """Return the spellings of the options of conversation n's question."""
        return self.options[self.pairs[n][1]]


@dataclasses.dataclass(frozen=True)
class Block:
    """The tree of some conversations. An answer node is a token whose next token is read."""

    tokens: list[int]  # token ids in depth-first order
    depth: list[int]  # of each token: how many come before it in its conversation
    end: np.ndarray  # int32, of each token: the place after its last descendant
    scored: dict[int, dict[int, int]]  # answer node -> token read there -> its column
    last_nodes: set[int]  # answer nodes that end a conversation; the others are inside options
    paths: list[Paths]  # of each conversation


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
    """Return consecutive conversations that make blocks of at most `block_tokens` tokens.

    A conversation longer than that is a block by itself. The cut does not depend on devices, so
    results do not either.
    """
    blocks, start, total, before = [], 0, 0, np.empty(0, np.int32)
    for n in range(len(conversations)):
        tokens = conversations.tokens(n)
        # What this conversation adds: what it does not share, and nodes inside its options.
        inside = sum(len(s) - 1 for option in conversations.spellings(n) for s in option)
        new = len(tokens) - shared_length(before, tokens) + inside
        if n > start and total + new > block_tokens:
            blocks.append(range(start, n))
            start, total, new = n, 0, len(tokens) + inside
        total, before = total + new, tokens
    return [*blocks, range(start, len(conversations))] if len(conversations) else []


def plan_block(conversations: Conversations, members: range) -> Block:
    """Return the tree of the conversations `members`, and where their options are read."""
    tree, last_nodes, paths = PrefixTree(depth_first=True), set(), []
    for n in members:
        last_node = tree.insert(conversations.tokens(n))
        last_nodes.add(last_node)
        paths.append(tree.read_options(last_node, conversations.spellings(n)))
    end = tree.ends(tree.depth_first_order())
    return Block(tree.token, tree.depth, end, tree.scored, last_nodes, paths)


def shape_of(blocks: Iterator[Block]) -> Shape:
    """Return the smallest shape, rounded up, that holds every block."""
    most = np.max([_sizes(block) for block in blocks], axis=0).tolist()
    T, keys, A, answer_keys, Y, inner, Q, *options = most
    return Shape(
        tokens=_round_up(T, ROW),
        keys=_round_up(keys, _ROUND),
        answers=_round_up(A + 1, _ROUND),
        answer_keys=_round_up(answer_keys, _ROUND),
        scored=Y,
        inner=_round_up(inner, _ROUND),
        questions=_round_up(Q, _ROUND),
        options=options[0],
        spellings=options[1],
        spelling_tokens=options[2],
    )


def pad_block(block: Block, shape: Shape) -> Tables:
    """Return the block's tables. A padding token sees only itself, and no other token sees it."""
    nodes = sorted(block.scored)
    row = {node: a for a, node in enumerate(nodes)}
    end = _padded_end(block, shape.tokens)
    scored = np.zeros((shape.answers, shape.scored), np.int32)
    for node, columns in block.scored.items():
        scored[row[node], : len(columns)] = list(columns)
    inner = [row[node] for node in nodes if node not in block.last_nodes]
    answers = _filled(nodes, shape.answers, nodes[-1])
    size = shape.questions, shape.options, shape.spellings, shape.spelling_tokens
    sequences = sequence_table(block.paths, row, shape.scored, size)
    # Padding questions read one option, so that nothing is divided by zero.
    sequences[len(block.paths) :, 0, 0, 0] = 0
    return Tables(
        tree=_filled(block.tokens, shape.tokens, 0),
        positions=_filled(block.depth, shape.tokens, 0),
        end=end,
        keys=pad_rows(_tree_keys(end), -1, shape.keys),
        answer_keys=pad_rows(_answer_keys(end, answers), -1, shape.answer_keys),
        answers=answers,
        scored=scored,
        inner=_filled(inner, shape.inner, shape.answers - 1),  # a padding answer, never read
        sequences=sequences,
    )


def _sizes(block: Block) -> list[int]:
    """Return what the block needs of each size of a `Shape`, in its order."""
    end = _padded_end(block, _round_up(len(block.end), ROW))
    keys, answer_keys = _tree_keys(end), _answer_keys(end, np.array(sorted(block.scored)))
    options = [option for path in block.paths for option in path]
    return [
        len(block.end),
        max(map(len, keys)),
        len(block.scored),
        max(map(len, answer_keys)),
        max(map(len, block.scored.values())),
        len(block.scored) - len(block.last_nodes),
        len(block.paths),
        max(map(len, block.paths)),
        max(map(len, options)),
        max(len(spelling) for option in options for spelling in option),
    ]


def _padded_end(block: Block, length: int) -> np.ndarray:
    """Return where descendants end, int32 [length]; padding tokens see only themselves."""
    return np.append(block.end, np.arange(len(block.end), length) + 1).astype(np.int32)


def _tree_keys(end: np.ndarray) -> list[np.ndarray]:
    """Return, per row of tree tokens, which tokens any of them sees.

    These are the row itself and, of what is before it, the ancestors of its first token: an
    ancestor of a later token is one or the other.
    """
    return [
        np.append(np.flatnonzero(end[:i] > i), np.arange(i, i + ROW))
        for i in range(0, len(end), ROW)
    ]


def _answer_keys(end: np.ndarray, answers: np.ndarray) -> list[np.ndarray]:
    """Return, per row of answer nodes, which tokens any of them sees."""
    rows = []
    for i in range(0, len(answers), ANSWER_ROW):
        nodes = answers[i : i + ANSWER_ROW, None]
        tokens = np.arange(nodes.max() + 1)
        sees = (tokens <= nodes) & (nodes < end[: len(tokens)])
        rows.append(np.flatnonzero(sees.any(axis=0)))
    return rows


def _filled(values: Sequence[int], length: int, fill: int) -> np.ndarray:
    return pad_rows([values], fill, length)[0]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
