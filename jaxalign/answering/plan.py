"""Plan which tokens a batch of prompts x items needs, each once, and who attends to whom.

Items that follow a soft prompt share text: chat header, instruction, question stem. The planner
puts all items in a prefix tree, so that shared text is one node a token, and lays the tree out in
depth-first order:

    before (S tokens)  |  prompt (M)  |  trunk  |  tree (T tokens)
    cached once for all   \\______ common, W ______/

Every tree token sees all of `before` and `common`; within the tree it sees its ancestors. Tree
tokens are cut into rows of equal length: a row's keys are the union of its tokens' ancestors,
gathered by a static table. Matrix products see every token exactly once, without padding; only
attention has a mask. Options of more than one token are branches of the same tree.

Pure numpy: knows neither model nor JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

Spellings = Sequence[Sequence[tuple[int, ...]]]  # [option][spelling] -> token ids

_ROW_LENGTHS = (8, 16, 32, 64, 128)
# Gathering a key costs about as much as this many queries attending to it (measured on CPU).
_GATHER_COST = 8


@dataclasses.dataclass(frozen=True)
class Rows:
    """Attention of tree queries, cut into rows. Tree indices count from the tree's first token."""

    keys_RxS: np.ndarray  # int32: tree index of each key of a row (padding repeats key 0)
    mask_RxLxS: np.ndarray  # bool: query l of row r sees key s
    queries: int  # real queries; the last row's tail is padding


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything static about scoring Q items after a prompt of M tokens.

    Answer nodes A are the tokens whose next-token logits are read: the last token of each item
    and the inner tokens of options longer than one token.
    """

    before: np.ndarray  # int32 [S]: token ids before the prompt
    prompt_length: int
    trunk: np.ndarray  # int32: token ids that every item has right after the prompt
    tree: np.ndarray  # int32 [T]: token ids in depth-first order
    ends: np.ndarray  # int32 [T]: tree index after the last descendant of each tree token
    positions: np.ndarray  # int32 [W + T]: RoPE position of common and tree tokens
    rows: Rows
    answers: np.ndarray  # int32 [A]: tree index of each answer node
    answer_rows: Rows
    scored_AxY: np.ndarray  # int32: token ids whose logits are read at each answer node
    inner: np.ndarray  # int32: answer nodes that need the full normaliser (inside an option)
    # [Q, O, spellings, tokens]: index into the flat [A * Y] table, -1 where there is none
    sequences: np.ndarray
    tokens_asked: int  # prompt and item tokens if nothing after `before` were shared

    @property
    def common_length(self) -> int:
        return self.prompt_length + len(self.trunk)

    @property
    def tokens_computed(self) -> int:
        """Token positions per candidate that go through the layers."""
        return self.common_length + len(self.tree)


class PrefixTree:
    """A prefix tree over token ids; node 0 is the root and holds no token."""

    def __init__(self) -> None:
        self.token, self.parent, self.depth = [-1], [-1], [0]
        self.children: list[dict[int, int]] = [{}]

    def insert(self, tokens: Sequence[int], start: int = 0) -> int:
        node = start
        for token in map(int, tokens):
            child = self.children[node].get(token)
            if child is None:
                child = len(self.token)
                self.children[node][token] = child
                self.token.append(token)
                self.parent.append(node)
                self.depth.append(self.depth[node] + 1)
                self.children.append({})
            node = child
        return node

    def preorder(self) -> list[int]:
        order, stack = [], [0]
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(reversed(self.children[node].values()))
        return order[1:]

    def trunk_length(self, answers: set[int]) -> int:
        """Tokens that all sequences share, short of the first answer node."""
        node = 0
        while len(self.children[node]) == 1:
            child = next(iter(self.children[node].values()))
            if child in answers:
                break
            node = child
        return self.depth[node]


def plan_layout(
    before: Sequence[int],
    prompt_length: int,
    items: Sequence[Sequence[int]],
    options: Sequence[Spellings],
) -> Layout:
    """Lay out `items` (token ids that follow the prompt) and the options each is answered with.

    Raises ValueError for an empty item or an option without spelling.
    """
    if any(len(item) == 0 for item in items) or len(items) != len(options):
        raise ValueError("every item needs at least one token and its own options")
    tree = PrefixTree()
    ends = [tree.insert(item) for item in items]
    scored, paths = option_paths(tree, ends, options)
    order = tree.preorder()
    trunk = tree.trunk_length(set(scored))
    index = {node: i - trunk for i, node in enumerate(order)}
    ancestors = _local_ancestors(tree, order[trunk:], index)

    answer_nodes = sorted(scored, key=index.__getitem__)
    answers = np.array([index[node] for node in answer_nodes], np.int32)
    scored_AxY = pad_rows([list(scored[node]) for node in answer_nodes], 0)
    first = len(before) + prompt_length - 1
    return Layout(
        before=np.asarray(before, np.int32),
        prompt_length=prompt_length,
        trunk=np.array([tree.token[n] for n in order[:trunk]], np.int32),
        tree=np.array([tree.token[n] for n in order[trunk:]], np.int32),
        ends=_ends(ancestors),
        positions=np.concatenate(
            [
                len(before) + np.arange(prompt_length),
                [first + tree.depth[n] for n in order],
            ]
        ).astype(np.int32),
        rows=_best_rows(range(len(order) - trunk), ancestors),
        answers=answers,
        answer_rows=_best_rows(answers.tolist(), ancestors),
        scored_AxY=scored_AxY,
        inner=np.array(
            [a for a, node in enumerate(answer_nodes) if node not in set(ends)], np.int32
        ),
        sequences=sequence_table(paths, answer_nodes, scored, scored_AxY.shape[1]),
        tokens_asked=sum(prompt_length + len(item) for item in items),
    )


def option_paths(
    tree: PrefixTree, ends: list[int], options: Sequence[Spellings]
) -> tuple[dict[int, dict[int, int]], list[list[list[list[tuple[int, int]]]]]]:
    """Grow branches for the inner tokens of options.

    Returns, per answer node, the tokens read there (token -> column), and per item, option and
    spelling the (node, column) pairs whose log-probabilities add up to the option's.
    """
    scored: dict[int, dict[int, int]] = {}
    paths = []
    for end, spellings_of in zip(ends, options, strict=True):
        per_option = []
        for spellings in spellings_of:
            if not spellings or not all(spellings):
                raise ValueError("an option has no spelling")
            per_option.append([_path(tree, end, s, scored) for s in spellings])
        paths.append(per_option)
    return scored, paths


def _path(
    tree: PrefixTree, node: int, spelling: Sequence[int], scored: dict[int, dict[int, int]]
) -> list[tuple[int, int]]:
    path = []
    for i, token in enumerate(spelling):
        columns = scored.setdefault(node, {})
        path.append((node, columns.setdefault(int(token), len(columns))))
        if i + 1 < len(spelling):
            node = tree.insert([token], node)
    return path


def _local_ancestors(
    tree: PrefixTree, nodes: Sequence[int], index: dict[int, int]
) -> list[np.ndarray]:
    """Per tree token, the tree indices it sees: its ancestors outside the trunk, and itself."""
    found: list[np.ndarray] = []
    for node in nodes:
        parent = index.get(tree.parent[node], -1)
        seen = found[parent] if parent >= 0 else np.empty(0, np.int32)
        found.append(np.append(seen, np.int32(index[node])))
    return found


def _ends(ancestors: list[np.ndarray]) -> np.ndarray:
    """Per tree token, the tree index after its last descendant: in depth-first order these stand
    right behind it."""
    ends = np.zeros(len(ancestors), np.int32)
    for i, seen in enumerate(ancestors):
        ends[seen] = i + 1
    return ends


def _best_rows(queries: Sequence[int], ancestors: list[np.ndarray]) -> Rows:
    """Cut the queries into rows of the length that makes the least work."""
    lengths = [n for n in _ROW_LENGTHS if n < 2 * len(queries)] or [len(queries)]
    plans = [(n, _row_keys(queries, ancestors, n)) for n in lengths]
    length, keys = min(plans, key=lambda plan: _cost(*plan))
    mask = np.zeros((len(keys), length, max(map(len, keys))), bool)
    for i, query in enumerate(queries):
        r, row_query = divmod(i, length)
        mask[r, row_query, np.searchsorted(keys[r], ancestors[query])] = True
    return Rows(pad_rows(keys, 0), mask, len(queries))


def _row_keys(queries: Sequence[int], ancestors: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Per row of `length` queries, the sorted tree indices any of them sees."""
    starts = range(0, len(queries), length)
    return [
        np.unique(np.concatenate([ancestors[q] for q in queries[i : i + length]])) for i in starts
    ]


def _cost(length: int, keys: list[np.ndarray]) -> int:
    return len(keys) * max(map(len, keys)) * (length + _GATHER_COST)


def sequence_table(
    paths: list, answer_nodes: list[int], scored: dict[int, dict[int, int]], Y: int
) -> np.ndarray:
    row = {node: a for a, node in enumerate(answer_nodes)}
    most = max(map(len, paths))
    spellings = max(len(s) for item in paths for s in item)
    tokens = max(len(p) for item in paths for s in item for p in s)
    table = np.full((len(paths), most, spellings, tokens), -1, np.int32)
    for q, item in enumerate(paths):
        for o, option in enumerate(item):
            for s, path in enumerate(option):
                table[q, o, s, : len(path)] = [row[node] * Y + column for node, column in path]
    return table


def pad_rows(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
