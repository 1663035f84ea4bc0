"""A prefix tree over token ids: what several sequences begin with is stored and computed once.

Every plan of what to compute (`plan`, `plan_suffix`, `blocks`) is such a tree laid out in
depth-first order. In that order a token's descendants stand right behind it, so one number a token,
where its descendants end, says who sees whom: token j is seen by token i if j <= i < end[j].

Pure numpy: knows neither model nor JAX.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Spellings = Sequence[Sequence[tuple[int, ...]]]
"""Token ids by option and spelling. An option's probability is the sum over its spellings."""

Paths = list[list[list[tuple[int, int]]]]
"""By option, spelling and token of it: (node whose next token is read, column of that token)."""

ROOT = -1  # the parent of first tokens; it holds no token itself


class PrefixTree:
    """A prefix tree that grows by one sequence after the other, and numbers its nodes in turn.

    Args:
        depth_first: share a sequence's beginning with the sequence inserted before it only. The
            nodes then come out in depth-first order, which is quick to lay out and suits very many
            sequences that have been sorted. By default a sequence shares with all before it.

    >>> tree = PrefixTree()
    >>> tree.insert([5, 6, 7]), tree.insert([5, 6, 8]), tree.insert([5, 9])
    (2, 3, 4)
    >>> tree.token, tree.parent, tree.depth
    ([5, 6, 7, 8, 9], [-1, 0, 1, 1, 0], [0, 1, 2, 2, 1])
    >>> tree.ends(tree.depth_first_order()).tolist()
    [5, 4, 3, 4, 5]
    """

    def __init__(self, depth_first: bool = False) -> None:
        self.token: list[int] = []
        self.parent: list[int] = []
        self.depth: list[int] = []  # tokens before this one
        self.scored: dict[int, dict[int, int]] = {}
        """Answer nodes, whose next token is read: node -> token read there -> its column."""
        self._depth_first = depth_first
        self._children: dict[int, dict[int, int]] = {ROOT: {}}

    def insert(self, tokens: Sequence[int] | np.ndarray, start: int = ROOT) -> int:
        """Add the sequence `tokens` below the node `start`; return the node of its last token."""
        if len(tokens) == 0:
            return start
        tokens, children = np.asarray(tokens).tolist(), self._children
        # Follow the nodes that are there already.
        node, shared = start, 0
        for token in tokens:
            child = children[node].get(token)
            if child is None:
                break
            node = child
            shared += 1
        # The rest is a chain of new nodes.
        rest, first = tokens[shared:], len(self.token)
        if rest:
            chain = range(first, first + len(rest))
            below = self.depth[node] + 1 if node != ROOT else 0
            self.token += rest
            self.parent += [node, *chain[:-1]]
            self.depth += range(below, below + len(rest))
            if self._depth_first:  # an older sibling is no longer to be shared with
                children[node].clear()
            children[node][rest[0]] = first
            for i, token in enumerate(rest[1:], first):
                children[i] = {token: i + 1}
            node = chain[-1]
            children[node] = {}
        elif self._depth_first:  # nor is what an older sequence has below this one's end
            children[node] = {}
        return node

    def read_options(self, end: int, options: Spellings) -> Paths:
        """Add branches for options longer than one token after the text that ends at node `end`.

        The last token of a spelling is only read, so it needs no node. Returns the places whose
        log-probabilities add up to a spelling's. Raises ValueError for an option without spelling.
        """
        if not all(spellings and all(spellings) for spellings in options):
            raise ValueError("an option has no spelling")
        visits = [
            (spelling, o, s)
            for o, option in enumerate(options)
            for s, spelling in enumerate(option)
        ]
        if self._depth_first:  # spellings that begin alike next to each other, to share their nodes
            visits.sort()
        paths: Paths = [[[] for _ in option] for option in options]
        for spelling, o, s in visits:
            nodes = self._path(self.insert(spelling[:-1], end), len(spelling))
            paths[o][s] = [self._read(*at) for at in zip(nodes, spelling, strict=True)]
        return paths

    def _path(self, node: int, count: int) -> list[int]:
        """The `count` nodes that end with `node`, from the top down."""
        path = [node]
        while len(path) < count:
            path.append(self.parent[path[-1]])
        return path[::-1]

    def _read(self, node: int, token: int) -> tuple[int, int]:
        columns = self.scored.setdefault(node, {})
        return node, columns.setdefault(int(token), len(columns))

    def depth_first_order(self) -> list[int]:
        """Return the nodes in depth-first order, children as they were inserted."""
        if self._depth_first:
            return list(range(len(self.token)))
        order, stack = [], [ROOT]
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(reversed(self._children[node].values()))
        return order[1:]

    def ends(self, order: Sequence[int]) -> np.ndarray:
        """Return for each token of the depth-first `order` the place after its last descendant.

        int32 [T]. Places are positions in `order`.
        """
        depth = np.array([self.depth[node] for node in order], np.int32)
        ends = np.empty(len(order), np.int32)
        # A new branch starts wherever a token is not deeper than the one before it. There, all
        # tokens of the path so far that are as deep as the branch have seen their last descendant.
        starts = [*(np.flatnonzero(np.diff(depth) <= 0) + 1).tolist(), len(order)]
        path, at = np.empty(len(order), np.int32), 0  # place of the path's token at each depth
        for start in starts:
            path[depth[at] : depth[start - 1] + 1] = np.arange(at, start)
            top = depth[start] if start < len(order) else 0
            ends[path[top : depth[start - 1] + 1]] = start
            at = start
        return ends

    def trunk_length(self) -> int:
        """Return how many tokens all sequences share, short of the first answer node."""
        node, length = ROOT, 0
        while len(self._children[node]) == 1:
            [node] = self._children[node].values()
            if node in self.scored:
                break
            length += 1
        return length


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many tokens both sequences begin with."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(np.argmax(differ)) if differ.any() else n


def sequence_table(
    paths: Sequence[Paths], row: dict[int, int], columns: int, shape: Sequence[int] | None = None
) -> np.ndarray:
    """Return where the tokens of each option's spellings are read, int32 [Q, O, spellings, tokens].

    An entry indexes the flat [A * Y] table of logits that are read; -1 where there is none.

    Args:
        paths: `PrefixTree.read_options` of each item.
        row: the row of each answer node in the table.
        columns: Y, columns of the table.
        shape: of the result; default the least that holds all paths.
    """
    if shape is None:
        options = [option for path in paths for option in path]
        tokens = max(len(spelling) for option in options for spelling in option)
        shape = len(paths), max(map(len, paths)), max(map(len, options)), tokens
    table = np.full(shape, -1, np.int32)
    for q, path in enumerate(paths):
        for o, option in enumerate(path):
            for s, spelling in enumerate(option):
                flat = [row[node] * columns + column for node, column in spelling]
                table[q, o, s, : len(flat)] = flat
    return table


def pad_rows(rows: Sequence[Sequence[int]], fill: int, width: int | None = None) -> np.ndarray:
    """Return rows of unequal length as one int32 array, filled up with `fill`.

    >>> pad_rows([[1, 2], [3]], fill=0).tolist()
    [[1, 2], [3, 0]]
    """
    out = np.full((len(rows), max(map(len, rows)) if width is None else width), fill, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
